"""What a sweep leaves behind: a row for each run in `table.csv`, the curves of all runs in `curves.csv`.

It knows these two files, in both directions, and in which order runs stand. It deliberately trains, draws and explains
nothing: `report.sweep` makes the files, `recipe` and `recipe_figures` show them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.training.run_log import COLUMNS, Row

REFERENCE = Path(__file__).resolve().parents[2] / "out" / "reference" / "sweep"
"""The committed sweep that notebook 03 shows."""
TABLE, CURVES = "table.csv", "curves.csv"
FINISHED = ("target_reached", "steps_done")
_CURVE_COLUMNS = ("name", *COLUMNS[:5])  # step, epoch, tokens, loss, train_loss


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended; None is an empty cell of `table.csv`.

    Attributes:
        name: of the run, and of its directory.
        settings: name and value, as text, of those that differ between the runs of the sweep.
        tokens_per_step: tokens that one update sees.
        tokens: predictions trained on.
        epochs: the same in rounds through the text.
        seconds: time spent on training steps.
        train_loss: training loss measured at the last step, nats per token.
        train_loss_windows: `all`, or on how many windows that was.
        status: as in summary.json, or `not started`.
        reason: why it failed, in a line.
    """

    name: str
    settings: dict[str, str]
    tokens_per_step: int
    tokens: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    train_loss: float | None = None
    train_loss_windows: str | None = None
    status: str = "not started"
    reason: str = ""

    @property
    def ranked(self) -> bool:
        """Whether it came to its end, with a loss that can be compared."""
        return self.status in FINISHED and self.train_loss is not None


_AFTER_SETTINGS = tuple(field.name for field in fields(Outcome))[2:]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its two files tell it.

    Attributes:
        outcomes: a row for each run, the best first.
        curves: the rows of the metrics of each run, by its name.
    """

    outcomes: list[Outcome]
    curves: dict[str, list[Row]]

    @property
    def best(self) -> Outcome | None:
        """The run that won; None where none came to its end."""
        return self.outcomes[0] if self.outcomes and self.outcomes[0].ranked else None

    @property
    def base(self) -> Outcome | None:
        """The run from which all others differ least: the one that a spec varies, one thing at a time."""
        return min(
            self.outcomes,
            key=lambda one: sum(len(different(one, other)) for other in self.outcomes),
            default=None,
        )


def different(outcome: Outcome, other: Outcome) -> list[str]:
    """The names of the settings in which two runs differ."""
    return [name for name, value in outcome.settings.items() if value != other.settings[name]]


def best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Runs that reached the target, by the tokens they took; then the others by training loss; then what did not finish."""

    def place(outcome: Outcome) -> tuple[int, float]:
        if not outcome.ranked:
            return 2, 0.0
        return (
            (0, outcome.tokens) if outcome.status == "target_reached" else (1, outcome.train_loss)
        )

    return sorted(outcomes, key=place)


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write `table.csv` and `curves.csv`, each whole or not at all."""
    settings = list(sweep.outcomes[0].settings)
    rows = [
        [
            outcome.name,
            *outcome.settings.values(),
            *(getattr(outcome, name) for name in _AFTER_SETTINGS),
        ]
        for outcome in sweep.outcomes
    ]
    write_atomically(folder / TABLE, _csv([["name", *settings, *_AFTER_SETTINGS], *rows]))
    points = [[name, *row.cells()[:5]] for name, curve in sweep.curves.items() for row in curve]
    write_atomically(folder / CURVES, _csv([_CURVE_COLUMNS, *points]))


def read_sweep(folder: Path = REFERENCE) -> Sweep:
    """Read what `write_sweep` wrote.

    Raises:
        UserError: one of the files is missing or damaged.
    """
    head, *rows = _read_csv(folder, TABLE)
    settings = head[1 : -len(_AFTER_SETTINGS)]
    if (head[:1], tuple(head[1 + len(settings) :])) != (["name"], _AFTER_SETTINGS):
        raise _damaged(TABLE, "its first line names other columns")
    curve_head, *points = _read_csv(folder, CURVES)
    if tuple(curve_head) != _CURVE_COLUMNS:
        raise _damaged(CURVES, "its first line names other columns")
    try:
        outcomes = [_outcome(settings, cells) for cells in rows]
        curves: dict[str, list[Row]] = {outcome.name: [] for outcome in outcomes}
        for name, step, epoch, tokens, *losses in points:
            loss, train_loss = map(_number, losses)
            curves[name].append(Row(int(step), float(epoch), int(tokens), loss, train_loss))
    except (ValueError, KeyError) as error:
        raise _damaged(f"{TABLE} or {CURVES}", f"{type(error).__name__}: {error}") from None
    return Sweep(best_first(outcomes), curves)


def read_sweep_or_say(folder: Path = REFERENCE) -> tuple[Sweep | None, str]:
    """A sweep with a sentence about it; None and what is missing where it cannot be read."""
    try:
        sweep = read_sweep(folder)
    except UserError as error:
        return None, str(error)
    finished = [outcome for outcome in sweep.outcomes if outcome.ranked]
    said = f"{len(sweep.outcomes)} runs, {len(finished)} of which came to their end"
    if finished:
        least, most = (bound(outcome.epochs for outcome in finished) for bound in (min, max))
        said += (
            f", after {least:.3g} epochs"
            if most - least < 0.01
            else f", after {least:.3g} to {most:.3g} epochs"
        )
    return sweep, f"{said}."


def _outcome(settings: Sequence[str], cells: Sequence[str]) -> Outcome:
    name, values, after = cells[0], cells[1 : 1 + len(settings)], cells[1 + len(settings) :]
    per_step, tokens, epochs, seconds, loss, windows, status, reason = after
    return Outcome(
        name,
        dict(zip(settings, values)),
        int(per_step),
        int(tokens) if tokens else None,
        _number(epochs),
        _number(seconds),
        _number(loss),
        windows or None,
        status,
        reason,
    )


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    for row in rows:
        line = io.StringIO()
        csv.writer(line).writerow(
            map(_inert, row)
        )  # its line end is the one that makes it quote a carriage return; None is an empty cell
        text.write(line.getvalue().removesuffix("\r\n") + "\n")
    return text.getvalue()


def _inert(cell: Any) -> Any:
    """The cell, with an apostrophe before a text that a spreadsheet would compute; `_read_csv` takes it off again."""
    return (
        f"'{cell}"
        if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "'"))
        else cell
    )


def _read_csv(folder: Path, name: str) -> list[list[str]]:
    try:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = [
                [cell.removeprefix("'") for cell in cells] for cells in csv.reader(file) if cells
            ]
    except FileNotFoundError:
        raise UserError(
            f"the sweep's {name} is missing: `python -m gpt2_nb_utils sweep out/reference/sweep/recipe.toml` makes "
            f"one in out/sweep; copy its {TABLE} and {CURVES} to out/reference/sweep"
        ) from None
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8
        raise _damaged(name, type(error).__name__) from None
    if not rows or any(len(cells) != len(rows[0]) for cells in rows):
        raise _damaged(name, "a line was cut short" if rows else "it is empty")
    return rows


def _damaged(name: str, why: str) -> UserError:
    return UserError(
        f"the sweep's {name} cannot be read ({why}): restore it, or run the sweep again"
    )
