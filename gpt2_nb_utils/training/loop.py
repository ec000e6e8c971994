"""The training loop: everything that happens in a run, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import FreedMemory, keep_large_blocks
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.tokenization.windows import WindowOrder
from gpt2_nb_utils.training.checkpoints import is_whole, save_checkpoint
from gpt2_nb_utils.training.corpus_loss import CorpusLoss, training_loss
from gpt2_nb_utils.training.optimizer import build_optimizer, restore_optimizer, set_learning_rate
from gpt2_nb_utils.training.out_of_memory import measurement_fits, samples_fit, step_fits
from gpt2_nb_utils.training.processes import ALONE, Processes
from gpt2_nb_utils.training.recorder import Bystander, Recorder, end_noted, note_failure
from gpt2_nb_utils.training.run_log import Row
from gpt2_nb_utils.training.saver import Saver
from gpt2_nb_utils.training.schedule import learning_rate_factor
from gpt2_nb_utils.training.start import Run, start_run
from gpt2_nb_utils.training.state import State
from gpt2_nb_utils.training.step import training_step
from gpt2_nb_utils.training.stop_request import StopRequest

NEAR_TARGET = 1.1
"""An estimate, or a smoothed batch loss, below this multiple of the target calls for measuring the whole corpus."""
SKIPS_IN_A_ROW = 20
"""So many updates without finite gradients, one after the other, end the run: it will not recover."""
_LONG_MEASUREMENT = 20_000
"""Tokens from which a measurement shows a progress line of its own."""


def train(
    config: RunConfig, on_row: Callable[[Row], None] | None = None, processes: Processes = ALONE
) -> dict[str, Any]:
    """Train a GPT-2 from random weights, or go on with a run.

    Args:
        config: all settings; `resume` and `overwrite` say what to do with a run that is already there.
        on_row: called with each row of the metrics as it is written.
        processes: those that call this at the same time, to train it together; the first one writes.

    Returns:
        The content of `summary.json`. Its status tells why the run ended.

    Raises:
        UserError: bad input, a batch that does not fit in memory, or a run that diverged (the last good checkpoint is kept).
    """
    keep_large_blocks()
    with processes.together():
        run = start_run(config, processes)
    processes.on_loss(lambda reason: note_failure(run.directory, reason))
    with StopRequest(agree=processes.any) as stop:
        with end_noted(run):
            training = _Training(run, on_row, processes)
        return training.train(stop)


class _Training:
    """A run in memory: the model and all that its steps need."""

    def __init__(self, run: Run, on_row: Callable[[Row], None] | None, processes: Processes):
        self.run, self.processes = run, processes
        self.config, self.precision = self.run.config, self.run.precision
        self.state = State()
        self.model = GPT2(self.run.model_config, seed=self.config.seed).to(self.precision.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, self.config, self.precision.muon_dtype)
        self.scaler = self.precision.scaler()
        self.order = WindowOrder(
            len(self.run.windows), self.config.seed, self.config.randomize_batches
        )
        self.loss_sum = lambda x, y: self.model.loss(x, y, reduction="sum")
        if self.config.compile:
            self.loss_sum = torch.compile(self.loss_sum)
        self.loss_sum = processes.data_parallel(self.model, self.loss_sum)
        if self.run.checkpoint is not None:
            self._restore(self.run.checkpoint)
            self.run.checkpoint = None
        self._saved_at = self.state.step if self.run.resumed else None
        self.record = (
            Recorder(self.run, self.state, self.model.n_params, on_row)
            if processes.first
            else Bystander(self.run)
        )
        directory = self.run.directory
        self.saver = Saver(
            [directory.best, directory.last],
            previous={directory.last: directory.previous},
            wanted=lambda: not self._is_lost,
        )

    def train(self, stop: StopRequest) -> dict[str, Any]:
        """The run, from where it stands to its end.

        Args:
            stop: says when somebody asks to stop.
        """
        config, state, record = self.config, self.state, self.record
        progress = Progress(config.steps, "training", done=state.step, shown=self.processes.first)
        freed = FreedMemory()
        status = "failed"
        try:
            with self.saver:
                if state.train_loss is None and not stop:
                    self.measure()  # where random weights start
                    record.row(lr=None, grad_norm=None, loss_scale=self._loss_scale)
                if (
                    self._samples_are_due and not record.samples_are_drawn
                ):  # a stop came before them
                    self.draw_samples()
                while state.step < config.steps and not self.target_reached and not stop:
                    factor = learning_rate_factor(state.step, config)
                    grad_norm = self.step(factor)
                    self._refuse_if_lost()

                    measured = (
                        state.step % config.eval_every == 0
                        or state.step == config.steps
                        or self._seems_near
                    )
                    improved = self.measure() if measured else False
                    if measured or state.step % config.log_every == 0 or state.step == 1:
                        record.row(config.lr * factor, grad_norm, self._loss_scale)
                    if improved:
                        self.save_best()

                    if state.step % config.save_every == 0 or self._is_last_step or stop:
                        self.save_last()
                    if not stop and self._samples_are_due:  # while the checkpoint is written
                        self.draw_samples()
                    self.saver.check()
                    progress.update(state.step, loss=f"{state.loss:.4f}", **self._figures())
                    record.summary()
                    freed.give_back()
                if state.loss is not None and not math.isfinite(state.loss):
                    raise UserError(
                        f"the loss is {state.loss:g} at the last step, {state.step}: {self._calmer}; "
                        f"the last good checkpoint is kept"
                    )
                if self._saved_at != state.step:
                    self.save_last()  # stopped while samples were drawn, or before the first step
                self.saver.flush()
                if not self.run.directory.last.exists():
                    self.save_last()  # it was read from elsewhere, or is gone
            status = (
                "target_reached" if self.target_reached else "interrupted" if stop else "steps_done"
            )
            if (
                status != "interrupted"
                and self.processes.first
                and is_whole(self.run.directory.last)
            ):
                self.run.directory.previous.unlink(missing_ok=True)
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except Exception as error:
            error = self._put_back(self.processes.reason(error))
            record.failed(error)
            raise error
        finally:
            progress.close(status.replace("_", " "))
            summary = record.close(status)
        return summary

    @property
    def target_reached(self) -> bool:
        """Whether the training loss over the whole corpus was measured below the target."""
        return self.state.is_at_target(self.config.target_loss)

    @property
    def _is_last_step(self) -> bool:
        return self.state.is_at_end(self.config.steps, self.config.target_loss)

    @property
    def _samples_are_due(self) -> bool:
        step, every = self.state.step, self.config.sample_every
        return bool(every) and step > 0 and (step % every == 0 or self._is_last_step)

    def draw_samples(self) -> None:
        """Let the model continue the prompts."""
        with samples_fit(self.config):
            self.record.samples(self.model, final=self._is_last_step)

    def step(self, factor: float) -> float:
        """One optimizer update on the next windows, at this share of the peak learning rates.

        Returns:
            The gradient norm before clipping.
        """
        config, state, windows = self.config, self.state, self.run.windows
        begun = time.perf_counter()
        n_windows = config.batch_size * config.grad_accum
        with step_fits(config, self.processes.count):
            indices = self.order.take(state.windows_drawn, n_windows)
            micro_batches = [
                windows.batch(indices[i : i + config.batch_size])
                for i in range(0, n_windows, config.batch_size)
            ]
            set_learning_rate(self.optimizer, factor)
            result = training_step(
                self.loss_sum,
                self.parameters,
                self.optimizer,
                self.scaler,
                self.precision,
                micro_batches,
                config.clip_grad,
                self.processes,
            )
            self.precision.wait()
        state.count_batch(
            result.loss, result.n_targets, n_windows, result.skipped, time.perf_counter() - begun
        )
        if result.skipped:
            self.record.line(
                f"step {state.step}/{config.steps}  skipped: gradient norm {result.grad_norm}, loss {result.loss}, "
                f"loss scale now {self.scaler.get_scale():g}"
            )
        if state.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise UserError(
                f"{SKIPS_IN_A_ROW} steps in a row had no finite gradients (loss {result.loss:g} at step "
                f"{state.step}, lr {config.lr * factor:g}): {self._calmer}; the last good checkpoint is kept"
            )
        return result.grad_norm

    @property
    def _calmer(self) -> str:
        """What to do about a loss or gradients that are not finite."""
        return "lower lr" + (
            f", or start anew with --amp {'fp32 or bf16' if self.precision.amp == 'fp16' else 'fp32'}"
            if self.precision.amp != "fp32"
            else ""
        )

    def measure(self) -> bool:
        """Measure the training loss: estimated first, whole when the target seems near. True for a new best.

        Either sign of nearness is enough: the estimate, and the smoothed batch loss, which an unlucky choice of windows
        for the estimate cannot hide.
        """
        state = self.state
        improved = state.count_measurement(self._training_loss(self.config.eval_windows))
        nearest = min(
            state.train_loss,
            state.train_loss if state.smoothed_loss is None else state.smoothed_loss,
        )
        if state.train_loss_windows != "all" and nearest < NEAR_TARGET * self.config.target_loss:
            improved = state.count_measurement(self._training_loss(0)) or improved
        state.smoothed_loss_when_measured = state.smoothed_loss
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

    def _training_loss(self, n_windows: int) -> CorpusLoss:
        windows = self.run.windows
        count = len(windows.evenly_spread(n_windows))
        progress = None
        if count * windows.seq_len > _LONG_MEASUREMENT:
            progress = Progress(
                count, "measuring the training loss, window", shown=self.processes.first
            )
        with measurement_fits(self.config):
            measured = training_loss(
                self.model,
                windows,
                self.precision,
                n_windows,
                progress and progress.update,
                self.processes,
            )
        if progress is not None:
            progress.close(f"{measured.loss:.6f}")
        self.record.measured(measured)
        return measured

    @property
    def _loss_scale(self) -> float | None:
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def _figures(self) -> dict[str, str]:
        state = self.state
        figures = {"tok/s": f"{state.tokens_seen / state.seconds:,.0f}"}
        if state.train_loss is not None:
            figures["training loss"] = f"{state.train_loss:.4f} at step {state.train_loss_step}"
        return figures

    def save_best(self) -> None:
        """Save best.pt: the weights with the lowest training loss, to grade and to sample from."""
        if not self.processes.first:
            return
        self.saver.save(
            self.run.directory.best, {**self._identity(), "model": self.model.state_dict()}
        )

    def save_last(self) -> None:
        """Save last.pt: everything that a resumed run needs. A run that has diverged does not replace the good one."""
        self._saved_at = self.state.step
        if not self.processes.first:
            return
        if not self._computes():
            self.record.line(
                f"step {self.state.step}/{self.config.steps}  not saved: the weights give no finite loss"
            )
            return
        self.record.update_wall_seconds()
        self.saver.save(self.run.directory.last, self._content_of_last(), now=self._is_last_step)

    def _content_of_last(self) -> dict[str, Any]:
        random_states = {"cpu": torch.get_rng_state()}
        if self.precision.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(self.precision.device)
        return {
            **self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_states": random_states,
        }

    @property
    def _is_lost(self) -> bool:
        return self.run.lock is not None and self.run.lock.is_lost

    def _refuse_if_lost(self) -> None:
        """Raise a UserError where the run directory was removed: another run may have taken its place."""
        if self._is_lost:
            raise UserError(
                f"out_dir {self.run.directory} was removed while this run trained in it"
            )

    def _put_back(self, error: Exception) -> Exception:
        """Where the run directory was removed and nobody else is there, put the state of the training back into it.

        Returns:
            What to tell.
        """
        directory, step = self.run.directory, self.state.step
        if not self._is_lost:
            return error
        lost = f"out_dir {directory} was removed while this run trained in it"
        if self.run.lock.is_taken:
            return UserError(
                f"{lost}, and another run has taken its place: this one ends at step {step} and writes nothing there"
            )
        try:
            self.run.lock.release()
            self.run.lock = directory.claim(resume=True)
            directory.write_json(directory.config, self.config.model_dump())
            save_checkpoint(directory.last, self._content_of_last())
        except UserError as reason:
            return UserError(f"{lost}, and step {step} could not be saved there again: {reason}")
        return UserError(
            f"{lost}: its state at step {step} is there again, without the logs of before; go on with --resume auto, or "
            f"remove the folder when no run is at work in it"
        )

    @torch.no_grad()
    def _computes(self) -> bool:
        """Whether the weights still give a finite loss: an update can ruin them before any loss shows it."""
        x, y = self.run.windows.batch([0])
        with self.precision.autocast(), measurement_fits(self.config):
            return bool(
                self.model.loss(
                    x.to(self.precision.device), y.to(self.precision.device), "sum"
                ).isfinite()
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "model_config": self.run.model_config.to_dict(),
            "config": self.config.model_dump(),
            "corpus_sha256": self.run.corpus.sha256,
            "state": self.state.to_dict(),
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        restore_optimizer(self.optimizer, checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        random_states = checkpoint["random_states"]
        self.state = State(**checkpoint["state"])
        self.state.take_best_of(self.run.best)
        torch.set_rng_state(random_states["cpu"])
        if self.precision.device.type == "cuda" and "cuda" in random_states:
            torch.cuda.set_rng_state(random_states["cuda"], self.precision.device)
