"""An executed notebook as the body of a page: its cells and outputs in HTML, and how far it ran."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import ansi2html
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from traitlets.config import Config

from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.report.drawing import drawing
from gpt2_nb_utils.report.html_page import TEMPLATES, data_url
from gpt2_nb_utils.report.mathml import markdown_to_html
from gpt2_nb_utils.report.safe_html import safe_html
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
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
                "tags", []
            ):
                error = f"{output.get('ename')}: {output.get('evalue')}".splitlines()[0]
                where = f"stopped at cell {number} of {len(notebook.cells)}"
                return Execution(False, f"{where}: {error}"[:400], cell.get("id", ""))
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    executed = sum(cell.execution_count is not None for cell in code)
    if not executed and code:
        return Execution(False, "holds no outputs: not executed, or stripped of them")
    if executed < len(code):
        return Execution(False, f"executed {executed} of {len(code)} code cells only")
    took = notebook.metadata.get("papermill", {}).get("duration")
    return Execution(True, "ran to its end" + (f" in {duration(took)}" if took else ""))


def notebook_body(notebook: Any, pages: Mapping[str, str], small: bool) -> str:
    """The cells as HTML.

    Args:
        notebook: what `read_notebook` returned.
        pages: where links to other notebooks lead, such as `{"02_model.ipynb": "02_model.html"}`.
        small: make pictures small, and leave very long outputs out.
    """

    def markdown(source: str, cell: Any = None) -> str:
        return safe_html(markdown_to_html(source, (cell or {}).get("attachments")), pages)

    def limited(text: str) -> str:
        if small and len(text) > _LARGEST_OUTPUT:
            return (
                f"[output of {len(text):,} characters left out to keep this page small: "
                f"see the notebook itself]"
            )
        return text

    def image_url(data: str, mime: str) -> str:
        try:
            svg = mime == "image/svg+xml"
            image = data.encode("utf-8", errors="replace") if svg else base64.b64decode(data)
        except ValueError:  # no base64
            return ""
        return data_url(image, small, mime)

    shown_first = list(_SHOWN_FIRST)
    if small:  # a PNG can be made smaller, an SVG cannot
        shown_first.remove("image/svg+xml")
        shown_first.insert(-1, "image/svg+xml")
    exporter = HTMLExporter(
        template_name="notebook_body",
        extra_template_basedirs=[str(TEMPLATES)],
        config=Config({"NbConvertBase": {"display_data_priority": shown_first}}),
        filters={
            "markdown_cell": markdown,
            "output_html": lambda source: safe_html(limited(source), pages),
            "terminal": lambda text: _terminal_html(limited(text)),
            "image_url": image_url,
            "drawing": drawing,
        },
    )
    # One box per stream, not per flush; a carriage return goes back over its line.
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    return exporter.from_notebook_node(notebook)[0]


def _terminal_html(text: str) -> str:
    text = visible(text.replace("\r", ""))
    # Of whole escape sequences ansi2html makes colours, or nothing.
    return ansi2html(re.sub("\u241b(\\[[0-?]*[ -/]*[@-~])", "\x1b\\1", text))
