"""Checkpoints written beside the training, which waits for a copy in memory only: a thread does the
rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.checkpoints import save_checkpoint
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory

SHARE = 0.03
"""Share of a run's time in which checkpoints may be written, but for the first of each file and
those at the end. Copies come on top."""


class Saver:
    """A context in which checkpoints are written in the background, no more often than a share of
    its time allows.

    A checkpoint that is not due yet waits in memory, and a newer one of the same file takes its
    place. What waits when the context is left, at the end or by an error, is written then. Ctrl-C
    alone drops it and leaves the files as they are.

    The copies take as much memory as the files take disk, and each is made in the place of the one
    before: for GPT-2 124M 0.5 GB (best.pt) and 1.5 GB (last.pt with AdamW).

    Args:
        paths: the files. Of several that wait, the first named is written first, so that a kill
            never leaves a file beside an older one that it builds on: the best loss that last.pt
            speaks of must be that of best.pt.
        share: of the time since the context was entered.
        previous: for some of the files, where the checkpoint goes that a newer one replaces.
        wanted: asked before each file whether it shall still be written.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        share: float = SHARE,
        previous: Mapping[Path, Path] = MappingProxyType({}),
        wanted: Callable[[], bool] = lambda: True,
    ):
        self._paths, self._share = tuple(paths), share
        self._previous, self._wanted = previous, wanted
        self._copies: dict[Path, Any] = {}
        self._waiting: set[Path] = set()
        self._writing: Path | None = None
        self._took = dict.fromkeys(paths, 0.0)  # seconds, for the last write of each file
        self._entered, self._spent = 0.0, 0.0
        self._failure: BaseException | None = None
        self._hurry = self._over = False
        self._changed = threading.Condition()  # guards all of these
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def __enter__(self) -> Saver:
        self._entered = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                self.flush()
        except UserError:
            if kind is None:
                raise  # otherwise what went wrong first says more
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._thread.join()

    def save(self, path: Path, content: dict[str, Any], now: bool = False) -> None:
        """Take a copy of a checkpoint; it is written to `path` when it is due.

        Args:
            path: one of the files.
            content: as for `save_checkpoint`. It may change as soon as this returns.
            now: begin to write what waits at once, due or not: for the end of a run, which would
                wait for it.

        Raises:
            UserError: an earlier checkpoint could not be written.
        """
        with self._changed:
            while self._writing == path:  # its copy is being read
                self._changed.wait()
            self.check()
            self._waiting.discard(path)
            before = self._copies.pop(path, None)
            try:
                self._copies[path] = _copy(content, before)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._copies[path] = content
            self._waiting.add(path)
            self._hurry |= now
            self._changed.notify_all()
        if self._copies[path] is content:  # no room for a copy: training waits for the file instead
            self.flush()
            del self._copies[path]

    def check(self) -> None:
        """Raise what went wrong in the background: a UserError where the disk is full."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Write what waits, due or not, and return when it is on the disk."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._waiting or self._writing:
                self._changed.wait()
            self._hurry = False
            self.check()

    def _work(self) -> None:
        while (path := self._next()) is not None:
            begun = time.monotonic()
            try:
                if self._wanted():
                    save_checkpoint(
                        path,
                        self._copies[path],
                        abandoned=lambda: self._over,
                        previous=self._previous.get(path),
                    )
            except BaseException as error:
                self._failure = error
            with self._changed:
                self._took[path] = time.monotonic() - begun
                self._spent += self._took[path]
                self._writing = None
                if self._failure is not None:
                    self._waiting.clear()  # what builds on the file that failed must not be written
                self._changed.notify_all()

    def _next(self) -> Path | None:
        """The file to write now, once there is one; None when it is all over."""
        with self._changed:
            while not self._over:
                seconds = self._seconds_left()
                if seconds is not None and seconds <= 0:
                    self._writing = next(path for path in self._paths if path in self._waiting)
                    self._waiting.remove(self._writing)
                    return self._writing
                self._changed.wait(seconds)
            return None

    def _seconds_left(self) -> float | None:
        """Until all that waits may be written; None if nothing does."""
        if not self._waiting:
            return None
        after = self._spent + sum(self._took[path] for path in self._waiting)
        return 0.0 if self._hurry else self._entered + after / self._share - time.monotonic()


def _copy(content: Any, before: Any) -> Any:
    """`content` with its tensors copied to the CPU: into those of an earlier copy where they are
    alike."""
    if isinstance(content, Tensor):
        if not isinstance(before, Tensor) or (before.shape, before.dtype) != (
            content.shape,
            content.dtype,
        ):
            # Not pinned: torch rounds pinned blocks up to powers of two, 1.7 times the memory here.
            before = torch.empty_like(content, device="cpu", requires_grad=False)
        return before.copy_(content.detach())
    if isinstance(content, dict):
        known = before if isinstance(before, dict) else {}
        return {name: _copy(value, known.get(name)) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        known = before if isinstance(before, (list, tuple)) else ()
        return type(content)(
            _copy(value, old) for value, old in zip(content, chain(known, repeat(None)))
        )
    return content
