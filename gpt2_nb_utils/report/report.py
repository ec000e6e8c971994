"""The grader's report: `report/index.html`, the text token by token and one page per executed notebook, readable from a
mail attachment.

It reads a run directory and writes its `report/`. It deliberately does not train, execute or judge anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report import images
from gpt2_nb_utils.report.answers import answers
from gpt2_nb_utils.report.figures import figures
from gpt2_nb_utils.report.html_page import render
from gpt2_nb_utils.report.notebook_html import (
    Execution,
    cell_output,
    execution,
    notebook_body,
    read_notebook,
)
from gpt2_nb_utils.report.run_facts import MARKS, RunFacts, read_run
from gpt2_nb_utils.report.safe_html import Outline
from gpt2_nb_utils.report.token_page import FILE as TOKENS_FILE
from gpt2_nb_utils.report.token_page import TokenPage, taste, token_page
from gpt2_nb_utils.results.verdict import count
from gpt2_nb_utils.run_directory import RunDirectory

LARGEST_PAGE = 3_000_000
"""Bytes that a page may have; a larger one is written with smaller pictures, or less of the text."""
_REST_OF_TOKEN_PAGE = 100_000
"""Bytes of that page besides its text: styles, tables, headings."""
_RECALL = ("04_results", ("recall", "growth-table"))
"""The notebook that measures recall, and the ids of its cells whose tables the first page shows as well."""
_SECTIONS = (
    ("curve", "How the loss fell"),
    ("tokens", "Token by token"),
    ("samples", "Samples"),
    ("recall", "By heart"),
    ("audit", "Audit"),
    ("reproduce", "Reproduce it"),
    ("notebooks", "Notebooks"),
    ("facts", "All numbers"),
)


@dataclass(frozen=True)
class _Page:
    """A notebook of the run and the page that shows it."""

    path: Path
    content: Any
    execution: Execution
    title: str

    @property
    def file(self) -> str:
        return f"{self.path.stem}.html"

    @property
    def label(self) -> str:
        number, _, name = self.path.stem.partition("_")
        return (
            f"{int(number)} {name.replace('_', ' ').capitalize()}".strip()
            if number.isdigit()
            else self.path.stem
        )


def build_report(run: RunDirectory) -> Path:
    """Write the report of a run, finished or not, from what its directory holds.

    Returns:
        the path of `report/index.html`.

    Raises:
        UserError: the directory holds no readable `summary.json`.
    """
    facts = read_run(run)
    pages, unreadable = _pages(run)
    tokens = (
        None
        if facts.token_losses is None
        else token_page(facts.token_losses, LARGEST_PAGE - _REST_OF_TOKEN_PAGE)
    )
    links = [
        ("index.html", "Overview"),
        *([(TOKENS_FILE, "Token by token")] if tokens else []),
        *((page.file, page.label) for page in pages),
    ]
    if tokens:
        title = f"The loss of every token: {run.path.resolve().name}"
        write_atomically(
            run.report / TOKENS_FILE,
            render(
                "tokens.html.j2",
                title=title,
                links=links,
                current=TOKENS_FILE,
                page=tokens,
                text=facts.text,
            ),
        )
    for number, page in enumerate(pages, start=len(links) - len(pages)):
        _write(run.report / page.file, lambda level: _notebook_page(page, number, links, level))
    index = run.report / "index.html"
    _write(index, lambda level: _index_page(facts, pages, unreadable, links, tokens, level))
    for leftover in [*run.report.glob("0*.html"), run.report / TOKENS_FILE]:
        if leftover.name not in dict(links):
            leftover.unlink(missing_ok=True)  # of a notebook that an earlier run had
    return index


def _pages(run: RunDirectory) -> tuple[list[_Page], list[str]]:
    """The notebooks that can be shown, in order, and the names of those that cannot be read."""
    pages, unreadable = [], []
    for path in sorted(run.notebooks.glob("0*.ipynb")):
        try:
            notebook = read_notebook(path)
        except ValueError:
            unreadable.append(path.name)
            continue
        headings = [
            match[1]
            for cell in notebook.cells
            if cell.cell_type == "markdown"
            for match in [re.search(r"^# +(.+?)\s*#*$", cell.source, re.MULTILINE)]
            if match
        ]
        title = re.sub(r"[*_`$\\]", "", headings[0]) if headings else path.stem.replace("_", " ")
        pages.append(_Page(path, notebook, execution(notebook), title))
    return pages, unreadable


def _write(path: Path, page_at: Callable[[int], str]) -> None:
    """Write the page with the least compression that keeps it small enough to be mailed and opened at once."""
    for level in range(images.SMALLEST + 1):
        page = page_at(level).encode(
            "utf-8", errors="replace"
        )  # half a surrogate pair, from somebody's notebook
        if len(page) < LARGEST_PAGE:
            break
    write_atomically(path, page)


def _notebook_page(page: _Page, number: int, links: list[tuple[str, str]], level: int) -> str:
    elsewhere = {file.removesuffix(".html") + ".ipynb": file for file, _ in links[1:]}
    body, outline = notebook_body(page.content, elsewhere, level)
    return render(
        "notebook.html.j2",
        title=page.title,
        links=links,
        current=page.file,
        body=body,
        execution=page.execution,
        heading=Markup(outline.title) or page.title,
        sections=outline.sections,
        previous=links[number - 1],
        following=links[number + 1] if number + 1 < len(links) else None,
    )


def _index_page(
    facts: RunFacts,
    pages: list[_Page],
    unreadable: list[str],
    links: list[tuple[str, str]],
    tokens: TokenPage | None,
    level: int,
) -> str:
    before, after = facts.before_and_after()
    recall_page = next((page for page in pages if page.path.stem == _RECALL[0]), None)
    outline = Outline(level=2, ids={"content", *dict(_SECTIONS)})
    shown = [
        (figure, images.data_url(figure.path.read_bytes(), level)) for figure in figures(facts)
    ]
    return render(
        "index.html.j2",
        title=f"{facts.headline}: {facts.run.path.resolve().name}",
        links=links,
        current="index.html",
        facts=facts,
        pages=pages,
        unreadable=unreadable,
        count=count,
        marks=MARKS,
        curve=[item for item in shown if item[0].is_main],
        other_figures=[item for item in shown if not item[0].is_main],
        pairs=_pairs(before, after),
        number=_number,
        answers=answers(facts),
        sections=[section for section in _SECTIONS if section[0] != "audit" or facts.audit],
        tokens=tokens,
        tokens_file=TOKENS_FILE,
        taste=taste(tokens.losses) if tokens else [],
        recall=Markup("\n")
        .join(cell_output(recall_page.content, cell, outline) for cell in _RECALL[1])
        .strip()
        if recall_page
        else "",
        recall_page=recall_page.file if recall_page else "",
    )


def _pairs(before: list[Any], after: list[Any]) -> list[tuple[str, list[Any]]]:
    """(prompt, its first and its last sample), prompt by prompt."""
    prompts = dict.fromkeys(sample.prompt for sample in [*before, *after])
    return [
        (
            prompt,
            [
                next(sample for sample in group if sample.prompt == prompt)
                for group in (before, after)
                if any(sample.prompt == prompt for sample in group)
            ],
        )
        for prompt in prompts
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
