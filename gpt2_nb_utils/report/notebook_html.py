"""An executed notebook as the body of a page: its cells and outputs in HTML, and how far it ran."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters import ansi2html
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from traitlets.config import Config

from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.report.html_page import SMALLEST, TEMPLATES, data_url
from gpt2_nb_utils.report.mathml import markdown_to_html
from gpt2_nb_utils.report.safe_html import Outline, safe_html
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.wording import duration

# papermill's own words about a failed cell: the page says it itself.
_PAPERMILL_NOTICE = "papermill-error-cell-tag"
_LARGEST_OUTPUT = 200_000  # characters of one output, where a page would grow too large otherwise
_SHOWN_FIRST = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "text/latex",
    "image/png",
    "image/jpeg",
    "text/plain",
]


@dataclass(frozen=True)
class Execution:
    """How far a notebook ran.

    Args:
        whole: whether every code cell ran without an error.
        words: the same as a person says it, with the cell and the error that stopped it.
        stopped_at: the id of the cell that stopped it, or "".
    """

    whole: bool
    words: str
    stopped_at: str = ""


def read_notebook(path: Path) -> Any:
    """The notebook at `path`, without papermill's notices and without outputs that only a script could show.

    Raises:
        ValueError: it is no notebook, or only half of one.
    """
    try:
        notebook = nbformat.reads(read_regular(path).decode("utf-8"), as_version=4)
    except Exception as error:  # nbformat raises its own, jsonschema's and plain ones
        raise ValueError(f"{path} is not a readable notebook") from error
    notebook.cells = [
        cell for cell in notebook.cells if _PAPERMILL_NOTICE not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if set(output.get("data", _SHOWN_FIRST)) & set(_SHOWN_FIRST)
            ]
    return notebook


def execution(notebook: Any) -> Execution:
    """How far the notebook ran, from its outputs and papermill's records."""
    for number, cell in enumerate(notebook.cells, start=1):
        errors = [each for each in cell.get("outputs", []) if each.output_type == "error"]
        if errors and "raises-exception" not in cell.metadata.get("tags", []):
            value = (errors[0].get("evalue") or "").strip().partition("\n")[0]
            where = f"stopped at cell {number} of {len(notebook.cells)}"
            words = f"{where}: {errors[0].get('ename')}: {value}"[:400]
            return Execution(False, words, cell.get("id", ""))
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    executed = sum(cell.execution_count is not None for cell in code)
    if code and not executed:
        return Execution(False, "was not executed")
    if executed < len(code):
        return Execution(False, f"executed {executed} of {len(code)} code cells only")
    took = notebook.metadata.get("papermill", {}).get("duration")
    return Execution(True, "ran to its end" + (f" in {duration(took)}" if took else ""))


def notebook_body(notebook: Any, pages: dict[str, str], level: int = 0) -> tuple[Markup, Outline]:
    """The cells as HTML, and the headings among them.

    Args:
        notebook: what `read_notebook` returned.
        pages: where links to other notebooks lead, such as `{"02_model.ipynb": "02_model.html"}`.
        level: how hard to compress, from 0 to `SMALLEST`; at the last, very long outputs are left out.
    """
    outline = Outline(ids={"content", "contents"})

    def markdown(source: str, cell: Any = None) -> str:
        return safe_html(markdown_to_html(source, (cell or {}).get("attachments")), outline, pages)

    def limited(text: str) -> str:
        if level < SMALLEST or len(text) <= _LARGEST_OUTPUT:
            return text
        return (
            f"[output of {len(text):,} characters left out to keep this page small: "
            f"see the notebook itself]"
        )

    def image_url(data: str, mime: str) -> str:
        try:
            svg = mime == "image/svg+xml"
            image = data.encode("utf-8", errors="replace") if svg else base64.b64decode(data)
        except ValueError:  # no base64
            return ""
        return data_url(image, level, mime)

    exporter = HTMLExporter(
        template_name="notebook_body",
        extra_template_basedirs=[str(TEMPLATES)],
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN_FIRST}}),
        filters={
            "markdown_cell": markdown,
            "latex_output": lambda source: markdown(_with_dollars(source)),
            "output_html": lambda source: safe_html(limited(source), outline, pages),
            "terminal": lambda text: ansi2html(_last_state(limited(text))),
            "image_url": image_url,
        },
    )
    # One box per stream, not per flush.
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    body, _ = exporter.from_notebook_node(notebook)
    return Markup(body), outline


def cell_output(notebook: Any, cell_id: str, outline: Outline) -> Markup:
    """What a cell shows as HTML, for another page; nothing where there is no such cell, or it shows nothing.

    Args:
        outline: the headings and ids of the page on which it will stand.
    """
    shown = [
        safe_html("".join(output["data"]["text/html"]), outline)
        for cell in notebook.cells
        if cell.get("id") == cell_id
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    return Markup("\n".join(shown))


def _last_state(text: str) -> str:
    """What a terminal shows in the end: a carriage return goes back over its line, and colours stay."""
    text = re.sub(r"[^\n]*\r(?!\n)", "", text.replace("\r\n", "\n").rstrip("\r"))
    # Of whole escape sequences ansi2html makes colours, or nothing.
    return re.sub("\u241b(\\[[0-?]*[ -/]*[@-~])", "\x1b\\1", visible(text))


def _with_dollars(latex: str) -> str:
    r"""A LaTeX output as Markdown writes it: `\[…\]` becomes `$$…$$`."""
    latex = re.sub(r"\\displaystyle\s*", "", latex.strip())
    return re.sub(r"^\\\[|\\\]$", "$$", latex)
