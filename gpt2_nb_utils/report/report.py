"""The grader's report: `report/index.html`, the text token by token and one page per executed notebook, readable from a
mail attachment.

It reads a run directory and writes its `report/`; nothing is trained or executed, and nothing is judged here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gpt2_nb_utils.errors import NotWritten
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report.answers import answers
from gpt2_nb_utils.report.figures import figures
from gpt2_nb_utils.report.html_page import SMALLEST, data_url, render
from gpt2_nb_utils.report.notebook_html import (
    Execution,
    cell_output,
    execution,
    notebook_body,
    read_notebook,
)
from gpt2_nb_utils.report.safe_html import Outline
from gpt2_nb_utils.report.token_page import FILE as TOKENS_FILE
from gpt2_nb_utils.report.token_page import excerpt, token_page
from gpt2_nb_utils.results.facts import RunFacts, read_facts
from gpt2_nb_utils.run_directory import RunDirectory

LARGEST_PAGE = 3_000_000
"""Bytes that a page may have; a larger one is written with smaller pictures, or less of the text."""
_REST_OF_TOKEN_PAGE = 100_000
"""Bytes of that page besides its text: styles, tables, headings."""
_RECALL = ("04_results", ("recall", "growth-table"))
"""The notebook that measures recall, and the ids of its cells whose tables the first page shows as well."""
_IDS = "content curve tokens samples recall audit reproduce notebooks facts".split()
"""Of the first page, so that no other element gets one of them."""


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
        if not number.isdigit():
            return self.path.stem
        return f"{int(number)} {name.replace('_', ' ').capitalize()}".strip()


def build_report(run: RunDirectory) -> Path:
    """Write the report of a run, finished or not, from what its directory holds.

    Returns:
        the path of `report/index.html`.

    Raises:
        UserError: the directory holds no readable `summary.json`, or cannot be written.
    """
    facts = read_facts(run)
    name = run.path.resolve().name
    pages, unreadable = _pages(run)
    tokens = facts.token_losses and token_page(
        facts.token_losses, LARGEST_PAGE - _REST_OF_TOKEN_PAGE
    )
    links = {"index.html": "Overview"}
    if tokens:
        links[TOKENS_FILE] = "Token by token"
    links |= {page.file: page.label for page in pages}

    def write(file: str, template: str, content_at: Callable[[int], dict[str, Any]]) -> None:
        """Write a page, compressed only as far as it takes to be mailed and opened at once."""
        for level in range(SMALLEST + 1):
            html = render(template, links=list(links.items()), current=file, **content_at(level))
            page = html.encode("utf-8", errors="replace")  # half a surrogate pair, from a notebook
            if len(page) < LARGEST_PAGE:
                break
        try:
            write_atomically(run.report / file, page)
        except OSError as error:  # on a read-only folder, for one
            raise NotWritten(run.report / file, error, flag="RUN_DIR") from error

    if tokens:
        about = {"title": f"The loss of every token: {name}", "page": tokens, "text": facts.text}
        write(TOKENS_FILE, "tokens.html.j2", lambda level: about)
    for page in pages:
        write(page.file, "notebook.html.j2", lambda level: _of_notebook(page, links, level))
    common = {
        "title": f"{facts.headline}: {name}",
        "facts": facts,
        "answers": answers(facts),
        "tokens": tokens,
        "excerpt": excerpt(tokens.losses) if tokens else [],
        "tokens_file": TOKENS_FILE,
        "pairs": _first_and_last_samples(facts),
        "pages": pages,
        "unreadable": unreadable,
        **_recall(pages),
    }
    write("index.html", "index.html.j2", lambda level: {**common, **_pictures(facts, level)})
    for leftover in [*run.report.glob("0*.html"), run.report / TOKENS_FILE]:
        if leftover.name not in links:
            leftover.unlink(missing_ok=True)  # of a notebook that an earlier run had
    return run.report / "index.html"


def _pages(run: RunDirectory) -> tuple[list[_Page], list[str]]:
    """The notebooks that can be shown, in order, and the names of those that cannot be read."""
    pages, unreadable = [], []
    for path in sorted(run.notebooks.glob("0*.ipynb")):
        try:
            notebook = read_notebook(path)
        except ValueError:
            unreadable.append(path.name)
            continue
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        heading = re.search(r"^# +(.+?)\s*#*$", prose, re.MULTILINE)
        title = re.sub(r"[*_`$\\]", "", heading[1]) if heading else path.stem.replace("_", " ")
        pages.append(_Page(path, notebook, execution(notebook), title))
    return pages, unreadable


def _of_notebook(page: _Page, links: dict[str, str], level: int) -> dict[str, Any]:
    elsewhere = {file.removesuffix(".html") + ".ipynb": file for file in links}
    body, outline = notebook_body(page.content, elsewhere, level)
    return {
        "title": page.title,
        "heading": Markup(outline.title) or page.title,
        "sections": outline.sections,
        "execution": page.execution,
        "body": body,
        "number": list(links).index(page.file),
    }


def _pictures(facts: RunFacts, level: int) -> dict[str, Any]:
    shown = [(figure, data_url(figure.path.read_bytes(), level)) for figure in figures(facts)]
    return {
        "curve": [item for item in shown if item[0].is_main],
        "other_figures": [item for item in shown if not item[0].is_main],
    }


def _first_and_last_samples(facts: RunFacts) -> dict[str, dict[int, Any]]:
    """Of each prompt its first sample, and its last where there is another, by step."""
    pairs: dict[str, dict[int, Any]] = {}
    for group in facts.before_and_after():
        for sample in group:
            pairs.setdefault(sample.prompt, {}).setdefault(sample.step, sample)
    return pairs


def _recall(pages: list[_Page]) -> dict[str, Any]:
    """What notebook 04 shows of recall, and where."""
    notebook, cells = _RECALL
    outline = Outline(level=2, ids=set(_IDS))
    for page in pages:
        if page.path.stem == notebook:
            shown = [cell_output(page.content, cell, outline) for cell in cells]
            return {"recall": Markup("\n").join(filter(None, shown)), "recall_page": page.file}
    return {"recall": "", "recall_page": ""}
