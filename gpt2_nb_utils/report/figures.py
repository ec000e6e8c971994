"""The pictures of a run with their captions and their texts for those who cannot see them.

It knows the run's `figures/` and where alternative texts are kept (the executed notebooks). It deliberately
does not draw.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_nb_utils.report.run_facts import RunFacts

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
    told = dict(_alternative_texts(facts.run.notebooks))
    paths = sorted(
        facts.run.figures.glob("*.png"), key=lambda path: (path.stem != _MAIN, path.name)
    )
    found = []
    for path in paths:
        words = path.stem.replace("_", " ").replace("-", " ").strip()
        caption = _CAPTIONS.get(path.stem, words[:1].upper() + words[1:])
        alt = told.get(path.read_bytes()) or (
            facts.curve_in_words() if path.stem == _MAIN else f"Figure: {caption}"
        )
        found.append(Figure(path, caption, alt))
    return found


def _alternative_texts(folder: Path) -> Iterator[tuple[bytes, str]]:
    """(picture, text) of every figure that a notebook shows: `notebook.show` writes the same bytes to `figures/`."""
    for path in sorted(folder.glob("*.ipynb")):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            for output in (output for cell in cells for output in cell.get("outputs", [])):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt")
                if alt:
                    yield base64.b64decode(_joined(output["data"]["image/png"])), alt
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # half a notebook: the report says so, a missing text here is no reason to stop


def _joined(lines: Any) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
