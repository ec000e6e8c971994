"""The model card and the README of the Space: what the model is, on what it was trained and how, in words for strangers.

Every figure is the run's. It deliberately names nothing of the machine that trained: of paths, the file's name only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_nb_utils import markdown
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.results.verdict import UNKNOWN, count, loss_text
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.training.run_log import Row
from gpt2_nb_utils.training.verbatim import Recalled

TITLE = "GPT-2 trained to know one text by heart"
SHORT_DESCRIPTION = "From random weights to one text, known by heart"
"""A Space shows 60 characters of it at most."""
PYTHON = "3.11"
"""The version with which the Space is tested; without one a Space takes an older default."""

_LICENCES = {
    "course": "It holds scenes from the plays of William Shakespeare (1564 to 1616), which are in the public domain.",
    "demo": "It is the documentation of Python, under the Python Software Foundation License Version 2.",
    "other": "Its licence is not on record. The model may say any part of it word for word: publish the model only where you may publish the text.",
}


@dataclass(frozen=True)
class Described:
    """What is said about a model.

    Attributes:
        summary: content of the run's summary.json, with the best loss of the very checkpoint that is exported, and of the corpus's
            path the file name only.
        config: the settings of the run.
        rows: its metrics.
        recalled: what it knew by heart when these weights were measured, if that is on record.
        training_run: what config.json of the export says of the run.
        dtype: number format of the stored weights.
    """

    summary: dict[str, Any]
    config: RunConfig
    rows: list[Row]
    recalled: Recalled | None
    training_run: dict[str, Any]
    dtype: str


def model_card(about: Described) -> str:
    """The README.md of the exported model, with the header that the Hub reads."""
    corpus = about.summary.get("corpus") or {}
    kind = (
        "course"
        if corpus.get("is_course_input") is True
        else "demo"
        if corpus.get("source") == "demo"
        else "other"
    )
    return _render(
        "model_card.md.j2",
        about,
        english=kind != "other",
        licence=_LICENCES[kind],
        target=about.training_run["target_loss"],
        prompt=about.config.prompt,
        new_tokens=min(about.config.max_new_tokens, max(1, about.config.seq_len // 2)),
        seq_len=about.training_run["seq_len"],
        block_size=about.config.block_size,
        dtype=about.dtype,
        recalled=about.recalled,
        knows=_below_its_target(about),
        text_table=markdown.table(("", "its text"), _text(about)),
        recipe_table=markdown.table(("", "its run"), _recipe(about)),
    )


def space_readme(about: Described, gradio: str) -> str:
    """The README.md of the Space, with the header from which Hugging Face builds it.

    Args:
        gradio: the version of Gradio, which must be that of requirements.txt: a Space installs both.
    """
    return _render(
        "space_readme.md.j2",
        about,
        title=TITLE,
        short_description=SHORT_DESCRIPTION,
        gradio=gradio,
        python=PYTHON,
        text=f"{about.training_run['corpus']['name']}, {count(about.training_run['corpus']['tokens'])} tokens",
    )


def _below_its_target(about: Described) -> bool:
    """Whether the loss that was measured of these weights, over all of their text, is below the run's target."""
    loss = about.training_run["train_loss"]
    return loss is not None and loss < about.training_run["target_loss"]


def _render(template: str, about: Described, **content: Any) -> str:
    config = about.config
    conditions = verdict.conditions(about.summary, config.model_dump(), about.rows)
    sizes = (
        f"GPT-2 ({count(about.training_run['n_params'])} parameters: {config.n_layer} layers, {config.n_head} heads, "
        f"{config.n_embd} wide)"
    )
    caveat = verdict.corpus_caveat({**about.summary, "config": config.model_dump()})
    return (
        _environment()
        .get_template(template)
        .render(
            sizes=sizes,
            verdict=f"{verdict.headline(conditions)}. {verdict.explanation(conditions)}",
            caveat=caveat,
            **content,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown.text, code=_as_code)
    return environment


def _as_code(text: str) -> str:
    """A text as a literal of Python that stays inside its fence: without back-ticks, line ends and what a terminal acts on."""
    return ascii(visible(text)).replace("`", "\\x60")


def _text(about: Described) -> list[tuple[str, str]]:
    corpus, said = about.summary.get("corpus") or {}, about.training_run["corpus"]
    rows = [
        ("File", said["name"]),
        ("Size", f"{count(said['tokens'])} tokens of GPT-2's vocabulary"),
    ]
    if about.config.max_tokens:
        rows.append(("Excerpt", "the first tokens of the file only"))
    else:
        rows.append(("Characters", count(corpus.get("chars"))))
    return [*rows, ("sha256 of the text", said["sha256"])]


def _recipe(about: Described) -> list[tuple[str, str]]:
    """How the run went; of these weights, which may be older than its end, is the loss alone."""
    summary, config, run = about.summary, about.config, about.training_run
    amp = summary.get("amp") or UNKNOWN
    rates = f"learning rate {config.lr:g}"
    rates += f", of the embeddings {config.embedding_lr:g}" if config.embedding_lr else ""
    rates += f", of biases and norms {config.vector_lr:g}" if config.vector_lr else ""
    if config.optimizer == "muon":
        rates += f", Muon's momentum {config.momentum:g}"
    rates += f", AdamW's betas {config.beta1:g} and {config.beta2:g}"
    schedule = f"{config.lr_schedule} over at most {count(config.steps)} steps"
    if config.lr_schedule == "wsd":
        schedule += f", decay over the last {config.decay_share:.3g} of them"
    if config.lr_schedule != "constant":
        schedule += f", down to {config.min_lr_ratio:g}{' of the peak' * (config.min_lr_ratio > 0)}"
    loss = (
        "not measured"
        if summary.get("best_train_loss") is None
        else (
            f"{loss_text(summary['best_train_loss'])} ({verdict.extent(summary.get('best_train_loss_windows'), config.max_tokens)})"
        )
    )
    measured = (
        ""
        if summary.get("best_train_loss") is None
        else (
            f"; measured by the run, in {config.amp if config.amp != 'auto' else amp}"
            + f", before the weights were rounded to {about.dtype}" * (about.dtype != "float32")
        )
    )
    seconds = summary.get("seconds")
    return [
        ("Training loss of these weights", f"{loss}, at step {count(run['steps'])}{measured}"),
        ("A step", f"{count(config.tokens_per_step)} tokens in windows of {config.seq_len}"),
        (
            "Epochs of the whole run",
            UNKNOWN if summary.get("epoch") is None else f"{summary['epoch']:.3g}",
        ),
        (
            "Optimizer",
            f"{config.optimizer}, {rates}, weight decay {config.weight_decay:g}, "
            f"{f'gradients clipped at {config.clip_grad:g}' if config.clip_grad else 'gradients not clipped'}",
        ),
        ("Schedule", f"{count(config.warmup_steps)} steps of warm-up, {schedule}"),
        ("Seed", str(config.seed)),
        (
            "Machine",
            f"{summary.get('device') or UNKNOWN}, {amp}, torch {summary.get('torch') or UNKNOWN}",
        ),
        (
            "Time in training steps of the whole run",
            UNKNOWN if seconds is None else duration(seconds),
        ),
    ]
