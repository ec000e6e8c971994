"""The grader's report: `report/index.html`, the text token by token and one page per executed notebook, readable from a
mail attachment.

It reads a run directory and writes its `report/`; nothing is trained or executed, and nothing is judged here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from gpt2_nb_utils.errors import NotWritten
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report.answers import answers
from gpt2_nb_utils.report.figures import figures, loss_curve, metrics_table, other_curves
from gpt2_nb_utils.report.html_page import data_url, render
from gpt2_nb_utils.report.notebook_html import (
    execution,
    notebook_body,
    read_notebook,
)
from gpt2_nb_utils.report.safe_html import in_order, safe_html
from gpt2_nb_utils.report.token_page import FILE as TOKENS_FILE
from gpt2_nb_utils.report.token_page import token_page
from gpt2_nb_utils.results.facts import RunFacts, read_facts
from gpt2_nb_utils.results.recall import growth_table, growth_text, recorded
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import decode
from gpt2_nb_utils.training.records import Sample

LARGEST_PAGE = 3_000_000
"""Bytes that a page may have; a larger one is written with smaller pictures, or less of the text."""
_REST_OF_TOKEN_PAGE = 100_000
"""Bytes of that page besides its text: styles, tables, headings."""
_MOST_STEPS = 24
"""Steps whose samples the first page shows."""


def build_report(run: RunDirectory) -> Path:
    """Write the report of a run, finished or not, from what its directory holds.

    Returns:
        the path of `report/index.html`.

    Raises:
        UserError: the directory holds no readable `summary.json`, or cannot be written.
    """
    facts = read_facts(run)
    name = run.path.resolve().name
    notebooks, unreadable = {}, []
    for path in sorted(run.notebooks.glob("0*.ipynb")):
        try:
            notebooks[path.stem] = read_notebook(path)
        except ValueError:
            unreadable.append(path.name)
    tokens = facts.token_losses and token_page(
        facts.token_losses, LARGEST_PAGE - _REST_OF_TOKEN_PAGE
    )
    links = {"index.html": "Overview"}
    if tokens:
        links[TOKENS_FILE] = "Token by token"
    links |= {f"{stem}.html": stem.lstrip("0").replace("_", " ").title() for stem in notebooks}

    def write(
        file: str, template: str, content: Callable[[bool], dict[str, Any]]
    ) -> dict[str, Any]:
        """Write a page, with small pictures where it is too large to be mailed and opened at once."""
        for small in (False, True):
            shown = {**content(small), "current": file, "label": links[file]}
            html = render(template, links=list(links.items()), **shown)
            page = html.encode("utf-8", errors="replace")  # half a surrogate pair, from a notebook
            if len(page) < LARGEST_PAGE:
                break
        try:
            write_atomically(run.report / file, page)
        except OSError as error:  # on a read-only folder, for one
            raise NotWritten(run.report / file, error, flag="RUN_DIR") from error
        return shown

    if tokens:
        about = {"title": f"The loss of every token: {name}", "page": tokens, "text": facts.text}
        write(TOKENS_FILE, "tokens.html.j2", lambda small: about)
    pages = [
        write(f"{stem}.html", "notebook.html.j2", partial(_of_notebook, stem, notebook, links))
        for stem, notebook in notebooks.items()
    ]
    recall = recorded(facts.record)
    common = {
        "title": f"{facts.title}: {facts.headline}",
        "facts": facts,
        "answers": answers(facts),
        "metrics": metrics_table(facts, 10),
        "tokens": tokens,
        "tokens_file": TOKENS_FILE,
        "samples": _samples(facts),
        "greedy": _greedy(facts),
        "pages": pages,
        "unreadable": unreadable,
        "recall": recall and growth_text(recall),
        "recall_table": recall and Markup(safe_html(growth_table(recall, facts.record).data)),
    }
    write("index.html", "index.html.j2", lambda small: {**common, **_pictures(facts, small)})
    for leftover in [*run.report.glob("0*.html"), run.report / TOKENS_FILE]:
        if leftover.name not in links:
            leftover.unlink(missing_ok=True)  # of a notebook that an earlier run had
    return run.report / "index.html"


def _of_notebook(stem: str, notebook: Any, links: dict[str, str], small: bool) -> dict[str, Any]:
    elsewhere = {file.removesuffix(".html") + ".ipynb": file for file in links}
    body, heading, sections = in_order(
        notebook_body(notebook, elsewhere, small), ids=("content", "contents")
    )
    return {
        "title": heading.striptags() or stem.replace("_", " "),
        "heading": heading,
        "sections": sections,
        "execution": execution(notebook),
        "body": body,
    }


def _pictures(facts: RunFacts, small: bool) -> dict[str, Any]:
    curve, others = loss_curve(facts), other_curves(facts)
    files = [
        (figure, data_url(figure.path.read_bytes(), small))
        for figure in figures(facts)
        if figure.path.stem not in others and not (figure.is_main and curve)
    ]
    return {"curve": curve, "curves": others.values(), "pictures": files}


def _samples(facts: RunFacts) -> dict[str, list[Sample]]:
    """Of each prompt its samples by step, the first and the last among them; of very many steps, some."""
    steps = list(dict.fromkeys(sample.step for sample in facts.record.samples))
    n = min(len(steps), _MOST_STEPS)
    chosen = {steps[i * (len(steps) - 1) // max(1, n - 1)] for i in range(n)}
    found: dict[str, dict[int, Sample]] = {}
    for sample in facts.record.samples:
        if sample.step in chosen and not sample.final:
            found.setdefault(sample.prompt, {}).setdefault(sample.step, sample)
    return {prompt: list(by_step.values()) for prompt, by_step in found.items()}


def _greedy(facts: RunFacts) -> list[tuple[Sample, str, str, str]]:
    """The greedy continuations that continue the text itself: (sample, what of it is as in the text, the rest of it, the text)."""
    losses, found = facts.token_losses, []
    if losses and losses.whole:
        text = decode(torch.cat([losses.windows[0].tokens[:1], losses.all_targets()]).numpy())
        for sample in filter(attrgetter("final"), facts.record.samples):
            written = sample.text.removeprefix(sample.prompt)
            _, given, truth = text.partition(sample.prompt)
            truth = truth[: len(written)]
            same = len(os.path.commonprefix([written, truth]))
            if given:
                found.append((sample, written[:same], written[same:], truth))
    return found
