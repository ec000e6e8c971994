"""The shell of every page of the report: one self-contained file, without script, that prints and reads aloud well."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from gpt2_nb_utils.text import visible
from gpt2_nb_utils.wording import MARKS, count

TEMPLATES = Path(__file__).parent / "templates"
# The Pygments styles whose every colour keeps a contrast of 4.5 here.
_LIGHT_CODE, _DARK_CODE = "xcode", "lightbulb"
SMALLEST = 3
"""The highest level of compression: 0 is none, 1 takes a palette, 2 and 3 also fewer pixels."""
_WIDEST = {2: 1100, 3: 800}


def render(template: str, **content: Any) -> str:
    """The page that `template` (a file in `templates/`) makes of `content`; every text is escaped."""
    return _environment().get_template(template).render(css=_css(), **content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.globals["marks"] = MARKS
    environment.filters |= {"count": count, "number": _number}
    return environment


def _harmless(value: Any) -> Any:
    """Text of a run as it may stand in a page; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


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


def data_url(image: bytes, level: int = 0, mime: str = "image/png") -> str:
    """The image as a `data:` URL; a PNG is compressed as far as `level` allows."""
    if level and mime == "image/png":
        image = min(image, _compressed(image, level), key=len)
    return f"data:{mime};base64,{base64.b64encode(image).decode('ascii')}"


def _compressed(png: bytes, level: int) -> bytes:
    """The PNG with a palette and fewer pixels, or as it is where it cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return png
    paper = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(paper, image).convert("RGB")
    image.thumbnail((_WIDEST.get(level, image.width), image.height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(colors=256 if level < SMALLEST else 64).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
