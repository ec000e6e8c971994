"""Checkpoints: written beside and renamed, loaded without trusting them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable

import torch

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.run_directory import written_beside

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any], abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write a checkpoint so that a kill at any moment leaves the previous one whole.

    Args:
        content: tensors, and plain dicts, lists, numbers and strings (what `weights_only=True` loads again).
        abandoned: asked before each piece; once it says True, writing ends with an error.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    stream = None
    try:
        with written_beside(path) as file:
            stream = _Stream(file, abandoned)
            torch.save({"format": FORMAT, **content}, stream)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        reason = str(stream and stream.error or error).partition("\n")[0]
        raise UserError(f"{path} cannot be written ({reason}): free disk space or choose another "
                        f"--out_dir; the previous checkpoint is whole") from error


class _Stream:
    """A file as torch writes to it. torch hides why a write failed (`unexpected pos 46 vs 0`), so that is kept here."""

    def __init__(self, file: BinaryIO, abandoned: Callable[[], bool]):
        self._file, self._abandoned = file, abandoned
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self._abandoned():
                raise InterruptedError("abandoned")
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint. Nothing in the file is executed (`weights_only=True`).

    Raises:
        UserError: there is none, it is damaged, it is not ours, or it is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; a run writes one to <out_dir>/checkpoints/last.pt every save_every steps")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is not a checkpoint of this program (its content is not plain tensors): name one that "
                        f"it wrote") from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError):
        raise UserError(f"{path} is damaged or no checkpoint: name another one, or start anew with --overwrite") from None
    if not isinstance(content, dict) or "format" not in content or "model" not in content:
        raise UserError(f"{path} is not a checkpoint of this program: name one that it wrote")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}, this program reads format {FORMAT}: use the version "
                        f"that wrote it")
    return content


def model_from(content: dict[str, Any], device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint's content, in eval mode.

    Raises:
        UserError: the weights do not fit the sizes that the checkpoint states.
    """
    try:
        with torch.device("meta"):  # the weights come from the checkpoint: draw none
            model = GPT2(GPT2Config(**content["model_config"]))
        model.load_state_dict(content["model"], assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"the checkpoint's weights do not fit its model sizes ({str(error).splitlines()[0]}): name a "
                        f"checkpoint that this program wrote") from None
    return model.to(device).eval()


def load_model(path: str | Path, device: torch.device | str = "cpu") -> GPT2:
    """The model of a checkpoint file, in eval mode."""
    return model_from(read_checkpoint(path, device), device)
