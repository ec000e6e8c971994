"""The pictures of a run with their captions and their texts for those who cannot see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gpt2_nb_utils.results.facts import RunFacts

_MAIN = "loss"
_CAPTIONS = {
    _MAIN: "Loss over the steps of training",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}
_METRICS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".3f"),
    "batch loss": ("loss", ".4f"),
    "training loss": ("train_loss", ".4f"),
    "learning rate": ("lr", ".2e"),
    "gradient norm": ("grad_norm", ".2f"),
    "tokens/s": ("tok_per_s", ",.0f"),
}
"""Columns of the table of metrics: what each shows of a row, and in which form."""


@dataclass(frozen=True)
class Figure:
    """One picture: its file, its caption and its alternative text."""

    path: Path
    caption: str
    alt: str

    @property
    def is_main(self) -> bool:
        """Whether this is the loss curve."""
        return self.path.stem == _MAIN


def figures(facts: RunFacts) -> list[Figure]:
    """All PNG files of the run's `figures/`, the loss curve first."""
    found = []
    for path in filter(Path.is_file, facts.record.directory.figures.glob("*.png")):
        caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " ").capitalize())
        otherwise = facts.curve_in_words() if path.stem == _MAIN else f"Figure: {caption}"
        found.append(Figure(path, caption, _alternative_text(path) or otherwise))
    return sorted(found, key=lambda figure: (not figure.is_main, figure.path))


def _alternative_text(path: Path) -> str | None:
    """What `figures.style.png` wrote into the picture."""
    try:
        with Image.open(path) as image:
            return image.info.get("Description")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # no picture, or a damaged one


def metrics_table(facts: RunFacts, at_most: int) -> list[list[str]]:
    """The head of a table of metrics and its rows, spread over the run; a dash where none is."""
    table = [list(_METRICS)]
    for row in facts.metric_rows(at_most):
        values = [(getattr(row, name), form) for name, form in _METRICS.values()]
        table.append(["–" if value is None else format(value, form) for value, form in values])
    return table
