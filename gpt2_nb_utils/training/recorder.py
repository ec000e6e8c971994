"""Writes the record of a run: events, and the files that are rendered from them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import Claim, flush_to_disk, write_atomically
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import saved_step
from gpt2_nb_utils.training.events import (
    Event,
    as_line,
    csv_line,
    history,
    log_lines,
    now,
    rendered,
    samples_text,
    summary,
)
from gpt2_nb_utils.training.records import Row, Sample

_BETWEEN_SUMMARIES = 1.0
"""Seconds between two writings of summary.json while nothing but steps happens."""


class Recorder:
    """The events of a run as they happen, counted and written.

    Args:
        directory: the run directory.
        events: those of the run so far.
        claim: the hold on the directory; None in a process that another one writes for, which only
            counts.
        on_row: called with each row of the metrics as it is written.

    Attributes:
        state: where the run stands.
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
        self.state = self._history.state
        self._speed_from = (self.state.seconds, self.state.tokens_seen)
        # Of a resumed run, the clock continues where its last process stopped.
        self._clock_zero = time.monotonic() - self.state.wall_seconds
        self._summary_at = 0.0
        if self.writes:
            self._render_all()

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json, as of now."""
        return summary(self._history)

    @property
    def lines(self) -> list[str]:
        """All events as lines, for a checkpoint."""
        return [as_line(event) for event in self.events]

    @property
    def wall_seconds(self) -> float:
        """Seconds that the run has taken in all, measurements, samples and checkpoints included."""
        return time.monotonic() - self._clock_zero

    @property
    def writes(self) -> bool:
        """Whether this process writes: not where another one does, nor once the directory is
        gone."""
        return self.claim is not None and not self.claim.is_lost

    def append(self, kind: str, **fields: Any) -> None:
        """Record an event: count it, and add it to every file that has a line about it.

        Args:
            kind: of event, from the table in `events.py`.
            fields: its other fields there, but for `time`.
        """
        event = json.loads(as_line({"event": kind, "time": now(), **fields}))  # as it is read back
        self.events.append(event)
        self._history.take(event)
        if not self.writes:
            return
        directory = self.directory
        self._add(directory.events, as_line(event) + "\n")
        self._add(directory.log, log_lines(event, self._history))
        if kind == "row":
            self._add(directory.metrics, csv_line(self._history.rows[-1]))
        elif kind == "measured" and event["recall"] is not None:
            self._add(directory.recall, csv_line(self._history.recall[-1]))
        elif kind == "samples":
            drawn = [Sample(**sample) for sample in event["samples"]]
            self._add(directory.samples, samples_text(drawn))
        in_a_step = kind in ("step", "row")
        if not in_a_step or time.monotonic() - self._summary_at > _BETWEEN_SUMMARIES:
            self._summary_at = time.monotonic()
            directory.write_json(directory.summary, self.summary)

    def row(self, loss_scale: float | None) -> None:
        """Record that this step has a line in the metrics, with the speed since the last one."""
        state, (seconds, tokens) = self.state, self._speed_from
        took = state.seconds - seconds
        speed = (state.tokens_seen - tokens) / took if took > 0 else None
        self._speed_from = (state.seconds, state.tokens_seen)
        self.append("row", step=state.step, tok_per_s=speed, loss_scale=loss_scale)
        if self._on_row is not None:
            self._on_row(self._history.rows[-1])

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record how the run ended, render every file once more, and let others into the
        directory."""
        reason = None
        if error is not None:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
        elif (
            status == "interrupted"
            and (saved := saved_step(self.directory.last)) != self.state.step
        ):
            reason = f"saved up to step {saved}" if saved else "nothing is saved"
        try:
            self.append(
                "end",
                status=status,
                step=self.state.step,
                seconds=self.state.seconds,
                wall_seconds=self.wall_seconds,
                error=reason,
                saved=self.directory.last.exists(),
            )
            if self.writes:
                self.sync()
                self._render_all()
        except NotWritten:
            if error is None:
                raise  # otherwise what went wrong first says more
        finally:
            if self.claim is not None:
                self.claim.release()

    def sync(self) -> None:
        """See the events onto the disk: a checkpoint that speaks of them must not outlive them in a
        power cut."""
        if self.writes:
            with _written(self.directory.events), self.directory.events.open("rb+") as file:
                flush_to_disk(file)

    def _add(self, path: Path, text: str) -> None:
        if text:
            with _written(path), path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)

    def _render_all(self) -> None:
        """Write the events and every file that comes from them, whole and onto the disk."""
        directory = self.directory
        texts = {
            "logs/events.jsonl": "".join(f"{line}\n" for line in self.lines),
            **rendered(self.events),
        }
        for name, text in texts.items():
            with _written(directory.path / name):
                write_atomically(directory.path / name, text, durable=True)
        if not self._history.samples:
            directory.samples.unlink(missing_ok=True)
        directory.samples.parent.mkdir(exist_ok=True)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "the last good checkpoint is kept, and --resume auto continues from it"
        raise NotWritten(path, error, kept) from error
