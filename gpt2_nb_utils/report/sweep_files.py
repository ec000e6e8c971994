"""The files of a sweep, made from its run directories: table.csv, table.md, curves.csv and curves.png.

It knows what the directories of the runs hold now, finished or not. It deliberately trains nothing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from gpt2_nb_utils import markdown
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report.sweep_spec import Spec
from gpt2_nb_utils.results.verdict import count, loss_text
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import recipe_figures
from gpt2_nb_utils.training.run_log import read_metrics
from gpt2_nb_utils.training.sweep_results import Outcome, Sweep, best_first, write_sweep

MARKDOWN, FIGURE = "table.md", "curves.png"


def write_files(spec: Spec, out_dir: Path) -> list[Outcome]:
    """Write the four files, each whole or not at all.

    Returns:
        The rows of the table.
    """
    outcomes = best_first(
        [_outcome(name, config, spec.varying) for name, config in spec.runs.items()]
    )
    curves = {
        name: read_metrics(RunDirectory(config.out_dir).metrics)
        for name, config in spec.runs.items()
    }
    result = Sweep(outcomes, curves)
    write_sweep(out_dir, result)
    corpus, is_demo = _corpus(spec)
    write_atomically(out_dir / MARKDOWN, _as_markdown(spec, outcomes, corpus))
    title = f"{spec.title} (demonstration corpus)".strip() if is_demo else spec.title
    figure = recipe_figures.curves(
        result, min(config.target_loss for config in spec.runs.values()), title
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    write_atomically(out_dir / FIGURE, picture.getvalue())
    return outcomes


def _outcome(name: str, config: RunConfig, varying: list[str]) -> Outcome:
    settings = {setting: _cell(getattr(config, setting)) for setting in varying}
    directory = RunDirectory(config.out_dir)
    if not directory.summary.exists():
        return Outcome(name, settings, config.tokens_per_step)
    summary = directory.read_summary()
    measured = summary["train_loss"] is not None and summary["train_loss_step"] == summary["step"]
    status = (
        "interrupted" if summary["status"] == "running" else summary["status"]
    )  # none is running now: it was killed
    return Outcome(
        name,
        settings,
        config.tokens_per_step,
        summary["tokens_seen"],
        summary["epoch"],
        summary["seconds"],
        summary["train_loss"] if measured else None,
        str(summary["train_loss_windows"]) if measured else None,
        status,
        summary.get("reason", ""),
    )


def _cell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _corpus(spec: Spec) -> tuple[str, bool]:
    """What the runs were trained on, in words, and whether that was the demonstration corpus."""
    for config in spec.runs.values():
        directory = RunDirectory(config.out_dir)
        if directory.summary.exists():
            corpus = directory.read_summary()["corpus"]
            is_demo = corpus["source"] == "demo"
            text = (
                "the demonstration corpus, not the course's input.txt"
                if is_demo
                else Path(corpus["path"]).name
            )
            return (
                f"{text} (sha256 {corpus['sha256'][:12]}…), {count(corpus['tokens'])} tokens",
                is_demo,
            )
    return "nothing yet", False


def _as_markdown(spec: Spec, outcomes: list[Outcome], corpus: str) -> str:
    """The table for a person, with what it takes to read it."""

    def cells(outcome: Outcome) -> list[str]:
        loss = "–" if outcome.train_loss is None else loss_text(outcome.train_loss)
        forms = ((outcome.tokens, ",.0f"), (outcome.epochs, ".2f"), (outcome.seconds, ",.1f"))
        numbers = ["–" if value is None else format(value, form) for value, form in forms]
        return [
            outcome.name,
            *outcome.settings.values(),
            f"{outcome.tokens_per_step:,}",
            *numbers,
            loss,
            outcome.train_loss_windows or "–",
            outcome.status.replace("_", " "),
        ]

    head = [
        "run",
        *spec.varying,
        "tokens per step",
        "tokens",
        "epochs",
        "seconds",
        "training loss",
        "windows",
        "status",
    ]
    common = (
        ", ".join(
            f"{name} {_cell(value)}"
            for name, value in spec.common.items()
            if name not in spec.varying
        )
        or "none"
    )
    notes = [
        "Best first: runs that reached the target by the tokens they took, the others by the training loss at their end."
    ]
    if "seq_len" in spec.varying:
        notes.append(
            "The training loss is measured on windows of each run's own seq_len: shorter ones make it harder."
        )
    failures = [
        f"- {markdown.text(outcome.name)} failed: {markdown.text(outcome.reason)}"
        for outcome in outcomes
        if outcome.status == "failed"
    ]
    parts = [
        f"# {markdown.text(spec.title or 'Sweep')}",
        f"Trained on {markdown.text(corpus)}.",
        f"Settings of all runs: {markdown.text(common)}.",
        " ".join(notes),
        markdown.table(head, map(cells, outcomes)),
    ]
    return "\n\n".join([*parts, "\n".join(failures)]).rstrip("\n") + "\n"
