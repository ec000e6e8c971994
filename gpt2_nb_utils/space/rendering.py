"""The templates of the folder `templates/`, filled in: the two README files and the settings of the Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpt2_nb_utils.text import markdown_text, visible
from gpt2_nb_utils.wording import count, duration, loss_text


def render(template: str, **content: Any) -> str:
    """The text of a template, with this content in it."""
    return _TEMPLATES.get_template(f"{template}.j2").render(content)


def _as_code(text: str) -> str:
    """A text as a literal of Python that stays inside its fence: without back-ticks, line breaks and control characters."""
    return ascii(visible(text)).replace("`", "\\x60")


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters.update(
    md=markdown_text, code=_as_code, count=count, loss=loss_text, duration=duration
)
