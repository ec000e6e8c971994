"""The pictures of a run with their captions and their texts for those who cannot see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt2_nb_utils.results.facts import RunFacts

_MAIN = "loss"
_CAPTIONS = {
    _MAIN: "Loss over the steps of training",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}


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
    for path in filter(Path.is_file, sorted(facts.record.directory.figures.glob("*.png"))):
        words = path.stem.replace("_", " ").replace("-", " ").strip()
        caption = _CAPTIONS.get(path.stem, words[:1].upper() + words[1:])
        otherwise = facts.curve_in_words() if path.stem == _MAIN else f"Figure: {caption}"
        found.append(Figure(path, caption, _alternative_text(path) or otherwise))
    return sorted(found, key=lambda figure: not figure.is_main)


def _alternative_text(path: Path) -> str | None:
    """What `figures.style.png` wrote into the picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Description")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # no picture, or a damaged one
