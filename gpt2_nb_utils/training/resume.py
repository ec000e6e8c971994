"""Going on with a run: from which checkpoint, with which settings, and whether that can work at all.

Everything is checked before anything is written, so that a resume that cannot work leaves the run as it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import Unreadable, is_whole, model_from, read_checkpoint
from gpt2_nb_utils.training.optimizer import fits
from gpt2_nb_utils.training.samples_file import read_samples
from gpt2_nb_utils.training.state import State

KEPT = (
    "preset",
    "max_tokens",
    "seed",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "batch_size",
    "seq_len",
    "grad_accum",
    "randomize_batches",
    "optimizer",
    "amp",
)
"""Settings that a resumed run cannot change: its weights, its optimizer or its place in the data depend on them."""


@dataclass(frozen=True)
class Found:
    """The checkpoint from which a run goes on.

    Attributes:
        path: its file.
        content: what is in it.
        seen: which file it was when it was read (device, inode, size, time).
        passed_over: why it is the one before last.pt, in a line; empty for last.pt itself or a file that was named.
    """

    path: Path
    content: dict[str, Any]
    seen: tuple[int, ...]
    passed_over: str = ""

    @property
    def has_changed(self) -> bool:
        """Whether another process has written or removed the file since it was read."""
        return _seen(self.path) != self.seen


def model_sizes(config: RunConfig) -> GPT2Config:
    """The sizes of the network that a config asks for."""
    return GPT2Config(
        block_size=config.block_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
    )


def resumed_config(config: RunConfig) -> RunConfig:
    """The settings with which a run will really train: those of the run it goes on with, where there is one.

    With the path of a checkpoint and no `out_dir`, the run goes on in the directory that the checkpoint lies in.

    Raises:
        UserError: a setting was given that a resumed run cannot change, or the checkpoint cannot be read.
    """
    directory = RunDirectory(config.out_dir)
    if config.overwrite and config.resume not in ("", "auto"):
        raise UserError(
            f"--resume {config.resume} goes on with a run and --overwrite throws one away: leave out one of the two"
        )
    if not config.resume or config.overwrite:
        return config
    if config.resume == "auto":
        if not directory.holds_run:
            return config
        saved = directory.read_config()
    else:
        saved = read_checkpoint(config.resume).get("config")
        if not isinstance(saved, dict):
            raise UserError(
                f"{config.resume} holds no settings of a run: name a last.pt that this program wrote"
            )
        own = _run_of(config.resume)
        if "out_dir" not in config.given and own is not None:
            directory = own
    for name, value in config.given.items():
        if name in KEPT and name in saved and value != saved[name]:
            raise UserError(
                f"{name} {value} differs from {saved[name]}, with which the run in {directory} was started: leave it "
                f"out to go on with that run, or start a new one in another --out_dir"
            )
    return RunConfig.resolve({**config.given, "out_dir": str(directory)}, saved=saved)


def checkpoint_to_resume(config: RunConfig) -> Found | None:
    """The checkpoint from which a run goes on; None for a run that starts from random weights.

    With `resume` auto that is last.pt or, where last.pt is damaged, foreign or gone, the one before it.

    Args:
        config: from `resumed_config`.

    Raises:
        UserError: there is no checkpoint that can be read, it does not hold what this run needs, or its logs are damaged.
    """
    directory = RunDirectory(config.out_dir)
    if not config.resume or config.overwrite:
        return None
    if config.resume == "auto":
        if not directory.last.exists() and not directory.previous.exists():
            _refuse_if_checkpoints_are_gone(directory)
            return None
        found = _latest(directory)
    else:
        found = _read(Path(config.resume))
    _refuse_what_does_not_fit(found, config)
    if directory.samples.exists():
        read_samples(directory.samples)  # raises if it cannot be gone on with
    return found


def best_so_far(directory: RunDirectory) -> tuple[State, str]:
    """The state that best.pt was saved with, and a line about why it does not count, where it does not.

    It may be younger than last.pt, where the run was killed between the two. Where it is gone, or left behind in another
    directory, the next one is the best here.
    """
    if not directory.best.exists():
        return State(), ""
    try:
        return State.restored(read_checkpoint(directory.best)["state"]), ""
    except Unreadable as error:
        reason = error.reason
    except (KeyError, TypeError, ValueError):
        reason = f"{directory.best} holds no state of a run"
    return (
        State(),
        f"{reason}: the best model so far is lost, and the next one that is measured takes its place",
    )


def _latest(directory: RunDirectory) -> Found:
    """last.pt, or the one before it."""
    reasons: list[str] = []
    for path in (directory.last, directory.previous):
        if not path.exists():
            reasons.append(f"{path.name if reasons else path} is missing")
            continue
        try:
            return replace(_read(path), passed_over=reasons[0] if reasons else "")
        except Unreadable as error:
            reasons.append(error.reason)
    whole = (
        "; best.pt is whole, for `sample` and `verify`, but holds weights only"
        if is_whole(directory.best)
        else ""
    )
    raise UserError(
        f"{' and '.join(reasons)}, so there is nothing to go on from: put back a copy, name another --out_dir, or throw "
        f"the run away (--overwrite){whole}"
    )


def _read(path: Path) -> Found:
    seen = _seen(path)  # before reading: what comes between is noticed
    return Found(path, read_checkpoint(path), seen)


def _seen(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_what_does_not_fit(found: Found, config: RunConfig) -> None:
    path, content = found.path, found.content
    if not {"optimizer", "scaler", "random_states", "state"} <= content.keys():
        raise UserError(
            f"{path} holds weights only (best.pt is for grading), not the optimizer and the place in the data: name "
            f"a last.pt"
        )
    try:
        step = State.restored(content["state"]).step
        random_state = content["random_states"]["cpu"]
        if random_state.dtype != torch.uint8 or random_state.shape != torch.get_rng_state().shape:
            raise ValueError("random_states")
        if not isinstance(content["corpus_sha256"], str):
            raise ValueError("corpus_sha256")
        fitting = fits(content["optimizer"], config)
        theirs, ours = dict(content["model_config"]), model_sizes(config).to_dict()
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{path} lacks what this program writes into a checkpoint: name one that it wrote"
        ) from None
    if theirs != ours:
        differing = ", ".join(
            f"{name} {theirs.get(name)!r}" for name in ours if theirs.get(name) != ours[name]
        )
        raise UserError(
            f"{path} holds a model of another architecture ({differing}) than the run in {config.out_dir} "
            f"({', '.join(f'{name} {ours[name]}' for name in ours if theirs.get(name) != ours[name])}): put back the "
            f"checkpoint of that run, or start a new one in another --out_dir"
        )
    model_from(content)  # raises where the weights are not those of that architecture
    if not fitting:
        raise UserError(
            f"{path} was written by an older version of this program, whose optimizer was laid out otherwise: train "
            f"anew in another --out_dir, or throw the run away (--overwrite)"
        )
    if config.steps < step:
        raise UserError(
            f"steps {config.steps} is below step {step}, which the run has reached: raise steps"
        )


def is_own(config: RunConfig) -> bool:
    """Whether the checkpoint to go on from lies in the run directory itself."""
    return (
        config.resume == "auto"
        or (own := _run_of(config.resume)) is not None
        and own.path.samefile(config.out_dir)
    )


def _run_of(checkpoint: str) -> RunDirectory | None:
    folder = Path(checkpoint).parent
    directory = RunDirectory(folder.parent)
    return directory if folder.name == "checkpoints" and directory.holds_run else None


def _refuse_if_checkpoints_are_gone(directory: RunDirectory) -> None:
    if directory.summary.exists():
        summary = directory.read_summary()
        if summary.get("step") and summary.get("status") != "running":
            raise UserError(
                f"{directory.last} is missing, so the run of {summary['step']} steps cannot go on: restore it, name "
                f"another --out_dir, or throw the run away (--overwrite)"
            )
