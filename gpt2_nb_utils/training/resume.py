"""Going on with a run: from which checkpoint, with which settings, and whether that can work at all.

Everything is checked before anything is written, so that a resume that cannot work leaves the run as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.optimizer import fits
from gpt2_nb_utils.training.samples_file import read_samples

KEPT = ("preset", "max_tokens", "seed", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "seq_len", "grad_accum",
        "randomize_batches", "optimizer", "amp")
"""Settings that a resumed run cannot change: its weights, its optimizer or its place in the data depend on them."""


def resumed_config(config: RunConfig) -> RunConfig:
    """The settings with which a run will really train: those of the run it goes on with, where there is one.

    With the path of a checkpoint and no `out_dir`, the run goes on in the directory that the checkpoint lies in.

    Raises:
        UserError: a setting was given that a resumed run cannot change, or the checkpoint cannot be read.
    """
    directory = RunDirectory(config.out_dir)
    if not config.resume or config.overwrite:
        return config
    if config.resume == "auto":
        if not directory.holds_run:
            return config
        saved = directory.read_config()
    else:
        saved = read_checkpoint(config.resume)["config"]
        own = _run_of(config.resume)
        if "out_dir" not in config.given and own is not None:
            directory = own
    for name, value in config.given.items():
        if name in KEPT and name in saved and value != saved[name]:
            raise UserError(f"{name} {value} differs from {saved[name]}, with which the run in {directory} was started: leave it "
                            f"out to go on with that run, or start a new one in another --out_dir")
    return RunConfig.resolve({**config.given, "out_dir": str(directory)}, saved=saved)


def checkpoint_to_resume(config: RunConfig) -> dict[str, Any] | None:
    """The content of the checkpoint from which a run goes on; None for a run that starts from random weights.

    Args:
        config: from `resumed_config`.

    Raises:
        UserError: the checkpoint is missing or does not hold what a resumed run needs, or its logs are damaged.
    """
    directory = RunDirectory(config.out_dir)
    if not config.resume or config.overwrite:
        return None
    if config.resume == "auto":
        if not directory.last.exists():
            _refuse_if_checkpoints_are_gone(directory)
            return None
        path = directory.last
    else:
        path = Path(config.resume)
    content = read_checkpoint(path)
    if not {"optimizer", "scaler", "random_states", "state"} <= content.keys():
        raise UserError(f"{path} holds weights only (best.pt is for grading), not the optimizer and the place in the data: name "
                        f"a last.pt")
    if not fits(content["optimizer"], config):
        raise UserError(f"{path} was written by an older version of this program, whose optimizer was laid out otherwise: train "
                        f"anew in another --out_dir, or throw the run away (--overwrite)")
    if config.steps < content["state"]["step"]:
        raise UserError(f"steps {config.steps} is below step {content['state']['step']}, which the run has reached: raise steps")
    if directory.samples.exists():
        read_samples(directory.samples)  # raises if it cannot be gone on with
    return content


def is_own(config: RunConfig) -> bool:
    """Whether the checkpoint to go on from lies in the run directory itself."""
    return config.resume == "auto" or (own := _run_of(config.resume)) is not None and own.path.samefile(config.out_dir)


def _run_of(checkpoint: str) -> RunDirectory | None:
    folder = Path(checkpoint).parent
    directory = RunDirectory(folder.parent)
    return directory if folder.name == "checkpoints" and directory.holds_run else None


def _refuse_if_checkpoints_are_gone(directory: RunDirectory) -> None:
    if directory.summary.exists():
        summary = directory.read_summary()
        if summary.get("step") and summary.get("status") != "running":
            raise UserError(f"{directory.last} is missing, so the run of {summary['step']} steps cannot go on: restore it, name "
                            f"another --out_dir, or throw the run away (--overwrite)")
