"""Pictures of text, tokens and windows for notebook 01: small HTML pieces and matplotlib figures.

It knows how to draw what it is handed. It deliberately decides nothing: which text, which tokens and which windows
are shown is the notebook's business. Every text goes through `html.escape`, and no meaning rests on colour alone.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from IPython.display import HTML
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt2_nb_utils.tokenization.bpe import printable, token_bytes, token_id, token_strings
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX, WindowOrder

# Background of every n-th token; the text on them is always INK. In grey they differ in lightness too.
TINTS = ("#ffd89c", "#c4e1ff", "#f6f3c0", "#a9d8c0", "#ecd3f2")
INK = "#1a1a1a"

_LINE = "1px solid rgba(128,128,128,.55)"
_CELL = f"border:{_LINE}; padding:.25em .55em; color:inherit; background:transparent; vertical-align:middle;"
_MONO = "font-family:monospace;"
_BOX = (f"display:inline-block; margin:.12em .1em; padding:0 .25em; border:1px solid #555; border-radius:.25em; "
        f"color:{INK}; {_MONO} text-align:center; white-space:pre-wrap; line-height:1.4; vertical-align:top; "
        f"max-width:100%; overflow-wrap:break-word;")
_CODE = "color:inherit; background:transparent; padding:0; white-space:pre-wrap;"
_BELOW = f"display:block; font-size:.72em; color:{INK}; border-top:1px dotted #666;"
_HEAD = f'<th scope="{{scope}}" style="{_CELL} text-align:{{align}}; font-weight:600;">{{text}}</th>'
_TABLE = "border-collapse:collapse; margin:.3em 0; color:inherit; font-size:.95em; table-layout:auto;"
_CAPTION = "text-align:left; color:inherit; padding:.2em 0 .5em;"
_MARKS = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})


def visible(text: str) -> str:
    """The text with a mark for each blank (·), line end (↵) and tab (⇥)."""
    return text.translate(_MARKS)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> HTML:
    """A table that scrolls sideways on a narrow screen. Numbers stand right and get thousands separators.

    Args:
        header: one heading per column.
        rows: the cells; a cell that is an `HTML` object goes in as it is, anything else is escaped.
        caption: what the table shows, in a sentence.
    """
    head = "".join(_head(h) for h in header)
    body = "".join(f'<tr style="background:transparent;">{"".join(map(_cell, row))}</tr>' for row in rows)
    return _scrolling(caption, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def _head(text: object, scope: str = "col", align: str = "left") -> str:
    return _HEAD.format(scope=scope, align=align, text=html.escape(str(text)))


def _cell(value: object) -> str:
    if isinstance(value, HTML):
        return f'<td style="{_CELL} text-align:left;">{value.data}</td>'
    if isinstance(value, (int, np.integer)):
        return f'<td style="{_CELL} text-align:right; font-variant-numeric:tabular-nums;">{value:,}</td>'
    return f'<td style="{_CELL} text-align:left;">{html.escape(str(value))}</td>'


def _scrolling(caption: str, content: str) -> HTML:
    title = f'<caption style="{_CAPTION}">{html.escape(caption)}</caption>' if caption else ""
    return HTML(f'<div style="overflow-x:auto; max-width:100%;"><table style="{_TABLE}">{title}{content}</table></div>')


def code(text: str) -> HTML:
    """A text in a monospaced font, with visible blanks, as a cell of `table`."""
    return HTML(f'<code style="{_CODE}">{html.escape(visible(text))}</code>')


def boxes(texts: Iterable[str]) -> HTML:
    """Each text in a box of its own, in a line that wraps."""
    return _wrapping(_box(text, number) for number, text in enumerate(texts))


def _box(text: str, number: int, below: str = "") -> str:
    """One part in a box of its own: a border and a gap mark its ends, the tint is only an aid."""
    small = f'<span style="{_BELOW}">{below}</span>' if below else ""
    return f'<span style="{_BOX} background:{TINTS[number % len(TINTS)]};">{html.escape(visible(text))}{small}</span>'


def _wrapping(parts: Iterable[str]) -> HTML:
    return HTML(f'<div style="line-height:2; max-width:100%;">{"".join(parts)}</div>')


def coloured_tokens(ids: Iterable[int], show_ids: bool = True, first_tint: int = 0) -> HTML:
    """Each token in a box of its own, its id below; the text's line ends start a new line here too.

    Args:
        ids: token ids `(N,)`.
        show_ids: False leaves the ids out.
        first_tint: number of the first tint, to give a token the same one in two places.
    """
    ids = [int(i) for i in ids]
    texts = token_strings(ids)
    parts = []
    for number, (token, text) in enumerate(zip(ids, texts)):
        parts.append(_box(text, first_tint + number, str(token) if show_ids else ""))
        following = texts[number + 1] if number + 1 < len(texts) else ""
        if "\n" in text and "\n" not in following:
            parts.append("<br>")
    return _wrapping(parts)


def merge_table(merges: Sequence[Sequence[bytes]]) -> HTML:
    """The merges of one word, a row each: the pair that was merged, its rank, and the parts afterwards.

    Args:
        merges: what `merge_steps` returned.
    """
    rows: list[tuple[object, ...]] = [(0, "", "", _row_of_boxes(merges[0]))]
    for number, (before, after) in enumerate(zip(merges, merges[1:]), start=1):
        i = _merged_at(before, after)
        rows.append((number, _row_of_boxes(before[i:i + 2]), token_id(after[i]), _row_of_boxes(after)))
    return table(("merge", "merged pair", "rank", "parts now"), rows)


def _merged_at(before: Sequence[bytes], after: Sequence[bytes]) -> int:
    return next(i for i, part in enumerate(after) if part != before[i])


def _row_of_boxes(parts: Sequence[bytes]) -> HTML:
    inside = "".join(_box(printable(part), number) for number, part in enumerate(parts))
    return HTML(f'<span style="white-space:nowrap;">{inside}</span>')


def shifted_pair(x: torch.Tensor, y: torch.Tensor) -> HTML:
    """One window as two aligned rows: the inputs, and below each the target that the model must predict there.

    The same token has the same tint in both rows, so the eye finds the shift.

    Args:
        x: inputs `(t,)`.
        y: targets `(t,)`, the inputs moved one place to the left.
    """
    places = "".join(_head(t, align="center") for t in range(len(x)))
    body = ""
    for name, ids, first in (("input x", x, 0), ("target y", y, 1)):
        cells = "".join(f'<td style="{_CELL} text-align:center;">{_box(text, first + t, str(token))}</td>'
                        for t, (token, text) in enumerate(zip(ids.tolist(), token_strings(ids))))
        body += f'<tr style="background:transparent;">{_head(name, scope="row")}{cells}</tr>'
    return _scrolling("", f"<thead><tr>{_head('position t')}{places}</tr></thead><tbody>{body}</tbody>")


def batch_table(x: torch.Tensor, y: torch.Tensor) -> HTML:
    """A batch as the model gets it: ids only, row by row; padding is marked.

    Args:
        x: inputs `(B, T)`.
        y: targets `(B, T)`; `IGNORE_INDEX` where x is padding.
    """
    rows = []
    for b in range(len(x)):
        for name, ids in (("x", x[b]), ("y", y[b])):
            cells = [HTML(f'<i>{i} (padding)</i>') if padded else HTML(f'<span style="{_MONO}">{i}</span>')
                     for i, padded in zip(ids.tolist(), (y[b] == IGNORE_INDEX).tolist())]
            rows.append((HTML(f"<b>{name}[{b}]</b>"), *cells))
    return table(("", *(f"t={t}" for t in range(x.shape[1]))), rows)


def merge_tree(merges: Sequence[Sequence[bytes]]) -> Figure:
    """The merges of one word as a tree: bytes at the bottom, one merge per row, the tokens on top."""
    figure, axes = pyplot.subplots(figsize=(max(4.0, 0.6 * len(merges[0]) + 1.0), 0.45 * len(merges) + 1.0))
    for level, parts in enumerate(merges):
        merged = _merged_at(merges[level - 1], parts) if level else -1
        left = 0
        for number, part in enumerate(parts):
            color, line = (TINTS[0], 1.8) if number == merged else ("white", 0.7)
            axes.add_patch(pyplot.Rectangle((left + 0.06, level + 0.12), len(part) - 0.12, 0.76,
                                            facecolor=color, edgecolor="black", linewidth=line))
            axes.text(left + len(part) / 2, level + 0.5, visible(printable(part)), fontsize=12, family="monospace",
                      ha="center", va="center")
            left += len(part)
    n_bytes, n_rows = len(merges[0]), len(merges)
    axes.set(xlim=(0, n_bytes), ylim=(0, n_rows), xlabel="byte of the word", ylabel="merges done")
    axes.set_xticks(np.arange(n_bytes) + 0.5, range(n_bytes))
    axes.set_yticks(np.arange(n_rows) + 0.5, range(n_rows))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def token_lengths(ids: np.ndarray) -> Figure:
    """Share of tokens by their length in bytes: as they occur in the text, and each distinct one once.

    Args:
        ids: token ids of the corpus `(N,)`.
    """
    distinct, counts = np.unique(ids, return_counts=True)
    lengths = np.array([len(piece) for piece in token_bytes(distinct)])
    places = np.arange(1, min(lengths.max(), 16) + 1)
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for weights, label, shift, color, hatch in ((counts, "tokens of the text", -0.2, "#33628f", ""),
                                                (np.ones_like(counts), "distinct tokens", 0.2, "white", "////")):
        shares = np.bincount(np.minimum(lengths, 16), weights=weights)[1:len(places) + 1] / weights.sum()
        axes.bar(places + shift, 100 * shares, 0.4, label=label, color=color, hatch=hatch, edgecolor="black")
    labels = [str(place) for place in places]
    if lengths.max() > 16:
        labels[-1] = "16+"
    axes.set_xticks(places, labels)
    axes.set(xlabel="length of a token (bytes)", ylabel="share (%)")
    return _finished(figure, axes, grid="y")


def zipf(ids: np.ndarray) -> Figure:
    """Frequency of each token against its rank, on logarithmic axes, with a line of slope -1 for comparison.

    Args:
        ids: token ids of the corpus `(N,)`.
    """
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    ranks = np.arange(1, len(counts) + 1)
    middle = min(len(counts), 100) - 1  # the line passes through the 100th token
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    axes.loglog(ranks, counts, ".", color="#33628f", markersize=4, label="tokens of this corpus")
    axes.loglog(ranks, counts[middle] * ranks[middle] / ranks, "--", color="black", linewidth=1.2,
                label="slope −1 (Zipf's law)")
    axes.set(xlabel="rank of the token (1 = most frequent)", ylabel="occurrences", ylim=(0.5, 3 * counts[0]))
    return _finished(figure, axes)


def window_order(order: WindowOrder, epochs: int) -> Figure:
    """Which window training sees at which place, over some epochs: a dot each, a line between epochs.

    Args:
        order: the order to draw.
        epochs: how many epochs to draw.
    """
    n = order.n_windows
    taken = order.take(0, epochs * n)
    figure, axes = pyplot.subplots(figsize=(7, 0.24 * n + 1.4))
    for epoch in range(epochs):
        places = range(epoch * n, (epoch + 1) * n)
        axes.plot(places, taken[epoch * n:(epoch + 1) * n], "os"[epoch % 2], color="#33628f", markersize=8,
                  markerfacecolor=("#33628f", "white")[epoch % 2], label=f"epoch {epoch}")
        if epoch:
            axes.axvline(epoch * n - 0.5, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="position in training (windows)", ylabel="window number", yticks=range(n), ylim=(-0.7, n - 0.3),
             xticks=range(0, epochs * n, max(1, n // 8)))
    return _finished(figure, axes, legend="above")


def window_cut(n_tokens: int, seq_len: int) -> Figure:
    """Where windows cut a row of tokens: inputs above, targets below, one place further on.

    Args:
        n_tokens: tokens in the row, N.
        seq_len: tokens in one window.
    """
    figure, axes = pyplot.subplots(figsize=(7, 1.9))
    for first, height in ((0, 1.15), (1, 0.0)):
        for place in range(n_tokens - 1):
            window = place // seq_len
            look = dict(facecolor=TINTS[window % 3], hatch=("", "//", "..")[window % 3])
            axes.add_patch(pyplot.Rectangle((place + first, height), 1, 1, edgecolor="0.35", linewidth=0.8, **look))
            axes.text(place + first + 0.5, height + 0.5, str(place + first), ha="center", va="center", fontsize=9,
                      bbox=dict(facecolor="white", edgecolor="none", pad=0.8))
        for window in range(0, n_tokens - 1, seq_len):
            width = min(seq_len, n_tokens - 1 - window)
            axes.add_patch(pyplot.Rectangle((window + first, height), width, 1, fill=False, linewidth=2.2, zorder=3))
    axes.set(xlim=(-0.1, n_tokens + 0.1), ylim=(-0.1, 2.25), xticks=[], yticks=[1.65, 0.5],
             yticklabels=["inputs x", "targets y"], xlabel="number of the token in the text (thick boxes are windows)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def character_counts(text: str, most: int = 40) -> Figure:
    """How often the most frequent characters occur, a bar each, on a logarithmic axis."""
    characters, counts = zip(*Counter(text).most_common(most))
    figure, axes = pyplot.subplots(figsize=(7, 3.2))
    axes.bar(range(len(counts)), counts, color="#33628f", edgecolor="black", linewidth=0.6)
    axes.set_xticks(range(len(counts)), [visible(printable(c.encode())) for c in characters], family="monospace")
    axes.set(yscale="log", xlabel="character (· is a blank, ↵ a line end)", ylabel="occurrences")
    return _finished(figure, axes, legend="none", grid="y")


def _finished(figure: Figure, axes: Axes, legend: str = "inside", grid: str = "both") -> Figure:
    axes.grid(True, which="major", axis=grid, color="0.85", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend == "above":
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False)
    elif legend == "inside":
        axes.legend(framealpha=1)
    return figure
