"""Ctrl-C, a stop button or `kill`: finish the step, save, and only then leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

_latest: int | None = None


def exit_status() -> int:
    """That of a command which was asked to stop: 128 + the number of the signal, as shells have it; Ctrl-C if there was none."""
    return 128 + (_latest or signal.SIGINT)


class StopRequest:
    """A context in which SIGINT and SIGTERM are remembered instead of obeyed; a second one leaves at once.

    Whether it is True, all processes of a run agree upon: then all must ask equally often.

    Args:
        on_first: called when the first signal comes.
        agree: whether a flag is up in any process.

    Attributes:
        signal_number: the signal that came, or None.
    """

    def __init__(
        self, on_first: Callable[[], None] | None = None, agree: Callable[[bool], bool] = bool
    ) -> None:
        self.signal_number: int | None = None
        self._agree, self._agreed = agree, False
        self._on_first = on_first
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        self._agreed = self._agreed or self._agree(self.signal_number is not None)
        return self._agreed

    def __enter__(self) -> StopRequest:
        global _latest
        _latest = None
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        global _latest
        _latest = number
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._on_first is not None:
            self._on_first()
