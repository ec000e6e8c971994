"""Files that are written whole or not at all, and locks on folders.

Source of the lock: the `filelock` package, which uses what the system offers (flock, or msvcrt on
Windows).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from gpt2_nb_utils.wording import duration_in_words

WINDOWS = os.name == "nt"
LOCK, LOCK_OF_RUN = ".lock", ".run.lock"
MOST_BYTES = 2**30
"""The largest record of a run that is read: a million steps leave less than half of it."""


@contextlib.contextmanager
def written_beside(path: Path, mode: int = 0o644, durable: bool = False) -> Iterator[BinaryIO]:
    """A file beside `path` to write into, which takes that name at the end, or goes where anything
    failed.

    No reader ever meets half a file, and a kill at any moment leaves the previous one whole.

    Args:
        durable: the content is on the disk before it has the name, so that a power cut does no harm
            either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if durable:
                flush_to_disk(file)
        with contextlib.suppress(OSError):  # FAT and some mounts of WSL know no modes
            os.chmod(beside, mode)
        move(beside, path)
        if durable:
            _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not the passing name
        raise


def move(source: str | Path, target: str | Path) -> None:
    """As `os.replace`, which fails on Windows while a virus scanner, say, has one of the two open:
    then it is tried for 2 s."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def write_atomically(
    path: Path, content: str | bytes, mode: int = 0o644, durable: bool = False
) -> None:
    """Write text (as UTF-8) or bytes beside `path` and rename it; the arguments are those of
    `written_beside`."""
    with written_beside(path, mode, durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def read_regular(path: Path, limit: int = MOST_BYTES) -> bytes:
    """The content of a regular file, also through a link; a run directory may come from anybody.

    Args:
        limit: bytes up to which a file is read.

    Raises:
        OSError: it is not there, is larger, or is a pipe, a device or a folder: those may never
            end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return path.read_bytes()


def identity(path: Path) -> tuple[int, ...] | None:
    """Which file a name stands for, and in which state: device, inode, size and time; None for no
    file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def lock_owner(lock: str) -> str:
    """What a lock file says about the process that holds it, and when it may be deleted.

    Empty where the system holds the lock and releases it with the process. Where it cannot (on some
    network drives), `filelock` writes process and machine into the file, which outlives both.
    """
    with contextlib.suppress(OSError, ValueError):
        process, machine, *_ = read_regular(Path(lock), 1024).decode("utf-8").splitlines()
        age = duration_in_words(time.time() - os.path.getmtime(lock))
        return (
            f" (process {process} on machine {machine}, for {age}; if it is no longer running, "
            f"delete {lock})"
        )
    return ""


def flush_to_disk(file: BinaryIO) -> None:
    """Ask the system to bring a file onto the disk; a full disk says so here."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # those that cannot
            raise


def _flush_folder(folder: Path) -> None:
    """See that a new name in a folder outlives a power cut, where the system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Claim:
    """A hold on a run directory, which keeps other processes out of it.

    Args:
        folder: the run directory.
        name: its lock file: one for the training, another for the whole of a `run` around it.
        patience: seconds to wait, such as for the kernel of a killed `run`, which notices that and
            ends.

    Raises:
        filelock.Timeout: another process holds it.
    """

    def __init__(self, folder: Path, name: str = LOCK, patience: float = 2.0):
        self._lock = filelock.FileLock(folder / name, timeout=patience)
        self._lock.acquire()
        self._file = self._identity()

    def _identity(self) -> tuple[int, ...] | None:
        # Not size and time: whoever tries the lock opens the file for writing.
        found = identity(Path(self._lock.lock_file))
        return found and found[:2]

    @property
    def is_lost(self) -> bool:
        """Whether the folder was removed meanwhile, or another one has taken its place."""
        return self._identity() != self._file

    def release(self) -> None:
        """Let others in."""
        self._lock.release()
