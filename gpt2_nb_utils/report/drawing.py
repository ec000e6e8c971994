"""Figures as vector graphics that belong to the page: sharp at any size, in its colours, their text selectable.

The SVG of a figure may come from a forged notebook, so nothing of it is passed on. It is parsed, and written again from the few
elements and attributes that matplotlib uses, each value of a known form; what has anything else is no drawing, and is shown
as an image, in which a browser runs nothing.
"""

from __future__ import annotations

import hashlib
import re
from xml.etree import ElementTree

from markupsafe import Markup, escape

from gpt2_nb_utils.figures.style import BLUE, PALE, WARM
from gpt2_nb_utils.text import visible

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_PAINT = r"none|#[0-9a-f]{6}"
_REFERENCE = r"url\(#[\w-]+\)"
_FORMS = {
    "d": r"[MLHVCQZmlhvcqz\d\s.,e-]*",
    "transform": r"(?:(?:rotate|translate|scale|matrix)\([\d\s.,e-]*\)\s*)*",
    "viewBox": rf"{_NUMBER}(?: {_NUMBER}){{3}}",
    "clip-path": _REFERENCE,
    "fill": _PAINT,
    "stroke": _PAINT,
    "stroke-dasharray": r"none|[\d.,\s]+",
    "font-size": rf"{_NUMBER}(?:px)?",
    "id": r"[\w.-]+",
    "href": r"#[\w-]+",
    **dict.fromkeys(("x", "y", "width", "height"), rf"{_NUMBER}(?:pt|px)?"),
    **dict.fromkeys(
        "stroke-width stroke-dashoffset opacity fill-opacity stroke-opacity".split(), _NUMBER
    ),
    **dict.fromkeys(
        "stroke-linecap stroke-linejoin text-anchor font-style font-weight image-rendering".split(),
        r"[a-z]+(?:-[a-z]+)*|\d{3}",
    ),
}
"""The attributes that are written again, and the form that the whole of a value must have."""
_PICTURE = r"data:image/png;base64,[A-Za-z0-9+/=\s]+"
_LEFT_OUT = {"font-family", "version", "type"}
_ELEMENTS = {"svg", "g", "defs", "path", "use", "text", "tspan", "rect", "clipPath", "image"}
_NAMED = {"path", "clipPath"}
"""Elements that others may refer to: never one that itself refers to others, which could multiply."""
_DEEPEST = 30
_COLOURS = {BLUE: "var(--link)", PALE: "var(--pale)", WARM: "var(--warm)", "#ffd89c": "var(--warm)"}


def drawing(svg: str, alt: str, extra: Markup = Markup()) -> Markup | None:
    """A figure that matplotlib wrote as SVG, as part of a page; None where it is anything else.

    Args:
        svg: the source, from anywhere.
        alt: what the figure says.
        extra: safe SVG to put on top.
    """
    try:
        if "<!ENTITY" in svg:
            return None
        root = ElementTree.fromstring(svg)
        prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
        width = float(re.fullmatch(rf"({_NUMBER})pt", root.attrib["width"])[1])
        box = re.fullmatch(_FORMS["viewBox"], root.attrib["viewBox"])[0]
        content = Markup("").join(_redrawn(child, prefix, 1) for child in root)
    except (ElementTree.ParseError, ValueError, KeyError, TypeError):
        return None
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="{}" style="--w:{}px">{}{}</svg>'
    ).format(visible(alt), box, round(width * 4 / 3), content, extra)


def _redrawn(element: ElementTree.Element, prefix: str, depth: int) -> Markup:
    """An element without what a page does not need of it.

    Raises:
        ValueError: it has what matplotlib does not write.
    """
    name = element.tag.removeprefix("{http://www.w3.org/2000/svg}")
    if name in ("metadata", "style"):
        return Markup()
    if name not in _ELEMENTS or depth > _DEEPEST:
        raise ValueError(name)
    given = dict(element.attrib)
    for declaration in filter(str.strip, given.pop("style", "").split(";")):
        key, _, value = declaration.partition(":")
        given[key.strip()] = value.strip()
    kept = {}
    for key, value in given.items():
        key = key.removeprefix("{http://www.w3.org/1999/xlink}")
        form = _PICTURE if (name, key) == ("image", "href") else _FORMS.get(key)
        if key == "font-family" and "Mono" in value:
            kept["class"] = "mono"
        if key in _LEFT_OUT or (key == "id" and name not in _NAMED):
            continue
        if form is None or not re.fullmatch(form, value):
            raise ValueError(key)
        kept[key] = _in_page(key, value, prefix)
    inside = Markup("").join(
        [
            _text(element.text),
            *(_redrawn(each, prefix, depth + 1) + _text(each.tail) for each in element),
        ]
    )
    attributes = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in kept.items())
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), attributes, inside)


def _text(text: str | None) -> Markup:
    return escape(visible(text or "").strip("\n ") and visible(text))


def _in_page(key: str, value: str, prefix: str) -> str:
    if key in ("d", "transform", "x", "y", "width", "height"):
        value = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
        return " ".join(value.split())
    if key in ("fill", "stroke"):
        return _colour(value)
    if key == "id":
        return prefix + value
    return re.sub("#(?=[A-Za-z_])", f"#{prefix}", value) if key in ("href", "clip-path") else value


def _colour(value: str) -> str:
    """A colour of a figure as one of the page, which knows whether it is dark."""
    if value == "none" or value in _COLOURS:
        return _COLOURS.get(value, value)
    levels = [int(value[i : i + 2], 16) for i in (1, 3, 5)]
    if max(levels) - min(levels) > 8:
        return value
    ink = round(100 - 100 * sum(levels) / 765)
    ends = {0: "var(--paper)", 100: "currentColor"}
    return ends.get(ink, f"color-mix(in srgb, var(--ink) {ink}%, var(--paper))")
