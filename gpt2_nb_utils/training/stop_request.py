"""Ctrl-C, a stop button, `kill` or a closed terminal: finish the step, save, and only then
leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from gpt2_nb_utils import dist_env

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_latest: int | None = None


def exit_status() -> int:
    """That of a command which was asked to stop: 128 + the number of the signal, as shells have it;
    Ctrl-C if there was none."""
    return 128 + (_latest or signal.SIGINT)


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGHUP are remembered instead of obeyed.

    Only a second Ctrl-C, or a second `kill`, leaves at once. What a host sends is one request:
    Jupyter a SIGINT and then a SIGTERM, a closing terminal one SIGHUP or two, torchrun two
    SIGTERMs, and a service manager a SIGTERM to each process of a `run`, whose kernel gets the
    SIGINT of that `run` as well. Where SIGHUP is ignored (`nohup`), it stays so.

    Whether it is True, all processes of a run agree upon: then all must ask equally often.

    Args:
        on_first: called when the first signal comes.
        agree: whether a flag is up in any process.

    Attributes:
        signal_number: the first signal that came, or None.
    """

    def __init__(
        self, on_first: Callable[[], None] | None = None, agree: Callable[[bool], bool] = bool
    ) -> None:
        self.signal_number: int | None = None
        self._agree, self._agreed = agree, False
        self._on_first = on_first
        self._came: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        self._agreed = self._agreed or self._agree(self.signal_number is not None)
        return self._agreed

    def __enter__(self) -> StopRequest:
        global _latest
        _latest = None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
            numbers.append(_HANGUP)
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in numbers:
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            # torchrun ends those that are left when a rank dies: first they say why.
            ends_too_early = error is not None and number == signal.SIGTERM and _of_torchrun()
            signal.signal(number, signal.SIG_IGN if ends_too_early else handler)

    def _ask(self, number: int, frame: Any) -> None:
        global _latest
        again, came = number in self._came, bool(self._came)
        # After a SIGHUP alone, SIGINT is a person's; after a SIGTERM, it may be that of `run`.
        again |= came and number == signal.SIGINT and signal.SIGTERM not in self._came
        self._came.add(number)
        if not came:
            self.signal_number = _latest = number
            if self._on_first is not None:
                self._on_first()
        elif again and number != _HANGUP and not (number == signal.SIGTERM and _of_torchrun()):
            _latest = number
            raise KeyboardInterrupt


def _of_torchrun() -> bool:
    return dist_env.world_size() > 1
