"""Files that are written whole or not at all, and locks on folders.

Source of the lock: the `filelock` package, which uses what the system offers (flock, or msvcrt on Windows).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

LOCK, LOCK_OF_RUN = ".lock", ".run.lock"
_LENT = "GPT2_NB_UTILS_LENT"
"""Environment variable with the run directory that a process may claim although the command `run`, which started it, holds it."""
_DYING = 2.0
"""Seconds in which the kernel of a `run` that was killed notices that and ends."""


@contextlib.contextmanager
def written_beside(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file beside `path` to write into, which takes that name at the end, or goes where anything failed.

    No reader ever meets half a file, and a kill at any moment leaves the previous one whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not the passing name
        raise


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write text (as UTF-8) or bytes beside `path` and rename it."""
    with written_beside(path, mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


class Claim:
    """A hold on a run directory, which keeps other processes out of it.

    Args:
        folder: the run directory.

    Raises:
        filelock.Timeout: another process holds it.
    """

    def __init__(self, folder: Path):
        self._folder = str(folder.resolve())
        self._lock = filelock.FileLock(folder / LOCK, timeout=_DYING)
        self._of_run = filelock.FileLock(folder / LOCK_OF_RUN, timeout=0)
        self._lock.acquire()
        try:
            if os.environ.get(_LENT) != self._folder:
                self._of_run.acquire()
                self._of_run.release()
        except BaseException:
            self._lock.release()
            raise
        self._file = self._seen()

    def _seen(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._lock.lock_file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def is_lost(self) -> bool:
        """Whether the folder was removed meanwhile, or another one has taken its place."""
        return self._seen() != self._file

    @property
    def is_taken(self) -> bool:
        """Whether it was removed, and another process has claimed the one in its place."""
        return self._seen() not in (self._file, None)

    def lend(self) -> None:
        """Let the processes that this one starts from now on claim the directory, one at a time, and nobody else."""
        self._of_run.acquire()
        os.environ[_LENT] = self._folder
        self._lock.release()

    def release(self) -> None:
        """Let others in."""
        if self._of_run.is_locked:
            os.environ.pop(_LENT, None)
        self._of_run.release()
        self._lock.release()
