"""The training loop: everything that happens in a run, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import FreedMemory, keep_large_blocks
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.tokenization.dataset import EpochSampler
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.open_run import Run, open_run
from gpt2_nb_utils.training.optimizer import build_optimizer, restore_optimizer, set_learning_rate
from gpt2_nb_utils.training.out_of_memory import (
    measurement_fits,
    released_on_error,
    samples_fit,
    step_fits,
)
from gpt2_nb_utils.training.recorder import Recorder
from gpt2_nb_utils.training.records import Row
from gpt2_nb_utils.training.samples import draw_samples, sample_prompts
from gpt2_nb_utils.training.saver import Saver
from gpt2_nb_utils.training.schedule import learning_rate_factor
from gpt2_nb_utils.training.step import training_step
from gpt2_nb_utils.training.stop_request import StopRequest

NEAR_TARGET = 1.1
"""An estimate, or a smoothed batch loss, below this multiple of the target calls for measuring the whole corpus."""
SKIPS_IN_A_ROW = 20
"""So many updates without finite gradients, one after the other, end the run: it will not recover."""
_LONG_MEASUREMENT = 20_000
"""Tokens from which a measurement shows a progress line of its own."""


def train(
    config: RunConfig, on_row: Callable[[Row], None] | None = None, dist: DistContext = SINGLE
) -> dict[str, Any]:
    """Train a GPT-2 from random weights, or continue a run.

    Args:
        config: all settings; `resume` and `overwrite` say what to do with a run that is already there.
        on_row: called with each row of the metrics as it is written.
        dist: the processes that call this at the same time, to train it together; the first one writes.

    Returns:
        The content of `summary.json`. Its status tells why the run ended.

    Raises:
        UserError: bad input, a batch that does not fit in memory, or a run that diverged (the last good checkpoint is kept).
    """
    with released_on_error():
        return _train(config, on_row, dist)


def _train(
    config: RunConfig, on_row: Callable[[Row], None] | None, dist: DistContext
) -> dict[str, Any]:
    keep_large_blocks()
    with dist.errors_shared():
        run = open_run(config, dist)
    with StopRequest(agree=dist.any, patient=dist.world_size > 1) as stop:
        record = Recorder(run.directory, run.events, run.claim, on_row)
        status, error = "failed", None
        try:
            status = _Training(run, record, dist).train(stop)
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


class _Training:
    """A run in memory: the model and all that its steps need."""

    def __init__(self, run: Run, record: Recorder, dist: DistContext):
        self.run, self.record, self.dist = run, record, dist
        self.config, self.precision, self.state = run.config, run.precision, record.state
        self.model = GPT2(run.model_config, seed=run.config.seed).to(self.precision.device)
        self.optimizer = build_optimizer(self.model, self.config, self.precision.muon_dtype)
        self.scaler = self.precision.scaler()
        self.order = EpochSampler(len(run.windows), self.config.seed, self.config.randomize_batches)
        self.prompts = sample_prompts(self.config, run.training_text)
        loss_sum: Callable = lambda x, y: self.model.loss(x, y, reduction="sum")  # noqa: E731
        if self.config.compile:
            loss_sum = torch.compile(loss_sum)
        self.loss_sum = dist.data_parallel(self.model, loss_sum)
        if run.checkpoint is not None:
            self._restore(run.checkpoint)
        self._saved_at = self.state.step if run.checkpoint is not None else None
        run.checkpoint = None  # it is as large as the whole run
        directory = run.directory
        self.saver = Saver(
            [directory.best, directory.last],
            previous={directory.last: directory.previous},
            wanted=lambda: not self._is_lost,
        )

    def train(self, stop: StopRequest) -> str:
        """The run, from where it stands to its end, which the returned status tells.

        Args:
            stop: says when somebody asks to stop.
        """
        config, state = self.config, self.state
        progress = Progress(config.steps, "training", done=state.step, shown=self.dist.is_main)
        freed = FreedMemory()
        status = "failed"
        try:
            with self.saver:
                if state.train_loss is None and not stop:
                    self.measure()  # where random weights start
                    self.record.row(self._loss_scale)
                if self._samples_are_due:  # of a step after which a stop came first
                    self.draw_samples()
                while not state.is_at_end(config.steps, config.target_loss) and not stop:
                    self.step()
                    self._refuse_if_lost()

                    every = config.eval_every
                    measured = (
                        state.step % every == 0 or state.step == config.steps or self._seems_near
                    )
                    improved = self.measure() if measured else False
                    if measured or state.step % config.log_every == 0 or state.step == 1:
                        self.record.row(self._loss_scale)
                    if improved:  # before last.pt, whose state speaks of it
                        self.save_best()
                    if state.step % config.save_every == 0 or self._is_last_step or stop:
                        self.save_last()
                    if not stop and self._samples_are_due:  # while the checkpoint is written
                        self.draw_samples()
                    self.saver.check()  # a full disk must not be found out at the end only
                    progress.update(state.step, loss=f"{state.loss:.4f}", **self._figures())
                    freed.give_back()
                if state.loss is not None and not math.isfinite(state.loss):
                    raise UserError(
                        f"the loss is {state.loss:g} at the last step, {state.step}: {self._calmer}; "
                        f"the last good checkpoint is kept"
                    )
                if self._saved_at != state.step:
                    self.save_last()  # stopped while samples were drawn, or before the first step
            if state.reached(config.target_loss):
                status = "target_reached"
            else:
                status = "interrupted" if stop else "steps_done"
            if status != "interrupted" and self.dist.is_main and self.run.directory.last.exists():
                self.run.directory.previous.unlink(missing_ok=True)
        finally:
            progress.close(status.replace("_", " "))
        return status

    def step(self) -> None:
        """One optimizer update on the next windows."""
        config, state, windows = self.config, self.state, self.run.windows
        begun = time.perf_counter()
        n_windows = config.batch_size * config.grad_accum
        factor = learning_rate_factor(state.step, config)
        with step_fits(config, self.dist.world_size):
            # The place in the data follows from the step: nothing else has to be remembered.
            indices = self.order.take(state.step * n_windows, n_windows)
            micro_batches = [
                windows.batch(indices[i : i + config.batch_size])
                for i in range(0, n_windows, config.batch_size)
            ]
            set_learning_rate(self.optimizer, factor)
            result = training_step(
                self.loss_sum,
                list(self.model.parameters()),
                self.optimizer,
                self.scaler,
                self.precision,
                micro_batches,
                config.clip_grad,
                self.dist,
            )
            self.precision.wait()
        tokens = state.tokens_seen + result.n_targets
        self.record.step(
            step=state.step + 1,
            epoch=tokens / windows.n_targets,
            tokens=tokens,
            loss=result.loss,
            lr=config.lr * factor,
            grad_norm=result.grad_norm,
            elapsed_s=state.seconds + time.perf_counter() - begun,
            skipped=result.skipped,
        )
        if state.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise UserError(
                f"{SKIPS_IN_A_ROW} steps in a row had no finite gradients (loss {result.loss:g} at step "
                f"{state.step}, lr {config.lr * factor:g}): {self._calmer}; the last good checkpoint is kept"
            )

    def measure(self) -> bool:
        """Measure the training loss: estimated first, whole when the target seems near. True for a new best.

        Either sign of nearness is enough: the estimate, and the smoothed batch loss, which an unlucky choice of windows
        for the estimate cannot hide.
        """
        state = self.state
        improved = self._measure(self.config.eval_windows)
        signs = [loss for loss in (state.train_loss, state.smoothed_loss) if loss is not None]
        if state.train_loss_windows != "all" and min(signs) < NEAR_TARGET * self.config.target_loss:
            improved = self._measure(0) or improved
        return improved

    def _measure(self, n_windows: int) -> bool:
        windows = self.run.windows
        count = len(windows.evenly_spread(n_windows))
        progress = None
        if count * windows.seq_len > _LONG_MEASUREMENT:
            label = "measuring the training loss, window"
            progress = Progress(count, label, shown=self.dist.is_main)
        with measurement_fits(self.config):
            measured = training_loss(
                self.model,
                windows,
                self.precision,
                n_windows,
                progress and progress.update,
                self.dist,
            )
        if progress is not None:
            progress.close(f"{measured.loss:.6f}")
        improved = self.state.is_improved_by(measured, self.state.step)
        self.record.measured(self.state.step, measured)
        return improved

    @property
    def _seems_near(self) -> bool:
        """The smoothed batch loss nears the target, and has fallen well since the training loss was last measured."""
        smoothed, before = self.state.smoothed_loss, self.state.smoothed_loss_when_measured
        return (
            smoothed is not None
            and smoothed < NEAR_TARGET * self.config.target_loss
            and (before is None or smoothed < 0.97 * before)
        )

    @property
    def _loss_scale(self) -> float | None:
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    @property
    def _is_last_step(self) -> bool:
        return self.state.is_at_end(self.config.steps, self.config.target_loss)

    @property
    def _samples_are_due(self) -> bool:
        step, every = self.state.step, self.config.sample_every
        due = bool(every) and step > 0 and (step % every == 0 or self._is_last_step)
        return due and self.state.sampled_at != step

    def draw_samples(self) -> None:
        """Let the model continue the prompts; at the end of the run, greedily too."""
        if not self.dist.is_main:
            self.state.sampled_at = self.state.step
            return
        with samples_fit(self.config):
            drawn = draw_samples(
                self.model, self.config, self.prompts, self.state.step, final=self._is_last_step
            )
        if self.run.corpus.source == "demo":  # said wherever a result is shown
            drawn = [
                replace(sample, settings={**sample.settings, "corpus": "demonstration"})
                for sample in drawn
            ]
        self.record.samples(self.state.step, drawn)

    @property
    def _calmer(self) -> str:
        """What to do about a loss or gradients that are not finite."""
        if self.precision.amp == "fp32":
            return "lower lr"
        other = "fp32 or bf16" if self.precision.amp == "fp16" else "fp32"
        return f"lower lr, or start a new run with --amp {other}"

    def _figures(self) -> dict[str, str]:
        state = self.state
        figures = {"tok/s": f"{state.tokens_seen / state.seconds:,.0f}"}
        if state.train_loss is not None:
            figures["training loss"] = f"{state.train_loss:.4f} at step {state.train_loss_step}"
        return figures

    # Checkpoints

    def save_best(self) -> None:
        """Save best.pt: the weights with the lowest training loss, to grade and to sample from."""
        if self.dist.is_main:
            self.record.sync()
            self.saver.save(
                self.run.directory.best, {**self._identity(), "model": self.model.state_dict()}
            )

    def save_last(self) -> None:
        """Save last.pt: everything that a resumed run needs. A run that has diverged does not replace the good one."""
        self._saved_at = self.state.step
        if not self.dist.is_main:
            return
        if not self._computes():
            self.record.note(
                f"step {self.state.step} is not saved: the weights give no finite loss"
            )
            return
        self.record.sync()  # first the events on the disk, then the checkpoint that speaks of them
        random_states = {"cpu": torch.get_rng_state()}
        if self.precision.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(self.precision.device)
        content = {
            **self._identity(),
            "events": self.record.lines,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_states": random_states,
        }
        self.saver.save(self.run.directory.last, content, now=self._is_last_step)

    def _identity(self) -> dict[str, Any]:
        return {
            "run_id": self.run.run_id,
            "model_config": self.run.model_config.to_dict(),
            "config": self.config.model_dump(),
            "corpus_sha256": self.run.corpus.sha256,
            "state": self.state.to_dict(),
        }

    @torch.no_grad()
    def _computes(self) -> bool:
        """Whether the weights still give a finite loss: an update can ruin them before any loss shows it."""
        x, y = self.run.windows.batch([0])
        device = self.precision.device
        with self.precision.autocast(), measurement_fits(self.config):
            return bool(self.model.loss(x.to(device), y.to(device), "sum").isfinite())

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        restore_optimizer(self.optimizer, checkpoint["optimizer"])
        if (
            checkpoint["scaler"] and self.scaler.is_enabled()
        ):  # else the run was, or is, not in fp16
            self.scaler.load_state_dict(checkpoint["scaler"])
        random_states = checkpoint["random_states"]
        torch.set_rng_state(random_states["cpu"])
        if self.precision.device.type == "cuda" and "cuda" in random_states:
            torch.cuda.set_rng_state(random_states["cuda"], self.precision.device)

    @property
    def _is_lost(self) -> bool:
        return self.run.claim is not None and self.run.claim.is_lost

    def _refuse_if_lost(self) -> None:
        """Raise a UserError where the run directory was removed: another run may have taken its place."""
        if self._is_lost:
            raise UserError(
                f"out_dir {self.run.directory} was removed while this run trained in it: it ends at step "
                f"{self.state.step} and writes nothing there"
            )
