"""Several runs side by side, a line each: what a preset costs and what it reaches, from the runs that show it.

It knows the summaries of runs and Markdown tables; whether a run counts, it takes from `results.verdict`.
"""

from __future__ import annotations

from pathlib import Path

from gpt2_nb_utils import markdown
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.report.run_facts import RunFacts, read_run
from gpt2_nb_utils.results.verdict import count
from gpt2_nb_utils.run_directory import RunDirectory

_HEAD = (
    "run",
    "text",
    "parameters",
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
    rows = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        try:
            rows.append(_row(path.name, read_run(RunDirectory(str(path)))))
        except (UserError, OSError, ValueError, TypeError, AttributeError):
            continue  # no run, or a damaged one: the table of the others is worth having
    return markdown.table(_HEAD, rows)


def _row(name: str, facts: RunFacts) -> list[str]:
    summary, config = facts.summary, facts.config
    per_step = [config.get(part) for part in ("batch_size", "seq_len", "grad_accum")]
    return [
        name,
        _text(facts),
        count(summary.get("n_params")),
        count(per_step[0] * per_step[1] * per_step[2]) if all(per_step) else "–",
        "–" if summary.get("epoch") is None else f"{summary['epoch']:.2f}",
        count(summary.get("tokens_seen")),
        "–" if summary.get("seconds") is None else duration(summary["seconds"]),
        f"{summary.get('device')}, {summary.get('amp')}",
        facts.best_training_loss,
        "reached" if facts.reached else "not reached",
    ]


def _text(facts: RunFacts) -> str:
    """Which text, and how much of it."""
    size = f"{count((facts.summary.get('corpus') or {}).get('tokens'))} tokens"
    return f"{facts.text}, {'first ' if facts.config.get('max_tokens') else ''}{size}"
