"""Text as Markdown: escaped lines and tables.

It knows Markdown only. What stands in the cells is the caller's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gpt2_nb_utils.text import visible


def text(value: object) -> str:
    """One line of plain text that Markdown and HTML leave alone."""
    line = " ".join(visible(str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table. Every cell is escaped."""
    lines = [map(text, head), ["---"] * len(head), *(map(text, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
