"""Markdown with formulas, as HTML that needs no script: LaTeX becomes MathML.

It knows the syntax of formulas in a notebook. It deliberately does not know notebooks or pages.
"""

from __future__ import annotations

import contextlib
import html
import re
import unicodedata
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
        mathml = (
            _polished(convert(latex, display=display))
            if braces.count("{") == braces.count("}")
            else ""
        )
    except (
        Exception
    ):  # the converter raises whatever its parser meets: KeyError, IndexError, its own errors
        mathml = ""
    if not mathml or "\\" in html.unescape(
        re.sub(r"<[^>]*>", "", mathml)
    ):  # a command that it does not know
        return f'<code class="latex">{html.escape(latex)}</code>'
    # Focusable, so that a formula wider than a phone can be scrolled with the keyboard.
    return f'<span class="formula" tabindex="0">{mathml}</span>' if display == "block" else mathml


def _polished(mathml: str) -> str:
    """Set what browsers' MathML Core leaves to the author: space around `ln`, and script or bold letters."""

    def function(match: re.Match[str]) -> str:
        name, bracket = match.groups()
        return f'<mo form="prefix" lspace="0.17em" rspace="{0 if bracket else 0.17}em">{name}</mo>{bracket or ""}'

    def letter(match: re.Match[str]) -> str:
        style, character = match.groups()
        kind = (
            f"{style.upper()} {'CAPITAL' if character.isupper() else 'SMALL'} {character.upper()}"
        )
        for name in (
            f"MATHEMATICAL {kind}",
            kind,
        ):  # Unicode names the older half of the script letters without it
            with contextlib.suppress(KeyError):
                return f'<mi mathvariant="normal">{unicodedata.lookup(name)}</mi>'
        return match[0]

    mathml = re.sub(r'<mi mathvariant="(script|bold)">([A-Za-z])</mi>', letter, mathml)
    return re.sub(
        r'<m[io]>([A-Za-z]{2,})</m[io]>(<mo stretchy="false">&#x00028;</mo>)?', function, mathml
    )


class _Blocks(MathBlockParser):
    # nbconvert takes $$ for a block anywhere in a line, also inside a code span: here it must start the line.
    SPECIFICATION = {
        **MathBlockParser.SPECIFICATION,
        "multiline_math": (
            r"^ {0,3}(?:\$\$(?s:.*?)(?<!\\)\$\$"
            r"|\\begin\{(?P<math_env_name>[a-z]*\*?)\}(?s:.*?)\\end\{(?P=math_env_name)\})"
        ),
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

    def latex_environment(self, name: str, body: str) -> str:
        if name in ("equation", "equation*", "displaymath", "math"):
            return formula_html(body, "block")
        return formula_html(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def markdown_to_html(source: str, attachments: dict[str, Any] | None = None) -> str:
    """HTML of a Markdown text; raw HTML in it comes through, formulas are MathML."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments or {})
    return MarkdownWithMath(
        renderer=renderer, block=_Blocks(), inline=_Inlines(hard_wrap=False)
    ).render(source)
