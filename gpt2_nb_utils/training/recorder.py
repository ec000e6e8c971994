"""Writes the record of a run: events, and the files that are rendered from them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import Claim, flush_to_disk, write_atomically
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.events import (
    Event,
    LogLines,
    State,
    as_line,
    history,
    metrics_line,
    now,
    recall_line,
    rendered,
    samples_text,
    summary,
)
from gpt2_nb_utils.training.records import Row, Sample, TrainingLoss

_BETWEEN_SUMMARIES = 1.0
"""Seconds between two writings of summary.json while nothing but steps happens."""


class Recorder:
    """The events of a run as they happen, counted and written.

    Args:
        directory: the run directory.
        events: those of the run so far.
        claim: the hold on the directory; None in a process that another one writes for, which only counts.
        on_row: called with each row of the metrics as it is written.
    """

    def __init__(
        self,
        directory: RunDirectory,
        events: list[Event],
        claim: Claim | None,
        on_row: Callable[[Row], None] | None = None,
    ):
        self.directory, self.events, self.claim, self._on_row = directory, events, claim, on_row
        self._history = history(events)
        self._log_lines = LogLines()
        self._speed_from = (self.state.seconds, self.state.tokens_seen)
        self._wall_before, self._begun = self.state.wall_seconds, time.monotonic()
        self._summary_at = 0.0
        if self._writes:
            self._render_all()

    @property
    def state(self) -> State:
        """Where the run stands."""
        return self._history.state

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json, as of now."""
        return summary(self._history)

    @property
    def lines(self) -> list[str]:
        """All events as lines, for a checkpoint."""
        return [as_line(event) for event in self.events]

    @property
    def _writes(self) -> bool:
        return self.claim is not None and not self.claim.is_lost

    def note(self, text: str) -> None:
        """Record a remark."""
        self._append("note", text=text)

    def step(self, **fields: Any) -> None:
        """Record an update: what `events.py` lists, but for the time that passed."""
        self._append("step", **fields, wall_s=self._wall_seconds)

    def row(self, loss_scale: float | None) -> None:
        """Record that the present step has a line in the metrics, with the speed since the last one."""
        state, (seconds, tokens) = self.state, self._speed_from
        took = state.seconds - seconds
        speed = (state.tokens_seen - tokens) / took if took > 0 else None
        self._speed_from = (state.seconds, state.tokens_seen)
        self._append("row", step=state.step, tok_per_s=speed, loss_scale=loss_scale)
        if self._on_row is not None:
            self._on_row(self._history.rows[-1])

    def measured(self, step: int, measured: TrainingLoss) -> None:
        """Record a measured training loss, and what the same forward pass said about recall."""
        self._append(
            "measured",
            step=step,
            train_loss=measured.loss,
            windows=measured.windows,
            n_targets=measured.n_targets,
            recall=None if measured.recall is None else asdict(measured.recall),
        )

    def samples(self, step: int, drawn: list[Sample]) -> None:
        """Record generated texts."""
        self._append("samples", step=step, samples=[asdict(sample) for sample in drawn])

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record how the run ended, render every file once more, and let others into the directory."""
        try:
            self._append(
                "end",
                status=status,
                step=self.state.step,
                seconds=self.state.seconds,
                wall_seconds=self._wall_seconds,
                error=None if error is None else _in_a_line(error),
                saved=self.directory.last.exists(),
            )
            if self._writes:
                self.sync()
                self._render_all()
        except NotWritten:
            if error is None:
                raise  # otherwise what went wrong first says more
        finally:
            if self.claim is not None:
                self.claim.release()

    def sync(self) -> None:
        """See the events onto the disk: a checkpoint that speaks of them must not outlive them in a power cut."""
        if self._writes:
            with self._written(self.directory.events), self.directory.events.open("rb") as file:
                flush_to_disk(file)

    @property
    def _wall_seconds(self) -> float:
        return self._wall_before + time.monotonic() - self._begun

    def _append(self, kind: str, **fields: Any) -> Event:
        event = json.loads(as_line({"event": kind, "time": now(), **fields}))  # as it is read back
        self.events.append(event)
        self._history.take(event)
        if self._writes:
            directory = self.directory
            self._add(directory.events, as_line(event) + "\n")
            self._add(directory.log, self._log_lines(event))
            if kind == "row":
                self._add(directory.metrics, metrics_line(self._history.rows[-1]))
            elif kind == "measured":
                self._add(directory.recall, recall_line(event))
            elif kind == "samples":
                self._add(
                    directory.samples, samples_text(Sample(**each) for each in event["samples"])
                )
            in_a_step = kind in ("step", "row")
            if not in_a_step or time.monotonic() - self._summary_at > _BETWEEN_SUMMARIES:
                self._summary_at = time.monotonic()
                directory.write_json(directory.summary, self.summary)
        return event

    def _add(self, path: Any, text: str) -> None:
        if text:
            with self._written(path), path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)

    def _render_all(self) -> None:
        """Write the events and every file that comes from them, whole and onto the disk."""
        directory = self.directory
        texts = {
            "logs/events.jsonl": "".join(f"{line}\n" for line in self.lines),
            **rendered(self.events),
        }
        for name, text in texts.items():
            with self._written(directory.path / name):
                write_atomically(directory.path / name, text, durable=True)
        if not self._history.samples:
            directory.samples.unlink(missing_ok=True)
        directory.samples.parent.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def _written(self, path: Any) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NotWritten(
                path,
                error,
                kept="the last good checkpoint is kept, and --resume auto continues from it",
            ) from error


def _in_a_line(error: BaseException) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())
