"""Checkpoints: written beside and renamed, the one before kept, loaded without trusting them, and
saved in the background.

It knows when a file is whole and safe to load. Which file a run continues from, `open_run` decides.
"""

from __future__ import annotations

import errno
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gpt2_nb_utils.errors import FULL, NotWritten, UserError
from gpt2_nb_utils.files import move, written_beside
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.training.events import FORMAT
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory

_ZIP = b"PK\x03\x04"


class Unreadable(UserError):
    """A file that is not, or no longer, a checkpoint of this program; where there is an earlier
    one, a run can continue from that.

    Args:
        reason: which file, and what is wrong with it.
        fix: what to do.
    """

    def __init__(self, reason: str, fix: str = "name one that this program wrote"):
        super().__init__(f"{reason}: {fix}")
        self.reason = reason


def save_checkpoint(
    path: Path,
    content: dict[str, Any],
    abandoned: Callable[[], bool] = lambda: False,
    previous: Path | None = None,
) -> None:
    """Write a checkpoint so that a kill at any moment leaves the one before whole.

    Args:
        content: tensors, and plain dicts, lists, numbers and strings (what `weights_only=True`
            loads again).
        abandoned: asked before each piece; once it says True, writing ends with an error.
        previous: where the checkpoint goes that `path` held before, in the same folder. On a full
            disk it makes room.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        try:
            _write(path, content, abandoned, previous)
        except OSError as error:
            if error.errno not in FULL or previous is None or not previous.exists():
                raise
            previous.unlink()  # `path` itself is whole until the new one is
            _write(path, content, abandoned, previous)
    except OSError as error:
        raise NotWritten(path, error, kept="the previous checkpoint is whole") from error


def _write(
    path: Path, content: dict[str, Any], abandoned: Callable[[], bool], previous: Path | None
) -> None:
    stream = None
    try:
        with written_beside(path, durable=True) as file:
            stream = _Stream(file, abandoned)
            torch.save({"format": FORMAT, **content}, stream)
            if previous is not None and path.exists():
                previous.unlink(missing_ok=True)
                try:
                    os.link(path, previous)
                except OSError:  # a file system without links: for a moment it has that name only
                    move(path, previous)
    except RuntimeError as error:
        raise (stream and stream.error) or error


class _Stream:
    """A file as torch writes to it. torch hides why a write failed (`unexpected pos 46 vs 0`), so
    that is kept here."""

    def __init__(self, file: BinaryIO, abandoned: Callable[[], bool]):
        self._file, self._abandoned = file, abandoned
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self._abandoned():
                raise InterruptedError(errno.EINTR, "abandoned")
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint. Nothing in the file is executed (`weights_only=True`).

    Raises:
        Unreadable: it is damaged, or it is not ours.
        UserError: there is none, it may not be read, or it is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; a run writes one to <out_dir>/checkpoints/last.pt every "
            f"save_every steps"
        )
    if damage := _damage(path):
        fix = "name another one, or start again with --overwrite"
        raise Unreadable(f"{path} is damaged ({damage})", fix)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise Unreadable(
            f"{path} is not a checkpoint of this program (it holds more than tensors and plain "
            f"values, which could run code when loaded)"
        ) from None
    except Exception as error:  # of many kinds, by what a foreign file holds
        if is_out_of_memory(error):
            raise
        raise _foreign(path) from None
    if not (
        isinstance(content, dict)
        and isinstance(content.get("format"), int)
        and isinstance(content.get("model"), dict)
        and content["format"] >= 1
    ):
        raise _foreign(path)
    if content["format"] > FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, newer than format {FORMAT}, which this "
            f"program reads: use the version that wrote it, or a newer one"
        )
    return content


def saved_step(path: Path) -> int:
    """The step of a checkpoint, found without reading its tensors; 0 where none can be read."""
    try:
        return torch.load(path, mmap=True, weights_only=True)["state"]["step"]
    except Exception:  # of many kinds, by what is wrong with the file
        return 0


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and as it was written, bit for bit."""
    try:
        return path.is_file() and _damage(path) is None
    except UserError:
        return False


def _foreign(path: Path) -> Unreadable:
    return Unreadable(f"{path} is not a checkpoint of this program")


