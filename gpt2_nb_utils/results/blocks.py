"""Small pieces of HTML that the pages of this room share: text boxes, captions, notes.

Everything handed in as text is escaped here. Boxes set text and background colour together, so they read the same on a
light and on a dark page, and they wrap below each other on a narrow one.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from IPython.display import HTML

from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.display import INK

FAINT = "color:#5a5a5a; background:#ececec;"
_BORDER = "border:1px solid #8a8a8a; border-radius:4px;"
_BOX = (
    f"font-family:monospace; white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.5; padding:.5em .7em; "
    f"{_BORDER} "
    f"color:{INK}; background:#ffffff;"
)
_NOTE = "color:inherit; border:1px solid #8a8a8a; border-left:5px solid #b8621b; padding:.4em .8em; margin:.4em 0;"


def box(inner: str, faint: bool = False) -> str:
    """A box with monospaced text.

    Args:
        inner: HTML, escaped by the caller.
        faint: grey, for text that was given to the model.
    """
    return f'<div style="{_BOX} margin:.2em 0;{" " + FAINT if faint else ""}">{inner}</div>'


def caption(text: str) -> str:
    """A line above a box."""
    return f'<div style="color:inherit; font-size:.9em; margin-top:.6em;">{html.escape(text)}</div>'


def beside(columns: Iterable[tuple[str, str]]) -> str:
    """Captioned boxes beside each other, or below each other where there is no room.

    Args:
        columns: (caption, HTML of the box).
    """
    cells = "".join(
        f'<div style="flex:1 1 17em; min-width:0;">{caption(name)}{inner}</div>'
        for name, inner in columns
    )
    return (
        f'<div style="display:flex; flex-wrap:wrap; gap:0 .8em; margin-bottom:.6em;">{cells}</div>'
    )


def key(text: str, style: str) -> str:
    """One entry of a legend, on its own background."""
    return (
        f'<span style="display:inline-block; white-space:nowrap; padding:.1em .6em; margin:.1em .25em .1em 0; '
        f'{_BORDER} {style}">'
        f"{html.escape(text)}</span>"
    )


def say(text: str) -> HTML:
    """A paragraph."""
    return HTML(f'<p style="color:inherit;">{html.escape(text)}</p>')


def note(text: str) -> str:
    """A sentence that should not be missed."""
    return f'<div style="{_NOTE}">{html.escape(text)}</div>'


def shown(text: str) -> str:
    """Text of a token, escaped, with a visible ↵ before each line end."""
    return html.escape(text.replace("\n", "↵\n"))


def tokens_text(ids: Iterable[int], breaks: bool = True) -> str:
    """The text of some tokens, escaped, with a visible ↵ at each line end.

    Args:
        breaks: False goes on in the same line after ↵: a model may say nothing but line ends.
    """
    text = shown("".join(token_strings(ids)))
    return text if breaks else text.replace("↵\n", "↵")
