"""Everything that a run writes down on its way, except checkpoints: logs, samples and the summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.corpus_loss import CorpusLoss, describe_windows
from gpt2_nb_utils.training.run_log import RecallRow, Row, RunLog, append_line, written
from gpt2_nb_utils.training.samples import draw_samples, sample_prompts
from gpt2_nb_utils.training.samples_file import format_sample, read_samples
from gpt2_nb_utils.training.start import Run
from gpt2_nb_utils.training.state import State


class Recorder:
    """Writes the logs, the samples and `summary.json` of a run.

    Args:
        run: the run.
        state: where it stands; read whenever something is written.
        n_params: parameters of the model, for the log.
        on_row: called with each row of the metrics as it is written.
    """

    def __init__(
        self, run: Run, state: State, n_params: int, on_row: Callable[[Row], None] | None = None
    ):
        self.run, self.state, self._on_row = run, state, on_row
        self._log = RunLog(run.directory, step=state.step if run.resumed else None)
        self._prompts = sample_prompts(run.config, run.training_text)
        self._speed_from = (state.seconds, state.tokens_seen)
        self._wall_before, self._begun = state.wall_seconds, time.monotonic()
        self._told_at = 0.0
        self._sampled_at = self._keep_samples()
        self._introduce(n_params)

    def line(self, text: str) -> None:
        """Append a line to train.log."""
        self._log.line(text)

    def measured(self, measured: CorpusLoss) -> None:
        """Log a measured training loss, and what the same forward pass said about recall."""
        config = self.run.config
        if measured.recalled is not None:
            self._log.recall(RecallRow(self.state.step, measured.recalled))
        self._log.line(
            f"step {self.state.step}/{config.steps}  training loss {measured.loss:.6f} "
            f"({describe_windows(measured.windows, config.max_tokens)})  target {config.target_loss}"
        )

    def row(self, lr: float | None, grad_norm: float | None, loss_scale: float | None) -> None:
        """Write a row of metrics and a line of the log about the last step."""
        state = self.state
        seconds, tokens = self._speed_from
        elapsed = state.seconds - seconds
        speed = (state.tokens_seen - tokens) / elapsed if elapsed > 0 else None
        self._speed_from = (state.seconds, state.tokens_seen)
        row = Row(
            step=state.step,
            epoch=state.tokens_seen / self.run.windows.n_targets,
            tokens=state.tokens_seen,
            loss=state.loss,
            train_loss=state.train_loss if state.train_loss_step == state.step else None,
            lr=lr,
            grad_norm=grad_norm,
            loss_scale=loss_scale,
            tok_per_s=speed,
            elapsed_s=state.seconds,
        )
        self._log.row(row)
        if state.loss is not None and lr is not None and grad_norm is not None:
            rate = f"  tok/s {speed:.1f}" if speed is not None else ""
            scale = f"  loss_scale {loss_scale:g}" if loss_scale is not None else ""
            self._log.line(
                f"step {state.step}/{self.run.config.steps}  loss {state.loss:.4f}  lr {lr:.3e}{rate}  "
                f"grad_norm {grad_norm:.3f}{scale}"
            )
        if self._on_row is not None:
            self._on_row(row)

    def samples(self, model: GPT2, final: bool) -> None:
        """Let the model continue the prompts and append what it says to samples.txt.

        Args:
            final: the run ends here: add what the model says when it always takes the likeliest token.
        """
        path = self.run.directory.samples
        drawn = draw_samples(model, self.run.config, self._prompts, self.state.step, final)
        if self.run.corpus.source == "demo":
            drawn = [
                replace(sample, settings={**sample.settings, "corpus": "demonstration"})
                for sample in drawn
            ]
        with written(path):
            path.parent.mkdir(exist_ok=True)
            # All of a step or none: the checkpoint of that step may be there already, and what lacks would never be drawn.
            before = path.read_bytes() if path.exists() else b""
            write_atomically(path, before + "".join(map(format_sample, drawn)).encode("utf-8"))
        self._sampled_at = self.state.step

    @property
    def samples_are_drawn(self) -> bool:
        """Whether there are samples of the step that the run is at."""
        return self._sampled_at == self.state.step

    def summary(self, status: str = "running") -> dict[str, Any] | None:
        """Bring `summary.json` up to date: at once when the status changes, else about once a second."""
        self.update_wall_seconds()
        if status == "running" and (
            time.monotonic() - self._told_at < 1.0 or self.run.lock.is_lost
        ):
            return None
        self._told_at = time.monotonic()
        return self.run.write_summary(status, self.state)

    def update_wall_seconds(self) -> None:
        """Add the time since the start of this process to what earlier ones took."""
        self.state.wall_seconds = self._wall_before + time.monotonic() - self._begun

    def failed(self, error: BaseException) -> None:
        """Log why the run ends; a log that cannot be written does not hide it."""
        with contextlib.suppress(UserError):
            if not self.run.lock.is_lost:
                self._log.line(f"failed: {error or type(error).__name__}")

    def close(self, status: str) -> dict[str, Any]:
        """Write the last state, let others into the directory, and return the content of `summary.json`.

        Raises:
            UserError: it cannot be written, and nothing went wrong before.
        """
        state = self.state
        try:
            if not self.run.lock.is_lost:
                self.summary(status)
                self._log.line(
                    f"{status} at step {state.step}, {duration(state.seconds)} of training, "
                    f"{duration(state.wall_seconds)} with measurements, samples and checkpoints"
                )
        except UserError:
            if status != "failed":
                raise
        finally:
            self.run.lock.release()
        return self.run.summary

    def _keep_samples(self) -> int | None:
        """Drop samples of steps after the checkpoint, which will be drawn again, and the final one of a run that now goes on.

        Returns:
            The step of the last that are left.
        """
        path, state, config = self.run.directory.samples, self.state, self.run.config
        ended = state.is_at_end(config.steps, config.target_loss)
        if not path.exists():
            return None
        kept = [
            sample
            for sample in read_samples(path)
            if sample.step <= state.step and (ended or not sample.final)
        ]
        with written(path):
            write_atomically(path, "".join(map(format_sample, kept)))
        return kept[-1].step if kept else None

    def _introduce(self, n_params: int) -> None:
        run, config = self.run, self.run.config
        self._log.line(
            f"new run in {run.directory}"
            if not run.resumed
            else f"resumed at step {self.state.step} in {run.directory}"
        )
        self._log.line(
            f"device {run.summary['device']}  amp {run.precision.amp}  torch {torch.__version__}"
        )
        self._log.line(
            "arguments "
            + "  ".join(f"{name}={value!r}" for name, value in config.model_dump().items())
        )
        self._log.line(f"corpus {run.corpus.describe()}")
        for note in run.corpus.notes:
            self._log.line(f"corpus note: {note}")
        origin = (
            f"random weights (seed {config.seed})"
            if not run.resumed
            else f"the checkpoint of step {self.state.step}"
        )
        self._log.line(f"model {n_params:,} parameters, from {origin}")
        self._log.line(
            f"tokens {len(run.windows.tokens):,}  windows {len(run.windows):,} of {config.seq_len}"
        )
        self._log.line(
            f"tokens per step {config.tokens_per_step:,}  steps {config.steps:,}  "
            f"epochs {config.steps * config.batch_size * config.grad_accum / len(run.windows):.2f}"
        )


class Bystander:
    """What a process has in place of a Recorder where another one writes."""

    def __init__(self, run: Run):
        self._summary = run.summary

    def line(self, text: str) -> None:
        pass

    def measured(self, measured: CorpusLoss) -> None:
        pass

    def row(self, lr: float | None, grad_norm: float | None, loss_scale: float | None) -> None:
        pass

    def samples(self, model: GPT2, final: bool) -> None:
        pass

    samples_are_drawn = True

    def summary(self, status: str = "running") -> None:
        pass

    def failed(self, error: BaseException) -> None:
        pass

    def close(self, status: str) -> dict[str, Any]:
        """The summary as far as it is known here, which is how the run ended."""
        return {**self._summary, "status": status}


@contextlib.contextmanager
def end_noted(run: Run) -> Iterator[None]:
    """A context before the run has a Recorder: if it ends there, that is written down, and others are let into the directory."""
    try:
        yield
    except BaseException as error:
        if run.lock is not None:
            with contextlib.suppress(UserError):
                note_failure(
                    run.directory,
                    str(error) or type(error).__name__,
                    "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                )
            run.lock.release()
        raise


def note_failure(directory: RunDirectory, reason: str, status: str = "failed") -> bool:
    """Write down how a run ended where no Recorder can; False where its end was written down before."""
    summary = directory.read_summary()
    if summary["status"] != "running":
        return False
    with contextlib.suppress(OSError):
        append_line(directory.log, f"{status}: {reason}")
    directory.write_json(directory.summary, {**summary, "status": status})
    return True
