"""An executed notebook as the body of a page: its cells and outputs in HTML, and how far it ran.

It knows notebooks and nbconvert. It deliberately does not know the page around the cells (html_page) nor the
run that they come from.
"""

from __future__ import annotations

import base64
import html
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

from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.report import images
from gpt2_nb_utils.report.mathml import formula_html, markdown_to_html
from gpt2_nb_utils.report.safe_html import Outline, safe_html
from gpt2_nb_utils.text import visible

_PAPERMILL_NOTICE = (
    "papermill-error-cell-tag"  # papermill's own words about a failed cell: the page says it itself
)
_LARGEST_OUTPUT = 200_000  # characters of one output, where a page would grow too large otherwise
_TEMPLATES = Path(__file__).parent / "templates"
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
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises its own, jsonschema's and plain ones
        raise ValueError(f"{path} is not a readable notebook") from error
    notebook.cells = [
        cell for cell in notebook.cells if _PAPERMILL_NOTICE not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if set(output.get("data", _SHOWN_FIRST)) & set(_SHOWN_FIRST)
            ]
    return notebook


def execution(notebook: Any) -> Execution:
    """How far the notebook ran, from its outputs and papermill's records."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
                "tags", []
            ):
                value = (output.get("evalue") or "").strip().partition("\n")[0]
                where = f"stopped at cell {number} of {len(notebook.cells)}"
                return Execution(
                    False, f"{where}: {output.get('ename')}: {value}"[:400], cell.get("id", "")
                )
    executed = sum(cell.execution_count is not None for cell in code)
    if executed < len(code):
        words = (
            f"executed {executed} of {len(code)} code cells only"
            if executed
            else "was not executed"
        )
        return Execution(False, words)
    took = notebook.metadata.get("papermill", {}).get("duration")
    return Execution(True, f"ran to its end in {duration(took)}" if took else "ran to its end")


def notebook_body(notebook: Any, pages: dict[str, str], level: int = 0) -> tuple[Markup, Outline]:
    """The cells as HTML, and the headings among them.

    Args:
        notebook: what `read_notebook` returned.
        pages: where links to other notebooks lead, such as `{"02_model.ipynb": "02_model.html"}`.
        level: how hard to compress, from 0 to `images.SMALLEST`; at the last, very long outputs are left out.
    """
    outline = Outline(ids={"content", "contents"})
    exporter = HTMLExporter(
        template_name="notebook_body",
        extra_template_basedirs=[str(_TEMPLATES)],
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN_FIRST}}),
    )

    def markdown(source: str, cell: Any = None) -> str:
        return safe_html(markdown_to_html(source, (cell or {}).get("attachments")), outline, pages)

    def image(output: Any, mime: str) -> str:
        data, alt = output["data"][mime], output.get("metadata", {}).get(mime, {}).get("alt")
        alt = html.escape(str(alt or "Figure without a description"))
        try:
            content = (
                data.encode("utf-8", errors="replace")
                if mime == "image/svg+xml"
                else base64.b64decode(data)
            )
        except ValueError:  # no base64
            return f'<p class="missing">[image that cannot be read: {alt}]</p>'
        if mime == "image/png":
            content = images.compressed(content, level)
        return f'<figure class="output"><img src="data:{mime};base64,{base64.b64encode(content).decode("ascii")}" alt="{alt}"></figure>'

    filters = {
        "markdown_cell": markdown,
        "output_html": lambda source: safe_html(_limited(source, level), outline, pages),
        "latex_output": lambda source: safe_html(_latex_output(source), outline, pages),
        "terminal": lambda text: ansi2html(_last_state(_limited(text, level))),
        "image": image,
        "parameters_name": _parameters_name,
        "focusable": lambda source: source.replace("<pre>", '<pre tabindex="0">', 1),
    }
    exporter.register_preprocessor(
        CoalesceStreamsPreprocessor, enabled=True
    )  # one box per stream, not per flush
    for name, function in filters.items():
        exporter.register_filter(name, function)
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


def _parameters_name(cell: Any) -> str:
    tags = cell.metadata.get("tags", [])
    if "injected-parameters" in tags:
        return "Settings given to this run"
    return "Settings and their defaults" if "parameters" in tags else ""


def _last_state(text: str) -> str:
    """What a terminal shows in the end: a carriage return goes back over its line; other controls show nothing."""
    text = re.sub(r"[^\n]*\r(?!\n)", "", text.replace("\r\n", "\n").rstrip("\r"))
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]", "", text)
    text = re.sub(
        r"\x1b(?!\[[0-?]*[ -/]*[@-~])", "\u241b", text
    )  # of the others ansi2html makes colours
    return "\x1b".join(map(visible, text.split("\x1b")))


def _limited(text: str, level: int) -> str:
    if level < images.SMALLEST or len(text) <= _LARGEST_OUTPUT:
        return text
    return f"[output of {len(text):,} characters left out to keep this page small: see the notebook itself]"


def _latex_output(source: str) -> str:
    source = source.strip()
    display = "block" if source.startswith(("$$", r"\[")) else "inline"
    return formula_html(
        re.sub(r"^(\$+|\\\[|\\\()|(\$+|\\\]|\\\))$", "", source).replace(r"\displaystyle", ""),
        display,
    )
