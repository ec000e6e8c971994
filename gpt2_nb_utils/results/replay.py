"""`verify RUN_DIR --replay N`: the first steps of a run, trained again from its seed, against the
losses on record.

It needs no checkpoint: the seed, the settings, the text and the recorded losses are enough. Nothing
is a stronger proof that a run began with random weights and was trained as it says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.machine import environment, sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.progress import Progress, duration
from gpt2_nb_utils.results.audit import CANNOT_BE_RIGHT, CannotCheck, Check, Replay, audited_state
from gpt2_nb_utils.results.audit_outputs import same_machine
from gpt2_nb_utils.results.audit_records import same
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    restore_optimizer,
    set_learning_rate,
)
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit, step_fits
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.step import Learner, micro_batches_of, training_step

BOUND = 0.2
"""Relative difference of a batch loss that another machine, format or version of this package may
make.

Rounding grows with the steps. Of the tiny preset, whose high rates make it grow fastest, one thread
and two differ by 3e-6 at step 40, fp32 and bf16 by 1.5e-4 at step 20 and 2e-2 at step 40. Weights
from elsewhere differ by half and more.
"""
ASKS = "training again from the seed gives the losses on record"


def replay(run_dir: str | Path, given: dict[str, Any], steps: int = 0) -> Replay:
    """Train the first steps of a run again, and hold every loss on record against what they give.

    It ends at the first loss that differs by more than the bound. Where machine, format and the
    sources of this package are those of the run, the digits must be the same; elsewhere `BOUND`
    holds.

    Args:
        run_dir: a run directory, with or without checkpoints.
        given: `device` and `amp`, where given by hand; the default is the fastest format of this
            machine.
        steps: how many; 0 means all that are on record.

    Raises:
        UserError: no run there, its text is not on this machine, or its steps do not fit in memory.
    """
    keep_large_blocks()
    run = read_record(run_dir, to_audit=True)
    resolved = {"device": "auto", "amp": "auto", **given}
    precision = Precision.of(RunConfig.resolve(resolved, saved=run.config.model_dump()))
    evidence = Evidence(run, precision)
    begun = time.monotonic()
    try:
        last = max(evidence.steps)
        n_steps = min(steps or last, last)
        every = evidence.settings.log_every if evidence.earlier else 1
        due = range(every, n_steps + 1, every)
        if gone := next((step for step in due if step not in evidence.steps), None):
            raise CannotCheck(f"the loss of step {gone:,} is not on record")
        bound = 0.0 if _is_alike(evidence, n_steps) else BOUND
        compared = 0
        largest, at_step, said = 0.0, 0, ""
        for what, step, again, recorded in _losses(evidence, n_steps):
            compared += 1
            difference = _difference(again, recorded)
            if not difference <= largest:
                largest, at_step = difference, step
                said = f"{what} of step {step}: {again:.7g} again, {recorded:.7g} on record"
            if not difference <= bound:
                break
    except CannotCheck as reason:
        raise UserError(f"{run.directory} cannot be replayed: {reason}") from None
    except CANNOT_BE_RIGHT as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{run.directory} cannot be replayed: a recorded value cannot be right "
            f"({type(error).__name__}: {error})"
        ) from None
    seconds = time.monotonic() - begun
    ok = largest <= bound
    how = f"in {duration(seconds)}, in {precision.amp} on {precision.device_name}"
    found = (
        f"{compared:,} losses of steps 1 to {n_steps:,}, "
        + (f"the largest difference {largest:.1e} ({said})" if said else "all to the last digit")
        if ok
        else said
    )
    expected = (
        "the digits on record: machine, format and sources are those of the run"
        if bound == 0
        else f"a relative difference of {bound:g} at most: machine, format or sources are others"
    )
    machine = {**environment(), "device": precision.device_name, "amp": precision.amp}
    return Replay(
        Check(ASKS, ok, f"{found}; {how}", expected),
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine,
        sources_sha256(),
        audited_state(run.summary),
        n_steps,
        compared,
        largest if math.isfinite(largest) else None,  # JSON knows no infinity
        at_step,
        bound,
        round(seconds, 1),
    )


def _losses(evidence: Evidence, n_steps: int) -> Iterator[tuple[str, int, float, float]]:
    """Train so many steps: of each loss on record (what, step, the loss now, the loss on
    record)."""
    settings, windows, precision = evidence.settings_at(1), evidence.windows, evidence.precision
    refuse_what_cannot_fit(settings, parameter_count(GPT2Config.of(settings)), precision.device)
    learner = Learner.of(settings, precision)
    progress = Progress(n_steps, "training again")

    def measured(step: int) -> Iterator[tuple[str, int, float, float]]:
        """The training losses on record at this step, measured on the same windows."""
        for event in evidence.history.measurements:
            if event["step"] == step:
                n = 0 if event["windows"] == "all" else event["windows"]
                again = training_loss(learner.model, windows, precision, n).loss
                yield "training loss", step, again, event["train_loss"]

    yield from measured(0)
    for step in range(1, n_steps + 1):
        if evidence.settings_at(step) != settings:  # it was resumed here with others
            settings, state = evidence.settings_at(step), learner.optimizer.state_dict()
            learner.clip_grad = settings.clip_grad
            learner.optimizer = build_optimizer(learner.model, settings, precision.muon_dtype)
            restore_optimizer(learner.optimizer, state)
        row, factor = evidence.steps.get(step), learning_rate_factor(step - 1, settings)
        if evidence.earlier and row is not None and not same(row["lr"], settings.lr * factor):
            factor = row["lr"] / settings.lr  # an earlier version kept the last settings only
        set_learning_rate(learner.optimizer, factor)
        with step_fits(settings):
            batch = micro_batches_of(step - 1, settings, windows, evidence.order)
            result = training_step(learner, batch)
        progress.update(step, loss=f"{result.loss:.4f}")
        if row is not None:
            yield "batch loss", step, result.loss, row["loss"]
        yield from measured(step)
    progress.close()


def _difference(again: float, recorded: float) -> float:
    """How far the record is from the loss, relatively; 0 where its seven digits are the same."""
    if f"{again:.7g}" == f"{recorded:.7g}":
        return 0.0
    difference = abs(again - recorded) / abs(again) if again else math.inf
    return difference if math.isfinite(difference) else math.inf


def _is_alike(evidence: Evidence, n_steps: int) -> bool:
    """Whether this machine computes these steps to the last bit as those of the run did."""
    own = evidence.precision.amp, sources_sha256()
    return all(
        same_machine(evidence, start)
        and own == (start["amp"], start["sources_sha256"])
        and not start["config"]["compile"]
        for start in evidence.history.starts
        if start.get("step", 0) < n_steps
    )
