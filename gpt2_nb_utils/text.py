"""Text of a corpus, a model or a foreign file, made harmless for a terminal, a log, a page or
Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Format characters that act on nothing: the two joiners, which some scripts and emoji need, and the
# signs that Arabic, Syriac and Kaithi write around a number.
_KEPT = (
    "\n\t\u200c\u200d"
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)


class _Shown(dict[int, str]):
    """What to show for each code point, worked out when it is first met (for `str.translate`)."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if (
            character in _KEPT
            or character.isprintable()
            or unicodedata.category(character) == "Zs"  # a space, such as the one that never breaks
        ):
            shown = character
        elif code < 0x20:
            shown = chr(0x2400 + code)  # Unicode has pictures of the old control characters
        else:
            shown = "\u2421" if code == 0x7F else _escaped(character)
        return self.setdefault(code, shown)


_SHOWN = _Shown()


def visible(text: str) -> str:
    """The text with nothing in it that a terminal or a browser would act on.

    Control characters become their pictures (␛). Marks that change the direction of writing,
    invisible characters, exotic line breaks, halves of surrogate pairs and unassigned code points
    become escapes such as `\\u202e`. Line breaks, tabs and joiners are kept.
    """
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """The text as one line: as `visible`, but all control characters become escapes such as
    `\\n`."""
    return visible(re.sub(r"[\x00-\x1f\x7f]", lambda match: _escaped(match[0]), text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def markdown_text(value: object) -> str:
    """One line of plain text that Markdown and HTML leave alone."""
    line = " ".join(visible(str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Every cell is escaped."""
    lines = [map(markdown_text, head), ["---"] * len(head)]
    lines += [map(markdown_text, row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
