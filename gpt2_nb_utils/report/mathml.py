"""Markdown with formulas, as HTML that needs no script: LaTeX becomes MathML."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathBlockParser,
    MathInlineParser,
)


def formula_html(latex: str, display: str) -> str:
    """The MathML of a formula; its source as code where it cannot be converted.

    Args:
        latex: the formula without its delimiters.
        display: `inline` or `block`.
    """
    latex = latex.strip()
    braces = re.findall(r"(?<!\\)[{}]", latex)
    try:
        mathml = _spaced(convert(latex, display=display))
    except Exception:  # whatever the converter's parser meets: KeyError, IndexError, its own errors
        mathml = "\\"
    unknown_command = "\\" in html.unescape(re.sub(r"<[^>]*>", "", mathml))
    if unknown_command or braces.count("{") != braces.count("}"):
        return f'<code class="latex">{html.escape(latex)}</code>'
    # Focusable, so that a formula wider than a phone can be scrolled with the keyboard.
    return f'<span class="formula" tabindex="0">{mathml}</span>' if display == "block" else mathml


def _spaced(mathml: str) -> str:
    """With the space around names such as `ln` that browsers' MathML Core leaves to the author."""

    name = r"<m[io]>([A-Za-z]{2,})</m[io]>"
    before_bracket = name + r'(?=<mo stretchy="false">&#x00028;</mo>)'
    spaced = r'<mo form="prefix" lspace="0.17em" rspace="{}em">\1</mo>'
    mathml = re.sub(before_bracket, spaced.format(0), mathml)
    return re.sub(name, spaced.format(0.17), mathml)


class _Blocks(MathBlockParser):
    # nbconvert takes $$ for a block anywhere in a line, also inside a code span: here it must start the line.
    SPECIFICATION = {
        **MathBlockParser.SPECIFICATION,
        "multiline_math": r"^ {0,3}\$\$(?s:.*?)(?<!\\)\$\$",
    }


class _Inlines(MathInlineParser):
    # As in Pandoc: no space inside the dollars and no digit after, so "$5 or $6" stays text; no code span inside.
    SPECIFICATION = {
        **MathInlineParser.SPECIFICATION,
        "block_math_tex": r"(?<!\\)\$\$(?P<math_block_tex>[^`]+?)(?<!\\)\$\$",
        "inline_math_tex": r"(?<![$\\])\$(?![\s$])(?P<math_inline_tex>(?:\\.|[^$\\`])+?)(?<!\s)\$(?![$\d])",
    }


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return formula_html(body, "block")

    def inline_math(self, body: str) -> str:
        return formula_html(body, "inline")


def markdown_to_html(source: str, attachments: dict[str, Any] | None = None) -> str:
    """HTML of a Markdown text; raw HTML in it comes through, formulas are MathML."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments or {})
    return MarkdownWithMath(
        renderer=renderer, block=_Blocks(), inline=_Inlines(hard_wrap=False)
    ).render(source)
