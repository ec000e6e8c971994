"""Templates: the Markdown of README files and model cards, JSON settings, and pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_nb_utils.text import markdown_table, markdown_text, visible
from gpt2_nb_utils.wording import MARKS, count, duration, loss_text


def environment(folder: Path, **options: Any) -> Environment:
    """How the templates of a folder are read: a missing value is an error, and all share the same filters."""
    found = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    found.globals["marks"] = MARKS
    found.filters |= {
        "md": markdown_text,
        "table": _table,
        "fenced": fenced,
        "code": _as_code,
        "count": count,
        "loss": loss_text,
        "duration": duration,
    }
    return found


def render(template: str, **content: Any) -> str:
    """A template of the model or its Space, with this content in it."""
    return _TEMPLATES.get_template(f"{template}.j2").render(content)


def fenced(text: str, language: str = "text") -> str:
    """A text as a block of code of Markdown, which it cannot leave."""
    text = visible(text).rstrip()
    # Longer than every row of back-ticks in the text.
    fence = max(["``", *re.findall("`+", text)], key=len) + "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _table(rows: Iterable[Sequence[object]], *head: str) -> str:
    return markdown_table(head, rows)


def _as_code(text: str) -> str:
    """A text as a literal of Python that stays inside its fence: without back-ticks, line breaks and control characters."""
    return ascii(visible(text)).replace("`", "\\x60")


_TEMPLATES = environment(Path(__file__).parent / "templates")