def _damage(path: Path) -> str | None:
    """What is wrong with a file that was a checkpoint once; None where nothing is.

    A checkpoint is a zip archive of uncompressed files with their checksums. torch writes those,
    but does not look at them: it would load weights of which bits have changed.

    Raises:
        Unreadable: it never was one.
        UserError: it may not be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(len(_ZIP))
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check its permissions, or name another one"
        ) from None
    if not first.strip(b"\0"):
        return f"{size:,} bytes, with nothing at their start" if size else "empty"
    if first != _ZIP[: len(first)]:
        raise _foreign(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # Compressed, small files could become large ones.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            changed = stored and archive.testzip()
    except Exception as error:  # of many kinds, by what the damage hit
        if "not a zip file" in str(error):
            return "cut short"
        return "its parts are not where they should be"
    if not stored:
        raise _foreign(path)
    return None if changed is None else "its checksums do not match its content"


def model_from(content: dict[str, Any], device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint's content, in eval mode.

    Raises:
        UserError: the weights do not fit the sizes that the checkpoint states.
    """
    try:
        with torch.device("meta"):  # the weights come from the checkpoint: draw none
            model = GPT2(GPT2Config(**content["model_config"]))
        # A plain dict: torch notes `assign` in what a state dict carries along, and whoever loads
        # that later would assign too.
        model.load_state_dict(dict(content["model"]), assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint's weights do not fit its model sizes ({str(error).splitlines()[0]}): "
            f"name a checkpoint that this program wrote"
        ) from None
    return model.to(device).eval()


def load_model(path: str | Path, device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint file, in eval mode."""
    return model_from(read_checkpoint(path, device), device)


SHARE = 0.03
"""Share of a run's time in which checkpoints may be written, but for the first of each file and
those at the end. Copies come on top."""


class Saver:
    """A context in which checkpoints are written in the background, no more often than a share of
    its time allows: training waits for a copy in memory only.

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
        previous: Mapping[Path, Path] | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ):
        self._paths, self._share = tuple(paths), share
        self._previous, self._wanted = previous or {}, wanted
        self._copies: dict[Path, Any] = {}
        self._waiting: set[Path] = set()
        self._writes: dict[Path, Future] = {}  # the last one of each file
        self._took = dict.fromkeys(paths, 0.0)  # seconds, for the last write of each file
        self._spent = 0.0  # seconds, for all writes
        self._failure: BaseException | None = None
        self._abandoned = False
        self._thread = ThreadPoolExecutor(1, "checkpoints")

    def __enter__(self) -> Saver:
        self._entered = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                self.flush()
        except UserError:
            if kind is None:
                raise  # otherwise what went wrong first says more
        finally:
            self._abandoned = True  # what is still being written, after Ctrl-C
            self._thread.shutdown(cancel_futures=True)

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
        before = self._writes.get(path)
        if before is not None and not before.cancel():
            wait([before])  # its copy is being read
        self._waiting.discard(path)
        self.check()
        try:
            self._copies[path] = _copy(content, self._copies.pop(path, None))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._copies[path] = content
        self._waiting.add(path)
        if self._copies[path] is content:  # no room for a copy: training waits for the file instead
            self.flush()
            del self._copies[path]
        else:
            self._begin(now)

    def check(self) -> None:
        """Begin to write what has become due, and raise what went wrong in the background.

        Raises:
            UserError: the disk is full, say.
        """
        if self._failure is not None:
            raise self._failure
        self._begin()

    def flush(self) -> None:
        """Write what waits, due or not, and return when it is on the disk."""
        self._begin(now=True)
        wait(self._writes.values())
        self.check()

    def _begin(self, now: bool = False) -> None:
        after = self._spent + sum(self._took[path] for path in self._waiting)
        due = time.monotonic() - self._entered >= after / self._share
        # While a write is under way, how much of its share it takes is not known yet.
        if now or (due and all(write.done() for write in self._writes.values())):
            for path in self._paths:
                if path in self._waiting:
                    self._writes[path] = self._thread.submit(self._write, path)
            self._waiting.clear()

    def _write(self, path: Path) -> None:
        if self._failure is not None or not self._wanted():
            return  # what builds on a file that failed must not be written
        begun = time.monotonic()
        try:
            save_checkpoint(
                path,
                self._copies[path],
                abandoned=lambda: self._abandoned,
                previous=self._previous.get(path),
            )
        except BaseException as error:
            self._failure = error
        self._took[path] = time.monotonic() - begun
        self._spent += self._took[path]


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
