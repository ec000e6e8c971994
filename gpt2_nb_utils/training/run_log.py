"""The logs of a run: `train.log` for a person, `train_metrics.csv` and `recall.csv` for a program."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from gpt2_nb_utils.errors import NotWritten
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.training.verbatim import Recalled

COLUMNS = (
    "step",
    "epoch",
    "tokens",
    "loss",
    "train_loss",
    "lr",
    "grad_norm",
    "loss_scale",
    "tok_per_s",
    "elapsed_s",
)
RECALL_COLUMNS = ("step", "openings", "given", "continued", "verbatim", "right")

_Line = TypeVar("_Line")


@dataclass(frozen=True)
class Row:
    """One line of `train_metrics.csv`; None is an empty cell.

    Attributes:
        step: optimizer updates done.
        epoch: tokens seen over tokens of the corpus.
        tokens: predictions trained on so far.
        loss: cross-entropy of the last batch, before its update, nats per token.
        train_loss: training loss over the corpus, when it was measured at this step.
        lr: learning rate of the last update.
        grad_norm: gradient norm of the last update, before clipping.
        loss_scale: factor of the GradScaler (fp16 only).
        tok_per_s: tokens per second of training since the row before.
        elapsed_s: seconds spent on training steps.
    """

    step: int
    epoch: float
    tokens: int
    loss: float | None = None
    train_loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    loss_scale: float | None = None
    tok_per_s: float | None = None
    elapsed_s: float = 0.0

    def cells(self) -> list[str]:
        """The row as text: numbers short enough to read, exact enough to plot and compare."""

        def text(value: Any) -> str:
            return "" if value is None else str(value) if isinstance(value, int) else f"{value:.7g}"

        return [text(getattr(self, name)) for name in COLUMNS]


@dataclass(frozen=True)
class RecallRow:
    """One line of `recall.csv`: a measurement of the training loss, and what the model knew by heart then.

    Attributes:
        step: optimizer updates done.
        recalled: how far it continued the openings of the windows that were measured.
    """

    step: int
    recalled: Recalled

    def cells(self) -> list[str]:
        """The row as text."""
        known = self.recalled
        return [
            f"{value:.7g}" if isinstance(value, float) else str(value)
            for value in (
                self.step,
                known.openings,
                known.given,
                known.continued,
                known.verbatim,
                known.right,
            )
        ]


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `train_metrics.csv`; a line that a kill cut short, or without a step, is left out."""

    def row(cells: dict[str, str]) -> Row:
        values = {name: float(cells[name]) if cells[name] else None for name in COLUMNS}
        return Row(**{**values, "step": int(values["step"]), "tokens": int(values["tokens"])})

    return _read_table(path, row)


def read_recall(path: Path) -> list[RecallRow]:
    """The rows of a `recall.csv`, none where it is missing; a line that a kill cut short, or that cannot be, is left out."""

    def row(cells: dict[str, str]) -> RecallRow:
        counts = {name: int(cells[name]) for name in RECALL_COLUMNS[:-1]}
        step = counts.pop("step")
        recalled = Recalled(**counts, right=float(cells["right"]))
        if not 0 <= recalled.verbatim <= recalled.openings > 0:
            raise ValueError
        return RecallRow(step, recalled)

    return _read_table(path, row)


def _read_table(path: Path, row: Callable[[dict[str, str]], _Line]) -> list[_Line]:
    """The lines of a table, without those of which `row` can make nothing; none where the file is missing."""
    rows = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file):
                try:
                    rows.append(row(cells))
                except (TypeError, ValueError, KeyError, OverflowError):
                    continue
    return rows


def append_line(log: Path, text: str) -> None:
    """Append a timestamped line to train.log.

    Raises:
        OSError: it cannot be written.
    """
    # One line each, whatever the text: control characters would let it forge lines or drive a terminal.
    with log.open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{datetime.now().strftime('%Y-%m-%d %H:%M:%S')}  {one_line(text)}\n")


class _Table:
    """A CSV file with a step in its first column, to which rows are appended.

    Args:
        path: the file, written anew with the rows that are kept.
        columns: its header.
        step: rows after this step are dropped; all, when None.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], step: int | None):
        self._path = path
        kept = []
        with written(path):
            if path.exists() and step is not None:
                # As they were written, without quotes: a damaged line is left out, whatever is in it.
                lines = [
                    line.split(",")
                    for line in path.read_bytes().decode("utf-8", errors="replace").splitlines()[1:]
                ]
                kept = [
                    cells
                    for cells in lines
                    if len(cells) == len(columns)
                    and cells[0].isdecimal()
                    and len(cells[0]) < 16
                    and int(cells[0]) <= step
                ]
            write_atomically(path, "".join(",".join(cells) + "\n" for cells in [columns, *kept]))

    def append(self, cells: list[str]) -> None:
        with written(self._path), self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(",".join(cells) + "\n")


class RunLog:
    """Appends to the logs of a run. What cannot be written is a `NotWritten`.

    Args:
        directory: the run directory.
        step: steps done by the checkpoint from which the run goes on (0 for a new run): rows after it belong to
            work that was lost, will be done again, and are dropped.
    """

    def __init__(self, directory: RunDirectory, step: int | None = None):
        self._log = directory.log
        with written(self._log):
            self._log.parent.mkdir(exist_ok=True)
            if step is None:
                self._log.unlink(missing_ok=True)
        self._metrics = _Table(directory.metrics, COLUMNS, step)
        self._recall = _Table(directory.recall, RECALL_COLUMNS, step)

    def line(self, text: str) -> None:
        """Append a timestamped line to train.log."""
        with written(self._log):
            append_line(self._log, text)

    def row(self, row: Row) -> None:
        """Append a row to train_metrics.csv."""
        self._metrics.append(row.cells())

    def recall(self, row: RecallRow) -> None:
        """Append a row to recall.csv."""
        self._recall.append(row.cells())


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """A context in which a record of a run is written: what stands in the way is told in a line.

    Raises:
        NotWritten: the disk is full, or the folder cannot be written or is gone.
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(
            path, error, kept="the last good checkpoint is kept, and --resume auto goes on from it"
        ) from error
