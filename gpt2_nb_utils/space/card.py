"""The model card and the README of the Space: what the model is, on what it was trained and how, for readers from elsewhere.

The text is in `templates/`; every figure in it is the run's. No path of the machine that trained is named, only the file's name.
"""

from __future__ import annotations

from typing import Any

from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.space.export import Export
from gpt2_nb_utils.space.rendering import render


def model_card(export: Export) -> str:
    """The README.md of the exported model, with the header that the Hub reads."""
    return render("model_card.md", **_facts(export))


def space_readme(export: Export, gradio: str) -> str:
    """The README.md of the Space, with the header from which Hugging Face builds it.

    Args:
        gradio: the version of Gradio, which must be that of requirements.txt: a Space installs both.
    """
    return render("space_readme.md", **_facts(export), gradio=gradio)


def _facts(export: Export) -> dict[str, Any]:
    run = export.run
    conditions = verdict.conditions(run)
    return {
        "verdict": f"{verdict.headline(conditions)}. {verdict.explanation(conditions)}",
        "caveat": verdict.corpus_caveat(run),
        "extent": verdict.measured_on(run, run.summary.best_measured),
        "export": export,
    }
