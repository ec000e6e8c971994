"""Checkpoints: written beside and renamed, loaded without trusting them."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the previous one whole.

    Args:
        content: tensors, and plain dicts, lists, numbers and strings (what `weights_only=True` loads again).

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise UserError(f"{path} cannot be written ({str(error).splitlines()[0]}): free disk space or choose another "
                        f"--out_dir; the previous checkpoint is whole") from error
    finally:
        if beside is not None and os.path.exists(beside):
            os.unlink(beside)


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
