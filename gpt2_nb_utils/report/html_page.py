"""The shell of every page of the report: one self-contained file, without script, that prints and reads aloud well."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from PIL import Image
from pygments.formatters import HtmlFormatter

from gpt2_nb_utils.space.rendering import environment
from gpt2_nb_utils.text import visible

TEMPLATES = Path(__file__).parent / "templates"
# The Pygments styles whose every colour keeps a contrast of 4.5 here.
_LIGHT_CODE, _DARK_CODE = "xcode", "lightbulb"
_SMALL_WIDTH, _SMALL_COLOURS = 800, 64
"""Of a picture on a page that would grow too large otherwise: pixels, and colours of its palette."""


def _harmless(value: Any) -> Any:
    """Text of a run as it may stand in a page; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _with_code(text: str) -> Markup:
    """The text, escaped, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


_TEMPLATES = environment(TEMPLATES, autoescape=True, finalize=_harmless)
_TEMPLATES.filters["with_code"] = _with_code


def render(template: str, **content: Any) -> str:
    """The page that `template` (a file in `templates/`) makes of `content`; every text is escaped."""
    return _TEMPLATES.get_template(template).render(css=_css(), **content)


@cache
def _css() -> Markup:
    def code_colours(style: str) -> str:
        rules = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        # The box around the code has its own colours; only the words are the style's.
        return "\n".join(
            rule for rule in rules if rule.startswith(".highlight .") and "background" not in rule
        )

    own = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{code_colours(_DARK_CODE)}\n}}"
    return Markup("\n".join([own, code_colours(_LIGHT_CODE), dark]))


def data_url(image: bytes, small: bool = False, mime: str = "image/png") -> str:
    """The image as a `data:` URL; where it is to be `small`, a PNG loses pixels and colours."""
    if small and mime == "image/png":
        image = min(image, _smaller(image), key=len)
    return f"data:{mime};base64,{base64.b64encode(image).decode('ascii')}"


def _smaller(png: bytes) -> bytes:
    """The PNG with a palette and fewer pixels, or as it is where it cannot be read."""
    try:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return png
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    paper.thumbnail((_SMALL_WIDTH, image.height))
    buffer = io.BytesIO()
    paper.convert("RGB").quantize(_SMALL_COLOURS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
