"""The two logs of a run: `train.log` for a person, `train_metrics.csv` for a program."""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Iterator

from gpt2_nb_utils.errors import NotWritten
from gpt2_nb_utils.plain_text import one_line
from gpt2_nb_utils.run_directory import write_atomically

COLUMNS = ("step", "epoch", "tokens", "loss", "train_loss", "lr", "grad_norm", "loss_scale", "tok_per_s", "elapsed_s")


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


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `train_metrics.csv`; a line that a kill cut short, or without a step, is left out."""
    rows = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file):
                try:
                    values = {name: float(cells[name]) if cells[name] else None for name in COLUMNS}
                    rows.append(Row(**{**values, "step": int(values["step"]), "tokens": int(values["tokens"])}))
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


class RunLog:
    """Appends to both logs of a run. What cannot be written is a `NotWritten`.

    Args:
        log: path of train.log.
        metrics: path of train_metrics.csv.
        step: steps done by the checkpoint from which the run goes on (0 for a new run): rows after it belong to
            work that was lost, will be done again, and are dropped.
    """

    def __init__(self, log: Path, metrics: Path, step: int | None = None):
        self._log, self._metrics = log, metrics
        kept = []
        with written(metrics):
            if metrics.exists() and step is not None:
                with metrics.open(encoding="utf-8", newline="") as file:
                    lines = list(csv.reader(file))[1:]
                kept = [cells for cells in lines if len(cells) == len(COLUMNS) and cells[0].isdecimal() and int(cells[0]) <= step]
            write_atomically(metrics, "".join(",".join(cells) + "\n" for cells in [COLUMNS, *kept]))
        if step is None:
            with written(log):
                log.unlink(missing_ok=True)

    def line(self, text: str) -> None:
        """Append a timestamped line to train.log."""
        with written(self._log):
            append_line(self._log, text)

    def row(self, row: Row) -> None:
        """Append a row to train_metrics.csv."""
        with written(self._metrics), self._metrics.open("a", encoding="utf-8", newline="") as file:
            file.write(",".join(row.cells()) + "\n")


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """A context in which a record of a run is written: what stands in the way is told in a line.

    Raises:
        NotWritten: the disk is full, or the folder cannot be written or is gone.
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(path, error, kept="the last good checkpoint is kept, and --resume auto goes on from it") from error
