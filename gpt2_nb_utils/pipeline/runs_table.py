"""Several runs side by side, a line each: what a preset costs and what it reaches, from the runs that show it.

It knows the summaries of runs and Markdown tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.pipeline import markdown
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.results.verdict import count, loss_text, measured_on
from gpt2_nb_utils.run_directory import RunDirectory

_HEAD = ("run", "parameters", "tokens of text", "tokens a step", "epochs", "tokens seen", "training", "machine", "training loss")


def runs_table(folder: Path) -> str:
    """A Markdown table of all runs in a folder, in the order of their names.

    Args:
        folder: its subfolders are run directories; those without a readable summary are left out.
    """
    rows = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        try:
            rows.append(_row(path.name, RunDirectory(str(path)).read_summary()))
        except UserError:
            continue  # no run
    return markdown.table(_HEAD, rows)


def _row(name: str, summary: dict[str, Any]) -> list[str]:
    config, corpus = summary.get("config") or {}, summary.get("corpus") or {}
    per_step = [config.get(part) for part in ("batch_size", "seq_len", "grad_accum")]
    best = summary.get("best_train_loss")
    measured = measured_on({**summary, "train_loss": best, "train_loss_windows": summary.get("best_train_loss_windows")})
    reached = "target reached" if summary.get("target_reached") else "target not reached"
    return [
        name, count(summary.get("n_params")), count(corpus.get("tokens")),
        count(per_step[0] * per_step[1] * per_step[2]) if all(per_step) else "–",
        "–" if summary.get("epoch") is None else f"{summary['epoch']:.2f}", count(summary.get("tokens_seen")),
        "–" if summary.get("seconds") is None else duration(summary["seconds"]),
        f"{summary.get('device')}, {summary.get('amp')}",
        "not measured" if best is None else f"{loss_text(best)} ({measured}): {reached}",
    ]
