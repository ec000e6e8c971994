"""The results of a sweep, written to `results.json`: how each run ended, and its loss by step."""

from __future__ import annotations

import statistics
from dataclasses import field
from pathlib import Path

import pydantic
from pydantic.dataclasses import dataclass

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.training.records import Row

REFERENCE = Path(__file__).resolve().parents[2] / "out" / "reference" / "sweep"
"""The committed sweep that notebook 03 shows."""
RESULTS = "results.json"
FINISHED = ("target_reached", "steps_done")


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended: its settings, then what its `summary.json` says.

    Attributes:
        name: of the run, and of its directory.
        settings: name and value, as text, of those that differ between the runs of the sweep.
        tokens_per_step: tokens that one update sees.
        tokens_seen: predictions trained on.
        epoch: passes over the text.
        seconds: time spent on training steps.
        train_loss: training loss as last measured, nats per token; at the last step if it finished.
        train_loss_windows: `all`, or on how many windows that was.
        status: as in summary.json, or `not started`.
        reason: why it failed, in a line.
    """

    name: str
    settings: dict[str, str]
    tokens_per_step: int
    tokens_seen: int = 0
    epoch: float = 0.0
    seconds: float = 0.0
    train_loss: float | None = None
    train_loss_windows: int | str | None = None
    status: str = "not started"
    reason: str = ""

    @property
    def ranked(self) -> bool:
        """Whether it finished, so that its loss can be compared."""
        return self.status in FINISHED

    @property
    def ending(self) -> str:
        """Its status, and why it failed, in words."""
        return f"{self.status.replace('_', ' ')}{self.reason and ': '}{self.reason}"

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: runs that reached the target by their tokens, the others by loss, then the
        rest."""
        if not self.ranked:
            return 2, 0.0
        return (0, self.tokens_seen) if self.status == "target_reached" else (1, self.train_loss)


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Attributes:
        outcomes: one for each run, the best first.
        curves: the rows of the metrics of each run, by its name.
        title: the question that the sweep asks.
        corpus: what the runs were trained on, in a line.
        common: the settings that the spec gives to all runs and no run changes, in a line.
    """

    outcomes: list[Outcome]
    curves: dict[str, list[Row]] = field(default_factory=dict)
    title: str = ""
    corpus: str = ""
    common: str = ""

    @property
    def finished(self) -> list[Outcome]:
        """The runs that can be compared, the best first."""
        return [outcome for outcome in self.outcomes if outcome.ranked]

    @property
    def best(self) -> Outcome | None:
        """The winner; None where no run finished."""
        return next(iter(self.finished), None)

    def changes(self, outcome: Outcome) -> str:
        """The settings in which a run differs from most others: `lr 0.01 (not 0.03), steps 9 (not
        8)`."""
        changed = []
        for name, value in outcome.settings.items():
            usual = statistics.mode(other.settings[name] for other in self.outcomes)
            if value != usual:
                changed.append(f"{name} {value} (not {usual})")
        return ", ".join(changed)


_JSON = pydantic.TypeAdapter(Sweep)


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write `results.json`, completely or not at all."""
    write_atomically(folder / RESULTS, _JSON.dump_json(sweep, exclude_defaults=True))


def read_sweep(folder: Path = REFERENCE) -> Sweep:
    """Read what `write_sweep` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return _JSON.validate_json((folder / RESULTS).read_bytes())
    except (OSError, ValueError) as error:  # a ValidationError of pydantic is a ValueError
        raise UserError(
            f"the sweep's {RESULTS} is missing or damaged ({type(error).__name__}): make it again "
            f"with `python -m gpt2_nb_utils sweep out/reference/sweep/recipe.toml`, and copy it "
            f"from out/sweep to out/reference/sweep"
        ) from None
