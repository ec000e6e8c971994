"""`verify RUN_DIR --replay N`: the first steps of a run, trained again from its seed, against the
losses on record.

It needs no checkpoint: the seed, the settings, the text and the recorded losses are enough. Nothing
is a stronger proof that a run began with random weights and was trained as it says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.machine import sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.progress import Progress, duration
from gpt2_nb_utils.results.audit import CannotCheck, Check, Replay, machine_of
from gpt2_nb_utils.results.audit_outputs import same_machine
from gpt2_nb_utils.results.audit_weights import LOWEST
from gpt2_nb_utils.results.evidence import Evidence, losses_of, windows_per_step
from gpt2_nb_utils.results.record import Record
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


def bound(step: int) -> float:
    """Relative difference that another machine, format or version of this package may make in a
    loss of this step: 0.4 % up to step 10, then twice as much at each step up to step 16.
    """
    # Rounding grows with the steps, and faster where a high learning rate lets the loss jump. Of
    # GPT-2 124M, bf16 on AMX and fp32 on AVX2 differ by 6.7e-5 at most in 4 steps. Of the tiny
    # preset, fp32 and bf16 differ by 5e-6 at most up to step 10, 1.5e-4 up to step 20 and, where
    # the loss jumps, 9e-2 up to step 30; one thread and two by 3e-5. The worst that was measured is
    # AdamW at lr 2e-2 without warm-up, one layer 16 wide: fp32 and bf16 differ by 1.2e-3 up to step
    # 10 and by 0.17 up to step 20. Weights from elsewhere differ by half and more.
    return 4e-3 * 2 ** min(max(step - 10, 0), 6)


def replay(run: Record, given: dict[str, Any], steps: int = 0) -> Replay:
    """Train the first steps of a run again, and hold every loss on record against what they give.

    It ends at the first loss that differs by more than the bound. Where machine, format and the
    sources of this package are those of the run, the digits must be the same; elsewhere `bound`
    holds.

    Args:
        run: the run, with or without checkpoints, read to be audited.
        given: `device` and `amp`, where given by hand; the default is the fastest format of this
            machine.
        steps: how many; 0 means all that are on record.

    Raises:
        UserError: its text is not on this machine, its steps do not fit in memory, or a record that
            this needs is missing or cannot be right.
    """
    keep_large_blocks()
    resolved = {"device": "auto", "amp": "auto", **given}
    precision = Precision.of(RunConfig.resolve(resolved, saved=run.config.model_dump()))
    evidence, begun = Evidence(run, precision), time.monotonic()
    compared, largest, at_step, said, ok = 0, 0.0, 0, "all to the last digit", True
    try:
        last = max(evidence.steps)
        n_steps = min(steps or last, last)
        due = range(1, n_steps + 1)
        if gone := next((step for step in due if step not in evidence.steps), None):
            raise CannotCheck(f"the loss of step {gone:,} is not on record")
        alike = _is_alike(evidence, n_steps)
        for what, step, again, recorded in _losses(evidence, n_steps):
            compared += 1
            difference = _difference(again, recorded)
            ok = difference <= (0 if alike else bound(step))
            if not ok or difference > largest:
                largest, at_step = difference, step
                said = f"{what} of step {step}: {again:.7g} again, {recorded:.7g} on record"
            if not ok:
                break
    except UserError:
        raise
    except CannotCheck as reason:
        raise UserError(f"{run.directory} cannot be replayed: {reason}") from None
    except Exception as error:
        raise UserError(
            f"{run.directory} cannot be replayed: a recorded value cannot be right "
            f"({type(error).__name__}: {error})"
        ) from None
    if ok:
        said = f"the largest difference {largest:.1e} ({said})" if largest else said
        said = f"{compared:,} losses of steps 1 to {n_steps:,}, {said}"
    allowed = 0.0 if alike else bound(n_steps)
    expected = (
        "the digits on record: machine, format and sources are those of the run"
        if alike
        else f"a relative difference of {bound(1):g} at most up to step 10, growing with the steps "
        f"to {allowed:.2g} at step {n_steps:,}: machine, format or sources are others"
    )
    took, machine = duration(time.monotonic() - begun), machine_of(precision)
    said = f"{said}; in {took}, in {precision.amp} on {precision.device_name}"
    return Replay(
        Check("training again from the seed gives the losses on record", ok, said, expected),
        machine["time"],
        machine,
        sources_sha256(),
        n_steps,
        largest if math.isfinite(largest) else None,  # JSON knows no infinity
        at_step,
        allowed,
    )


def _losses(evidence: Evidence, n_steps: int) -> Iterator[tuple[str, int, float, float]]:
    """Train so many steps: of each loss on record (what, step, the loss now, the loss on
    record)."""
    settings, windows, precision = evidence.settings_at(1), evidence.windows, evidence.precision
    refuse_what_cannot_fit(settings, parameter_count(GPT2Config.of(settings)), precision.device)
    learner, n_windows = Learner.of(settings, precision), windows_per_step(settings)
    progress = Progress(n_steps, "training again")
    for step in range(n_steps + 1):
        if step > 0:
            if evidence.settings_at(step) != settings:  # it was resumed here with others
                settings, state = evidence.settings_at(step), learner.optimizer.state_dict()
                learner.clip_grad = settings.clip_grad
                learner.optimizer = build_optimizer(learner.model, settings, precision.muon_dtype)
                restore_optimizer(learner.optimizer, state)
            row, factor = evidence.steps[step], learning_rate_factor(step - 1, settings)
            if evidence.earlier:
                factor = row["lr"] / settings.lr  # an earlier version kept the last settings only
            set_learning_rate(learner.optimizer, factor)
            if row["skipped"] and evidence.summary.amp == "fp16" != precision.amp:
                # Its gradients overflowed, which they do not in another format: no update.
                # A window is in a batch twice where one epoch ends and the next begins.
                indices = evidence.order.take((step - 1) * n_windows, n_windows)
                read = evidence.measure(
                    learner.model, sorted({*indices}), "a step without update, window"
                )
                loss = losses_of(read, indices).mean().item()
            else:
                with step_fits(settings):
                    batch = micro_batches_of(step - 1, settings, windows, evidence.order)
                    loss = training_step(learner, batch).loss
            progress.update(step, loss=f"{loss:.4f}")
            yield "batch loss", step, loss, row["loss"]
        for event in evidence.history.measurements:  # on the same windows
            if event["step"] == step:
                n = 0 if event["windows"] == "all" else event["windows"]
                again = training_loss(learner.model, windows, precision, n).loss
                yield "training loss", step, again, event["train_loss"]
    progress.close()


def _difference(again: float, recorded: float) -> float:
    """How far the record is from the loss, relatively; 0 where its seven digits are the same."""
    if f"{again:.7g}" == f"{recorded:.7g}":
        return 0.0
    difference = abs(again - recorded) / max(abs(again), LOWEST)
    return math.inf if math.isnan(difference) else difference


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
