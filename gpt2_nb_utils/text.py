"""Text of a corpus, a model or a foreign file, made harmless for a terminal, a log or a page.

It knows characters only. It deliberately does not escape HTML or Markdown: whoever writes those does.
"""

from __future__ import annotations

import re

# Controls, marks that turn the direction of writing, invisible characters, exotic line ends, halves of surrogate pairs. The
# two joiners (U+200C, U+200D) stay: some scripts and emoji need them, and they act on nothing.
_ACTED_ON = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with nothing in it that a terminal or a browser would act on; line ends and tabs are kept.

    Control characters become the pictures that Unicode has for them (␛), the others escapes such as `\\u202e`.
    """
    return _ACTED_ON.sub(lambda match: _shown(match[0]), text)


def _shown(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else _escaped(character)


def one_line(text: str) -> str:
    """The text as one line: all that cannot be printed, line ends too, becomes an escape such as `\\n`."""
    return "".join(
        character if character.isprintable() else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
