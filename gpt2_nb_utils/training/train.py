"""The training loop: everything that happens in a run, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import FreedMemory, keep_large_blocks
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.tokenization.dataset import EpochSampler
from gpt2_nb_utils.training.checkpoints import Saver
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.open_run import Run, open_run
from gpt2_nb_utils.training.optimizer import learning_rate_factor, set_learning_rate
from gpt2_nb_utils.training.out_of_memory import (
    measurement_fits,
    released_on_error,
    samples_fit,
    step_fits,
)
from gpt2_nb_utils.training.recorder import Recorder
from gpt2_nb_utils.training.records import Row
from gpt2_nb_utils.training.samples import draw_samples, sample_prompts
from gpt2_nb_utils.training.step import Learner, micro_batches_of, training_step
from gpt2_nb_utils.training.stop_request import StopRequest

NEAR_TARGET = 1.1
"""An estimate, or a smoothed batch loss, below this multiple of the target calls for measuring the
whole corpus."""
SKIPS_IN_A_ROW = 20
"""So many updates without finite gradients, one after the other, end the run: it will not
recover."""
_LONG_MEASUREMENT = 20_000
"""Tokens from which a measurement shows a progress line of its own."""


@released_on_error()
def train(
    config: RunConfig, on_row: Callable[[Row], None] | None = None, dist: DistContext = SINGLE
) -> dict[str, Any]:
    """Train a GPT-2 from random weights, or continue a run.

    Args:
        config: all settings; `resume` and `overwrite` say what to do with a run that is already
            there.
        on_row: called with each row of the metrics as it is written.
        dist: the processes that call this at the same time, to train it together; the first one
            writes.

    Returns:
        The content of `summary.json`. Its status says why the run ended.

    Raises:
        UserError: bad input, a batch that does not fit in memory, or a run that diverged (the last
            good checkpoint is kept).
    """
    keep_large_blocks()  # before the first tensor
    with dist.errors_shared():
        run = open_run(config, dist)
    with StopRequest(agree=dist.any) as stop:
        record = Recorder(run.directory, run.events, run.claim, on_row)
        status, error = "failed", None
        try:
            status = _Trainer(run, record, dist).train(stop)
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except Exception as raised:
            error = dist.explain(raised)
            if error is raised:
                raise
            raise error from None
        finally:
            record.end(status, error)
    return record.summary


class _Trainer:
    """A run in memory: what its loop needs at each step."""

    def __init__(self, run: Run, record: Recorder, dist: DistContext):
        self.run, self.record, self.dist = run, record, dist
        self.config, self.state = run.config, record.state
        self.learner = Learner.of(run.config, run.precision, dist, run.config.compile)
        self.order = EpochSampler(len(run.windows), run.config.seed, run.config.randomize_batches)
        self.prompts = sample_prompts(run.config, run.training_text)
        self.saved_at: int | None = None  # the step of last.pt
        if run.checkpoint is not None:
            self.learner.restore(run.checkpoint)
            self.saved_at = self.state.step
            run.checkpoint = None  # it is as large as the whole run
        best, last, previous = run.directory.best, run.directory.last, run.directory.previous
        # best.pt is written first: last.pt, whose state speaks of it, must never be the younger
        # one.
        self.saver = Saver([best, last], previous={last: previous}, wanted=lambda: record.writes)

    def train(self, stop: StopRequest) -> str:
        """The run, from where it stands to its end, which the returned status names.

        Args:
            stop: true once somebody asks to stop. All processes agree on it, so each must ask as
                often as the others.
        """
        config, state, record, saver = self.config, self.state, self.record, self.saver
        progress = Progress(config.steps, "training", done=state.step, shown=self.dist.is_main)
        freed = FreedMemory()
        status = "failed"
        try:
            with saver:  # what still waits to be written is written when it is left
                if state.train_loss is None and not stop:
                    self.measure()  # the first row: what random weights give
                    record.row(self.learner.loss_scale)
                if self.samples_are_due:  # of the resumed step, where a stop came before them
                    self.draw_samples()

                while not self.is_at_end and not stop:
                    self.step()
                    if self.dist.is_main and not record.writes:
                        raise UserError(
                            f"out_dir {self.run.directory} was removed while this run trained in "
                            f"it: it ends at step {state.step} and writes nothing there"
                        )
                    # The batch loss ends no run: only a measured training loss can.
                    measured = (
                        state.step % config.eval_every == 0
                        or state.step == config.steps
                        or self.seems_near_target
                    )
                    improved = self.measure() if measured else False
                    # After measuring, so that the row holds the training loss of its step.
                    if measured or state.step % config.log_every == 0 or state.step == 1:
                        record.row(self.learner.loss_scale)
                    if improved:  # before last.pt, whose state speaks of it
                        self.save_best()
                    if state.step % config.save_every == 0 or self.is_at_end or stop:
                        self.save_last()
                    # While the checkpoint is written. A stop skips them: the resumed run draws
                    # them.
                    if not stop and self.samples_are_due:
                        self.draw_samples()
                    saver.check()  # a full disk must not be found out at the end only
                    progress.update(state.step, loss=f"{state.loss:.4f}", **self.figures)
                    freed.give_back()

                if state.loss is not None and not math.isfinite(state.loss):
                    raise self.diverged(
                        f"the loss is {state.loss:g} at the last step, {state.step}"
                    )
                if self.saved_at != state.step:
                    self.save_last()  # stopped while samples were drawn, or before the first step
            if state.reached(config.target_loss):
                status = "target_reached"
            else:
                status = "interrupted" if stop else "steps_done"
            last, previous = self.run.directory.last, self.run.directory.previous
            if status != "interrupted" and self.dist.is_main and last.exists():
                previous.unlink(
                    missing_ok=True
                )  # a finished run needs no second one to resume from
        finally:
            progress.close(status.replace("_", " "))
        return status

    def step(self) -> None:
        """One optimizer update on the next windows."""
        config, state, learner = self.config, self.state, self.learner
        begun = time.perf_counter()
        factor = learning_rate_factor(state.step, config)
        with step_fits(config, self.dist.world_size):
            set_learning_rate(learner.optimizer, factor)
            batch = micro_batches_of(state.step, config, self.run.windows, self.order)
            result = training_step(learner, batch)
            learner.precision.wait()  # a GPU may still be computing: then the clock would lie
        tokens = state.tokens_seen + result.n_targets
        self.record.append(
            "step",
            step=state.step + 1,
            epoch=tokens / self.run.windows.n_targets,
            tokens=tokens,
            loss=result.loss,
            lr=config.lr * factor,
            grad_norm=result.grad_norm,
            elapsed_s=state.seconds + time.perf_counter() - begun,
            skipped=result.skipped,
            wall_s=self.record.wall_seconds,
        )
        if state.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise self.diverged(
                f"{SKIPS_IN_A_ROW} steps in a row had no finite gradients (loss {result.loss:g} at "
                f"step {state.step}, lr {config.lr * factor:g})"
            )

    def measure(self) -> bool:
        """Measure the training loss: estimated first, whole when the target seems near.

        Either sign of nearness is enough: the estimate, and the smoothed batch loss, which an
        unlucky choice of windows for the estimate cannot hide.

        Returns:
            Whether it is the best so far.
        """
        state = self.state
        best = state.best_train_loss, state.best_train_loss_step
        self.measure_on(self.config.eval_windows)
        signs = [loss for loss in (state.train_loss, state.smoothed_loss) if loss is not None]
        if state.train_loss_windows != "all" and min(signs) < NEAR_TARGET * self.config.target_loss:
            self.measure_on(0)
        return (state.best_train_loss, state.best_train_loss_step) != best

    def measure_on(self, n_windows: int) -> None:
        """Measure the training loss on so many windows; 0 means all."""
        windows = self.run.windows
        count = len(windows.evenly_spread(n_windows))
        shown = self.dist.is_main and count * windows.seq_len > _LONG_MEASUREMENT
        progress = Progress(count, "measuring the training loss, window", shown=shown)
        with measurement_fits(self.config):
            measured = training_loss(
                self.learner.model,
                windows,
                self.learner.precision,
                n_windows,
                progress.update,
                self.dist,
            )
        progress.close(f"{measured.loss:.6f}")
        self.record.append(
            "measured",
            step=self.state.step,
            train_loss=measured.loss,
            windows=measured.windows,
            n_targets=measured.n_targets,
            recall=measured.recall and asdict(measured.recall),
        )

    def draw_samples(self) -> None:
        """Let the model continue the prompts; at the end of the run, greedily too."""
        step = self.state.step
        if not self.dist.is_main:
            self.state.sampled_at = step
            return
        with samples_fit(self.config):
            drawn = draw_samples(
                self.learner.model, self.config, self.prompts, step, final=self.is_at_end
            )
        if self.run.corpus.source == "demo":  # said wherever a result is shown
            drawn = [
                replace(sample, settings={**sample.settings, "corpus": "demonstration"})
                for sample in drawn
            ]
        self.record.append("samples", step=step, samples=[asdict(sample) for sample in drawn])

    def save_best(self) -> None:
        """Save best.pt: the weights with the lowest training loss, to grade and to sample from."""
        if self.dist.is_main:
            self.record.sync()
            content = {**self.identity, "model": self.learner.model.state_dict()}
            self.saver.save(self.run.directory.best, content)

    def save_last(self) -> None:
        """Save last.pt: everything that a resumed run needs."""
        self.saved_at = self.state.step
        if not self.dist.is_main:
            return
        # An update can ruin the weights before any loss shows it: the good checkpoint stays then.
        with torch.no_grad(), self.learner.precision.autocast(), measurement_fits(self.config):
            x, y = self.run.windows.batch([0])  # (1, T)
            device = self.learner.precision.device
            loss = self.learner.model.loss(x.to(device), y.to(device), "sum")
        if not loss.isfinite():
            note = f"step {self.state.step} is not saved: the weights give no finite loss"
            self.record.append("note", text=note)
            return
        self.record.sync()  # first the events on the disk, then the checkpoint that speaks of them
        content = {**self.identity, "events": self.record.lines, **self.learner.state()}
        self.saver.save(self.run.directory.last, content, now=self.is_at_end)

    @property
    def identity(self) -> dict[str, Any]:
        """What every checkpoint says about its run."""
        return {
            "run_id": self.run.run_id,
            "model_config": self.run.model_config.to_dict(),
            "config": self.config.model_dump(),
            "corpus_sha256": self.run.corpus.sha256,
            "state": asdict(self.state),
        }

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left to train."""
        return self.state.is_at_end(self.config.steps, self.config.target_loss)

    @property
    def seems_near_target(self) -> bool:
        """The smoothed batch loss nears the target, and has fallen well since the training loss was
        last measured: otherwise each step near the target would measure the whole corpus."""
        smoothed, before = self.state.smoothed_loss, self.state.smoothed_loss_when_measured
        return (
            smoothed is not None
            and smoothed < NEAR_TARGET * self.config.target_loss
            and (before is None or smoothed < 0.97 * before)
        )

    @property
    def samples_are_due(self) -> bool:
        """Whether this step has samples that are not drawn yet."""
        step, every = self.state.step, self.config.sample_every
        due = bool(every) and step > 0 and (step % every == 0 or self.is_at_end)
        return due and self.state.sampled_at != step

    @property
    def figures(self) -> dict[str, str]:
        """What the progress line shows beside the loss."""
        state = self.state
        figures = {"tok/s": f"{state.tokens_seen / state.seconds:,.0f}"}
        if state.train_loss is not None:
            figures["training loss"] = f"{state.train_loss:.4f} at step {state.train_loss_step}"
        return figures

    def diverged(self, what: str) -> UserError:
        """An error that says what is not finite, and what to do about it."""
        fix, amp = "lower lr", self.run.precision.amp
        if amp != "fp32":
            others = "fp32 or bf16" if amp == "fp16" else "fp32"
            fix = f"{fix}, or start a new run with --amp {others}"
        return UserError(f"{what}: {fix}; the last good checkpoint is kept")
