"""Checkpoints: written beside and renamed, the one before kept, and loaded without trusting them.

It knows when a file is whole and safe to load. It deliberately does not know which file a run goes on from (`resume` does).
"""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gpt2_nb_utils.errors import FULL, NotWritten, UserError
from gpt2_nb_utils.files import written_beside
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.training.events import FORMAT
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory

_ZIP = b"PK\x03\x04"


class Unreadable(UserError):
    """A file that is not, or no longer, a checkpoint of this program; where there is an earlier one, a run can go on from that.

    Args:
        reason: which file, and what is wrong with it.
        mend: what to do.
    """

    def __init__(self, reason: str, mend: str = "name one that this program wrote"):
        super().__init__(f"{reason}: {mend}")
        self.reason = reason


def save_checkpoint(
    path: Path,
    content: dict[str, Any],
    abandoned: Callable[[], bool] = lambda: False,
    previous: Path | None = None,
) -> None:
    """Write a checkpoint so that a kill at any moment leaves the one before whole.

    Args:
        content: tensors, and plain dicts, lists, numbers and strings (what `weights_only=True` loads again).
        abandoned: asked before each piece; once it says True, writing ends with an error.
        previous: where the checkpoint goes that `path` held before, in the same folder. On a full disk it makes room.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        _write(path, content, abandoned, previous)
    except OSError as error:
        if error.errno not in FULL or previous is None or not previous.exists():
            raise _not_written(path, error) from error
        previous.unlink()  # `path` itself is whole until the new one is
        try:
            _write(path, content, abandoned, previous)
        except OSError as error:
            raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> UserError:
    return NotWritten(path, error, kept="the previous checkpoint is whole")


def _write(
    path: Path, content: dict[str, Any], abandoned: Callable[[], bool], previous: Path | None
) -> None:
    stream = None
    try:
        with written_beside(path, durable=True) as file:
            stream = _Stream(file, abandoned)
            torch.save({"format": FORMAT, **content}, stream)
            if previous is not None and path.exists():
                _keep_as(previous, path)
    except RuntimeError as error:
        raise (stream and stream.error) or error


def _keep_as(name: Path, path: Path) -> None:
    """Give a file that will be replaced next another name, in the same folder, under which it stays."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # a file system without links: for a moment it has the other name only
        os.replace(path, name)


class _Stream:
    """A file as torch writes to it. torch hides why a write failed (`unexpected pos 46 vs 0`), so that is kept here."""

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
            f"{path}: no such checkpoint; a run writes one to <out_dir>/checkpoints/last.pt every save_every steps"
        )
    damage = _damage(path)
    if damage:
        raise Unreadable(
            f"{path} is damaged ({damage})", "name another one, or start anew with --overwrite"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise Unreadable(
            f"{path} is not a checkpoint of this program (it holds more than tensors and plain values, which "
            f"could run code when loaded)"
        ) from None
    except (
        MemoryError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        if is_out_of_memory(error):
            raise
        content = None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("format"), int)
        or not isinstance(content.get("model"), dict)
    ):
        raise _foreign(path)
    if content["format"] > FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, newer than format {FORMAT}, which this program reads: use the "
            f"version that wrote it, or a newer one"
        )
    if content["format"] < 1:
        raise _foreign(path)
    return content


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

    A checkpoint is a zip archive of uncompressed files with their checksums. torch writes those, but does not look at them: it
    would load weights of which bits have changed.

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
            f"{path} cannot be read ({error.strerror}): see to its permissions, or name another one"
        ) from None
    if not first.strip(b"\0"):
        return f"{size:,} bytes, which begin with nothing" if size else "empty"
    if first != _ZIP[: len(first)]:
        raise _foreign(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise _foreign(path)  # and small files could become large ones
            changed = archive.testzip()
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        return (
            "cut short"
            if "not a zip file" in str(error)
            else "its parts are not where they should be"
        )
    return None if changed is None else "its checksums do not match its content"


def model_from(content: dict[str, Any], device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint's content, in eval mode.

    Raises:
        UserError: the weights do not fit the sizes that the checkpoint states.
    """
    try:
        with torch.device("meta"):  # the weights come from the checkpoint: draw none
            model = GPT2(GPT2Config(**content["model_config"]))
        # A plain dict: torch notes `assign` in what a state dict carries along, and whoever loads that later would assign too.
        model.load_state_dict(dict(content["model"]), assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint's weights do not fit its model sizes ({str(error).splitlines()[0]}): name a "
            f"checkpoint that this program wrote"
        ) from None
    return model.to(device).eval()


def load_model(path: str | Path, device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint file, in eval mode."""
    return model_from(read_checkpoint(path, device), device)
