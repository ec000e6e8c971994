"""Before the first step: resolve what is resumed, claim the run directory, read the corpus, write what is known."""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import Claim, written_beside
from gpt2_nb_utils.machine import command_line, environment
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.tokenization.corpus import Corpus, load_corpus
from gpt2_nb_utils.tokenization.token_cache import read_tokens, write_tokens
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training.checkpoints import keep_as
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.processes import ALONE, Processes
from gpt2_nb_utils.training.resume import (
    Found,
    best_so_far,
    checkpoint_to_resume,
    is_own,
    model_sizes,
    resumed_config,
)
from gpt2_nb_utils.training.run_log import append_line
from gpt2_nb_utils.training.state import State


@dataclass
class Run:
    """A run that is ready to train.

    Attributes:
        config: complete settings (those of the resumed run, where one is resumed).
        directory: its run directory, claimed.
        corpus: the text.
        windows: its tokens, in windows of `seq_len`.
        precision: device and number format.
        checkpoint: what it goes on from, or None; drop it once restored, for it is as large as the whole run.
        summary: what `summary.json` says now.
        lock: keeps other processes out of the directory until it is released; None in those that rank 0 writes for.
        resumed: whether it goes on from a checkpoint.
        processes: those that train it together.
        best: the state that best.pt was saved with, as far as there is one.
    """

    config: RunConfig
    directory: RunDirectory
    corpus: Corpus
    windows: Windows
    precision: Precision
    checkpoint: dict[str, Any] | None
    summary: dict[str, Any]
    lock: Claim | None
    resumed: bool
    processes: Processes = ALONE
    best: State = field(default_factory=State)

    @property
    def training_text(self) -> str:
        """The text that the model sees: the corpus, or the excerpt of it."""
        return decode(self.windows.tokens.numpy()) if self.config.max_tokens else self.corpus.text

    @property
    def model_config(self) -> GPT2Config:
        """Sizes of the network."""
        return model_sizes(self.config)

    def write_summary(self, status: str, state: State) -> dict[str, Any]:
        """Bring `summary.json` up to date and return its content."""
        config = self.config
        self.summary.update(
            status=status,
            step=state.step,
            epoch=state.tokens_seen / self.windows.n_targets,
            tokens_seen=state.tokens_seen,
            seconds=round(state.seconds, 3),
            wall_seconds=round(state.wall_seconds, 3),
            tok_per_s=round(state.tokens_seen / state.seconds, 1) if state.seconds else None,
            loss=_finite(state.loss),
            best_batch_loss=state.best_batch_loss,
            best_batch_step=state.best_batch_step,
            train_loss=_finite(state.train_loss),
            train_loss_windows=state.train_loss_windows,
            train_loss_step=state.train_loss_step,
            best_train_loss=state.best_train_loss,
            best_train_loss_windows=state.best_train_loss_windows,
            best_train_loss_step=state.best_train_loss_step,
            target_loss=config.target_loss,
            target_reached=state.reached(config.target_loss),
        )
        self.directory.write_json(self.directory.summary, self.summary)
        return self.summary


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON knows no NaN


def start_run(config: RunConfig, processes: Processes = ALONE) -> Run:
    """Check everything that can be checked, then claim the run directory and write what is known.

    Args:
        processes: those that will train it together; all check, and the first one writes.

    Raises:
        UserError: the corpus, the checkpoint, the device or the directory is not fit; nothing was written then.
    """
    config = resumed_config(config)
    processes.refuse_uneven(config.batch_size)
    directory = RunDirectory(config.out_dir)
    found = checkpoint_to_resume(config)
    checkpoint = found and found.content
    precision = Precision.of(config, processes)
    refuse_what_cannot_fit(
        config,
        parameter_count(model_sizes(config)),
        precision.device,
        processes.count,
        processes.local_count,
    )
    corpus = load_corpus(config.input_file)
    cached = read_tokens(directory.tokens, corpus)
    all_ids = encode(corpus.text) if cached is None else cached
    ids = torch.from_numpy(all_ids)
    n_all = len(ids)
    if config.max_tokens >= n_all:
        config = config.model_copy(
            update={"max_tokens": 0}
        )  # an excerpt of everything is no excerpt
    if config.max_tokens:
        ids = ids[: config.max_tokens]
    windows = Windows(ids, config.seq_len)
    if checkpoint is not None and checkpoint["corpus_sha256"] != corpus.sha256:
        raise UserError(
            f"the checkpoint was trained on another text (sha256 {checkpoint['corpus_sha256'][:12]}…) than "
            f"{corpus.path} ({corpus.sha256[:12]}…): name that text (--input_file) or start a new run (--out_dir)"
        )
    if (
        config.overwrite
        and corpus.source == "input_file"
        and Path(corpus.path).resolve().is_relative_to(directory.path.resolve())
    ):
        raise UserError(
            f"input_file {corpus.path} lies in out_dir {directory}, which --overwrite throws away: move the text elsewhere"
        )
    own = bool(config.resume) and directory.path.exists() and is_own(config)
    processes.check(
        seen=(corpus.sha256, checkpoint and checkpoint["state"]["step"])
    )  # all have read: now the first one writes
    # From here on the checkpoint is this directory's own; and where there was none, the record says so.
    config = config.model_copy(update={"resume": "auto" if found else ""})
    run = Run(
        config,
        directory,
        corpus,
        windows,
        precision,
        checkpoint,
        {},
        None,
        found is not None,
        processes,
    )
    if found is not None:
        run.best, note = best_so_far(directory)
    if processes.first:
        run.lock = directory.claim(own, config.overwrite)
        try:
            if own and (directory.last.exists() if found is None else found.has_changed):
                raise UserError(
                    f"another process has just trained in {directory}: see how far it came, and start again"
                )
            if not directory.tokens.exists() or cached is None:  # --overwrite threw it away
                write_tokens(directory.tokens, all_ids)
            directory.write_json(directory.config, config.model_dump())
            directory.write_json(directory.environment, _environment(run))
            if found is not None:
                _put_in_place(found, directory, note)
            elif (
                directory.best.exists()
            ):  # of a run that ended before its first last.pt: this one's must not be taken for it
                os.replace(directory.best, directory.set_aside)
                print(
                    f"{directory.last} is missing: the run begins anew, and its best model is kept as {directory.set_aside.name}",
                    file=sys.stderr,
                )
            run.summary = _first_summary(run, is_whole=len(ids) == n_all)
            run.write_summary("running", State(**checkpoint["state"]) if checkpoint else State())
        except BaseException as error:
            run.lock.release()
            if isinstance(error, OSError):
                raise NotWritten(error.filename or directory, error) from error
            raise
    else:
        run.summary = _first_summary(run, is_whole=len(ids) == n_all)
    return run


