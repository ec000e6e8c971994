"""The shell of every page of the report: one self-contained file, without script, that prints and reads aloud well.

It knows the templates and the styles. It deliberately does not know what runs or
notebooks are.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from gpt2_nb_utils.text import visible

_TEMPLATES = Path(__file__).parent / "templates"
_LIGHT_CODE, _DARK_CODE = (
    "xcode",
    "lightbulb",
)  # the Pygments styles whose every colour keeps a contrast of 4.5 here


def render(template: str, **content: Any) -> str:
    """The page that `template` (a file in `templates/`) makes of `content`; every text is escaped."""
    return _environment().get_template(template).render(css=_css(), **content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    return environment


def _harmless(value: Any) -> Any:
    """Text of a run as it may stand in a page; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _css() -> Markup:
    def code_colours(style: str) -> str:
        rules = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        # The box around the code has its own colours; only the words are the style's.
        return "\n".join(
            rule for rule in rules if rule.startswith(".highlight .") and "background" not in rule
        )

    own = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{code_colours(_DARK_CODE)}\n}}"
    return Markup("\n".join([own, code_colours(_LIGHT_CODE), dark]))
