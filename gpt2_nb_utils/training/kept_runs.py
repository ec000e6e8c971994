"""What to expect of a preset: the runs whose evidence is kept under out/reference, side by side for notebook 03.

It shows what their summaries recorded. It deliberately passes no verdict: whether a run counts is notebook 04's business.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from IPython.display import HTML

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.display import table
from gpt2_nb_utils.training.corpus_loss import describe_windows

FOLDER = Path(__file__).resolve().parents[2] / "out" / "reference"


def kept_runs(folder: Path = FOLDER) -> HTML:
    """A line per kept run: its preset and amount of text, and the epochs, tokens and time after which it had which loss.

    Args:
        folder: its subfolders are run directories; what is none is left out.
    """
    rows = []
    for path in sorted(folder.glob("*/summary.json")):
        try:
            rows.append(_row(path.parent.name, RunDirectory(str(path.parent)).read_summary()))
        except (UserError, KeyError, TypeError, ValueError):
            continue  # damaged: the others are worth showing
    if not rows:
        return HTML(f"No runs are kept in {html.escape(folder.name)}.")
    return table(
        (
            "run",
            "preset",
            "tokens of text",
            "epochs",
            "tokens seen",
            "training",
            "on",
            "training loss",
        ),
        rows,
    )


def _row(name: str, summary: dict[str, Any]) -> tuple[Any, ...]:
    config = summary["config"]
    loss = summary["best_train_loss"]
    measured = describe_windows(summary["best_train_loss_windows"], config["max_tokens"])
    return (
        name,
        summary["preset"],
        summary["corpus"]["tokens"],
        f"{summary['epoch']:.2f}",
        summary["tokens_seen"],
        duration(summary["seconds"]),
        f"{summary['device']}, {summary['amp']}",
        "not measured" if loss is None else f"{loss:.4f} ({measured})",
    )
