"""Several runs side by side, a line each: what a preset costs and what it reaches."""

from __future__ import annotations

import html
from pathlib import Path

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures.html import HTML, table
from gpt2_nb_utils.results.facts import RunFacts
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.text import markdown_table
from gpt2_nb_utils.wording import count, duration

KEPT = Path(__file__).resolve().parents[2] / "out" / "reference"
"""The runs whose evidence is kept beside the package."""
_HEAD = (
    "run",
    "preset",
    "text",
    "tokens a step",
    "epochs",
    "tokens seen",
    "training",
    "machine",
    "training loss",
    "course target",
)


def runs_table(folder: Path) -> str:
    """A Markdown table of all runs in a folder, in the order of their names.

    Args:
        folder: its subfolders are run directories; what is none, or cannot be read, is left out.
    """
    return markdown_table(_HEAD, _rows(folder))


def kept_runs(folder: Path = KEPT) -> HTML:
    """The same table for a notebook."""
    rows = _rows(folder)
    return table(_HEAD, rows) if rows else HTML(f"No runs are kept in {html.escape(folder.name)}.")


def _rows(folder: Path) -> list[list[str]]:
    rows = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            rows.append(_row(path.name, RunFacts(read_record(path))))
        except UserError:
            continue  # no run, or a damaged one: the table of the others is worth having
    return rows


def _row(name: str, facts: RunFacts) -> list[str]:
    run, excerpt = facts.summary, "first " if facts.record.setting("max_tokens") else ""
    text = facts.course if facts.on_course_file else facts.text
    return [
        name,
        run.preset or "–",
        f"{text}, {excerpt}{count(run.corpus.tokens)} tokens",
        "–" if facts.tokens_per_step is None else count(facts.tokens_per_step),
        "–" if run.epoch is None else f"{run.epoch:.2f}",
        count(run.tokens_seen),
        "–" if run.seconds is None else duration(run.seconds),
        f"{run.device}, {run.amp}",
        facts.best_training_loss,
        "reached" if facts.reached else "not reached",
    ]