def _put_in_place(found: Found, directory: RunDirectory, note: str) -> None:
    """Let last.pt be the checkpoint to go on from, and say so where it was another; what had that name is set aside."""
    last, step = directory.last, found.content["state"]["step"]
    notes = [note] if note else []
    if not last.exists() or not found.path.samefile(last):
        last.parent.mkdir(exist_ok=True)
        # Not under its name yet: it may be the set-aside file itself that the run goes on from.
        aside = directory.set_aside.with_name(f".{directory.set_aside.name}.new")
        if last.exists():
            keep_as(aside, last)
        if found.passed_over:
            if aside.exists():
                os.replace(aside, directory.set_aside)
            os.replace(found.path, last)
            kept = (
                f"; what was there is kept as {directory.set_aside.name}"
                if directory.set_aside.exists()
                else ""
            )
            notes.append(
                f"{found.passed_over}: going on from the checkpoint before it, of step {step}{kept}"
            )
        else:
            with written_beside(last) as file, found.path.open("rb") as named:
                shutil.copyfileobj(named, file)
                file.flush()
                os.fsync(file.fileno())
            if aside.exists():
                os.replace(aside, directory.set_aside)
    for line in notes:
        print(line, file=sys.stderr)
        directory.log.parent.mkdir(exist_ok=True)
        append_line(directory.log, line)


def _first_summary(run: Run, is_whole: bool) -> dict[str, Any]:
    """What does not change while the run goes on.

    Args:
        is_whole: its tokens are those of the whole corpus.
    """
    config, corpus, processes = run.config, run.corpus, run.processes
    previous = (
        run.directory.read_summary() if processes.first and run.directory.summary.exists() else {}
    )
    return {
        "preset": config.preset,
        "command": previous.get("command") or command_line(),
        "resumed_with": _resumed_with(previous, run.checkpoint),
        "seed": config.seed,
        "device": run.precision.device_name
        + (f", {processes.count} processes" if processes.count > 1 else ""),
        "processes": processes.count,
        "amp": run.precision.amp,
        "torch": torch.__version__,
        "n_params": parameter_count(model_sizes(config)),
        "config": config.model_dump(),
        "corpus": {
            "source": corpus.source,
            "path": corpus.path,
            "sha256": corpus.sha256,
            "chars": corpus.chars,
            "tokens": len(run.windows.tokens),
            "is_course_input": corpus.is_course_input and is_whole,
            **({"notes": list(corpus.notes)} if corpus.notes else {}),
        },
    }


def _resumed_with(
    previous: dict[str, Any], checkpoint: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The commands that went on with the run, each with the step from which it did."""
    commands = previous.get("resumed_with")
    commands = commands if isinstance(commands, list) else []
    if checkpoint is not None:
        this = {"step": checkpoint["state"]["step"], "command": command_line()}
        if this not in commands[-1:]:  # `run` and the notebook in it are one command
            return [*commands, this]
    return commands


def _environment(run: Run) -> dict[str, Any]:
    """What the run was started on; a resumed run adds what it went on with."""
    now = {**environment(), "processes": run.processes.count}
    if not run.resumed or not run.directory.environment.exists():
        return now
    first = run.directory.read_json(run.directory.environment)
    before = first.get("resumed")
    return {**first, "resumed": [*(before if isinstance(before, list) else []), now]}
