"""Small pieces of HTML: tables, tokens, windows, boxes with text, captions, notes.

Everything handed in as text is escaped here. Boxes set text and background colour together, so they
read the same on a light and on a dark page; they wrap on a narrow one. No meaning rests on colour
alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np
from bs4 import BeautifulSoup
from IPython import display
from torch import Tensor

from gpt2_nb_utils.tokenization.bpe import printable, token_id, token_strings
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX

# Background of every n-th token, also distinct in grey; the text on them is always INK.
TINTS = ("#ffd89c", "#c4e1ff", "#f6f3c0", "#a9d8c0", "#ecd3f2")
INK = "#1a1a1a"

_LINE = "1px solid rgba(128,128,128,.55)"
_CELL = (
    f"border:{_LINE}; padding:.25em .55em; color:inherit; background:transparent; "
    f"vertical-align:middle;"
)
_MONO = "font-family:monospace;"
_BOX = (
    f"display:inline-block; margin:.12em .1em; padding:0 .25em; border:1px solid #555; "
    f"border-radius:.25em; color:{INK}; {_MONO} text-align:center; white-space:pre-wrap; "
    f"line-height:1.4; vertical-align:top; "
    f"max-width:100%; overflow-wrap:break-word;"
)
_CODE = "color:inherit; background:transparent; padding:0; white-space:pre-wrap;"
_BELOW = f"display:block; font-size:.72em; color:{INK}; border-top:1px dotted #666;"
_HEAD = f'<th scope="col" style="{_CELL} text-align:left; font-weight:600;">'
_TABLE = (
    "border-collapse:collapse; margin:.3em 0; color:inherit; font-size:.95em; table-layout:auto;"
)
_CAPTION = "text-align:left; color:inherit; padding:.2em 0 .5em;"
FAINT = "color:#5a5a5a; background:#ececec;"
_BORDER = "border:1px solid #8a8a8a; border-radius:4px;"
_TEXT_BOX = (
    f"{_MONO} white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.5; padding:.5em .7em; "
    f"{_BORDER} color:{INK}; background:#ffffff; margin:.2em 0;"
)
_NOTE = (
    "color:inherit; border:1px solid #8a8a8a; border-left:5px solid #b8621b; "
    "padding:.4em .8em; margin:.4em 0;"
)
_MARKS = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})


class HTML(display.HTML):
    """HTML that also says as plain text what it shows: for a PDF, a terminal, a code host."""

    def __repr__(self) -> str:
        page = BeautifulSoup(self.data, "html.parser")
        for tag in page("br"):
            tag.replace_with("\n")
        for row in page("tr"):  # a row is one line
            cells = (" ".join(cell.get_text().split()) for cell in row(("td", "th")))
            row.string = " | ".join(cells) + "\n"
        for tag in page(("caption", "div", "p")):
            tag.append("\n")
        lines = (line.rstrip() for line in page.get_text().splitlines())
        return "\n".join(line for line in lines if line)


def mark_whitespace(text: str) -> str:
    """The text with a mark in place of each space (·), line break (↵) and tab (⇥)."""
    return text.translate(_MARKS)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> HTML:
    """A table that scrolls sideways on a narrow screen; integers get thousands separators.

    Args:
        header: one heading per column.
        rows: the cells; a cell that is an `HTML` object goes in as it is, anything else is escaped.
        caption: what the table shows, in a sentence.
    """
    head = "".join(f"{_HEAD}{html.escape(str(text))}</th>" for text in header)
    body = "".join(
        f'<tr style="background:transparent;">{"".join(map(_cell, row))}</tr>' for row in rows
    )
    title = f'<caption style="{_CAPTION}">{html.escape(caption)}</caption>' if caption else ""
    return HTML(
        f'<div style="overflow-x:auto; max-width:100%;"><table style="{_TABLE}">{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    is_count = isinstance(value, (int, np.integer))
    text = html.escape(f"{value:,}" if is_count else str(value))
    align = "right; font-variant-numeric:tabular-nums" if is_count else "left"
    inner = value.data if isinstance(value, HTML) else text
    return f'<td style="{_CELL} text-align:{align};">{inner}</td>'


def code(text: str) -> HTML:
    """A text in a monospaced font, with marked whitespace, as a cell of `table`."""
    return HTML(f'<code style="{_CODE}">{html.escape(mark_whitespace(text))}</code>')


def boxes(texts: Iterable[str]) -> HTML:
    """Each text in a box of its own, in a line that wraps."""
    return _wrapping(_box(text, number) for number, text in enumerate(texts))


def _box(text: str, number: int, below: str = "") -> str:
    """One part in a box of its own: a border and a gap mark its ends, the tint is only an aid."""
    small = f' <sub style="{_BELOW}">{below}</sub>' if below else ""
    style = f"{_BOX} background:{TINTS[number % len(TINTS)]};"
    return f'<span style="{style}">{html.escape(mark_whitespace(text))}{small}</span>'


def _wrapping(parts: Iterable[str]) -> HTML:
    # Spaces, so that the parts stay apart where a site removes the styles.
    return HTML(
        f'<div style="line-height:2; max-width:100%;">{" ".join(parts).replace("<br> ", "<br>")}</div>'
    )


def coloured_tokens(ids: Iterable[int], show_ids: bool = True, first_tint: int = 0) -> HTML:
    """Each token in a box of its own, its id below; line breaks of the text start a new line.

    Args:
        ids: token ids `(N,)`.
        show_ids: False leaves the ids out.
        first_tint: number of the first tint, to give a token the same one in two places.
    """
    ids = [int(i) for i in ids]
    texts = token_strings(ids)
    parts = []
    for tint, (token, text, following) in enumerate(zip(ids, texts, [*texts[1:], ""]), first_tint):
        parts.append(_box(text, tint, str(token) if show_ids else ""))
        if "\n" in text and "\n" not in following:
            parts.append("<br>")
    return _wrapping(parts)


def merge_table(merges: Sequence[Sequence[bytes]]) -> HTML:
    """The merges of one word, a row each: the merged pair, its rank, and the parts afterwards.

    Args:
        merges: what `merge_steps` returned.
    """
    rows: list[tuple[object, ...]] = [(0, "", "", boxes(map(printable, merges[0])))]
    for number, (before, after) in enumerate(zip(merges, merges[1:]), start=1):
        i = merged_at(before, after)
        pair, parts = (boxes(map(printable, some)) for some in (before[i : i + 2], after))
        rows.append((number, pair, token_id(after[i]), parts))
    return table(("merge", "merged pair", "rank", "parts now"), rows)


def merged_at(before: Sequence[bytes], after: Sequence[bytes]) -> int:
    """Index of the part of `after` that one merge made out of two neighbours in `before`."""
    return next(i for i, part in enumerate(after) if part != before[i])


def shifted_pair(x: Tensor, y: Tensor) -> HTML:
    """One window as two aligned rows: the inputs, and below each the target to predict there.

    The same token has the same tint in both rows, so the eye finds the shift.

    Args:
        x: inputs `(t,)`.
        y: targets `(t,)`, the inputs moved one place to the left.
    """
    rows = [
        (
            name,
            *(coloured_tokens([token], first_tint=tint) for tint, token in enumerate(ids, first)),
        )
        for name, ids, first in (("input x", x, 0), ("target y", y, 1))
    ]
    return table(("position t", *range(len(x))), rows)


def batch_table(x: Tensor, y: Tensor) -> HTML:
    """A batch as the model gets it: ids only, row by row; padding is marked.

    Args:
        x: inputs `(B, T)`.
        y: targets `(B, T)`; `IGNORE_INDEX` where x is padding.
    """
    rows = []
    for b, padded in enumerate((y == IGNORE_INDEX).tolist()):
        for name, ids in (("x", x[b]), ("y", y[b])):
            cells = [f"{i} (padding)" if gap else str(i) for i, gap in zip(ids.tolist(), padded)]
            rows.append((f"{name}[{b}]", *cells))
    return table(("", *(f"t={t}" for t in range(x.shape[1]))), rows)


def box(inner: str) -> str:
    """A box with monospaced text.

    Args:
        inner: HTML, escaped by the caller.
    """
    return f'<div style="{_TEXT_BOX}">{inner}</div>'


def caption(text: str) -> str:
    """A line above a box."""
    return f'<div style="color:inherit; font-size:.9em; margin-top:.6em;">{html.escape(text)}</div>'


def beside(columns: Iterable[tuple[str, str]]) -> str:
    """Captioned boxes beside each other, or below each other where there is no room.

    Args:
        columns: (caption, HTML inside the box, escaped by the caller).
    """
    cells = "".join(
        f'<div style="flex:1 1 17em; min-width:0;">{caption(name)}{box(inner)}</div>'
        for name, inner in columns
    )
    return (
        f'<div style="display:flex; flex-wrap:wrap; gap:0 .8em; margin-bottom:.6em;">{cells}</div>'
    )


def key(text: str, style: str) -> str:
    """One entry of a legend, on its own background."""
    return (
        f'<span style="display:inline-block; white-space:nowrap; padding:.1em .6em; '
        f'margin:.1em .25em .1em 0; {_BORDER} {style}">'
        f"{html.escape(text)}</span>"
    )


def say(text: str) -> HTML:
    """A paragraph."""
    return HTML(f'<p style="color:inherit;">{html.escape(text)}</p>')


def note(text: str) -> str:
    """A sentence that should not be missed."""
    return f'<div style="{_NOTE}">{html.escape(text)}</div>'


def shown(text: str) -> str:
    """Text of a token, escaped, with a visible ↵ before each line break."""
    return html.escape(text.replace("\n", "↵\n"))


def marked(ids: Iterable[int], style: str = "", breaks: bool = False) -> str:
    """The text of some tokens in a style of its own, escaped, with a visible ↵ at each line break.

    Args:
        breaks: False continues in the same line after ↵: a model may say nothing but line breaks.
    """
    text = shown("".join(token_strings(ids)))
    if not breaks:
        text = text.replace("↵\n", "↵")
    return f'<span style="{style}">{text}</span>' if style and text else text
