"""The figures of notebook 01: merges, frequencies, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from gpt2_nb_utils.figures.html import TINTS, mark_whitespace, merged_at
from gpt2_nb_utils.figures.model import cells
from gpt2_nb_utils.figures.style import BLUE, panel
from gpt2_nb_utils.tokenization.bpe import printable

if TYPE_CHECKING:
    from gpt2_nb_utils.tokenization.dataset import EpochSampler


def merge_tree(merges: Sequence[Sequence[bytes]]) -> Figure:
    """The merges of one word as a tree: bytes at the bottom, one merge per row, the tokens on top.

    Args:
        merges: what `merge_steps` returned.
    """
    n_bytes, n_rows = len(merges[0]), len(merges)
    figure, axes = panel(max(4.0, 0.6 * n_bytes + 1.0), 0.45 * n_rows + 1.0)
    axes.set(xlabel="byte of the word", ylabel="merges done", yticks=range(n_rows))
    axes.set_xticks(np.arange(n_bytes) + 0.5, range(n_bytes))
    for level, parts in enumerate(merges):
        lengths = np.array([len(part) for part in parts])
        is_new = np.arange(len(parts)) == (merged_at(merges[level - 1], parts) if level else -1)
        look = dict(edgecolor="black", linewidth=np.where(is_new, 1.8, 0.7))
        look["color"] = np.where(is_new, TINTS[0], "white")
        bars = axes.barh(level, lengths, left=lengths.cumsum() - lengths, height=0.76, **look)
        texts = [mark_whitespace(printable(part)) for part in parts]
        look = dict(family="monospace", parse_math=False)  # "$" would start a formula
        axes.bar_label(bars, texts, label_type="center", **look)
    return figure


def zipf(ids: np.ndarray) -> Figure:
    """Frequency of each token against its rank, on logarithmic axes, beside a line of slope -1.

    Args:
        ids: token ids of the corpus `(N,)`.
    """
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    ranks = np.arange(1, len(counts) + 1)
    middle = min(len(counts), 100) - 1  # the line passes through the 100th token
    law = counts[middle] * ranks[middle] / ranks
    figure, axes = panel(7, 4.2, xlabel="rank of the token (1 = most frequent)")
    # On a logarithmic axis the other dots would lie on top of each other.
    drawn = np.unique(np.geomspace(1, len(counts), 800).round().astype(int)) - 1
    axes.loglog(ranks[drawn], counts[drawn], ".", color=BLUE, label="tokens of this corpus")
    axes.loglog(ranks, law, "--", label="slope −1 (Zipf's law)")
    axes.set(ylabel="occurrences", ylim=(0.5, 3 * counts[0]))
    axes.legend()
    return figure


def window_cut(n_tokens: int, seq_len: int) -> Figure:
    """Where windows cut a row of tokens: inputs above, targets below, one place further on.

    Args:
        n_tokens: tokens in the row, N.
        seq_len: tokens in one window.
    """
    places = np.arange(n_tokens - 1)
    windows = places // seq_len  # the window of each prediction
    shades, texts = np.zeros((2, n_tokens)), np.full((2, n_tokens), "", dtype=object)
    for row, shift in enumerate((0, 1)):
        shades[row, places + shift] = 0.1 + 0.25 * (windows % 2)
        texts[row, places + shift] = windows
    xlabel = "number of the token in the text (in the boxes: of the window)"
    figure, axes = panel(9, 1.6, xlabel=xlabel)
    cells(axes, shades, texts, ("inputs", "targets"), range(n_tokens))
    return figure


def window_order(order: EpochSampler, epochs: int) -> Figure:
    """Which window training sees at which place: a dot each, a line between epochs.

    Args:
        order: the order to draw.
        epochs: how many epochs to draw.
    """
    n = order.n_windows
    size = epochs * n
    figure, axes = panel(7, 0.24 * n + 1.4, xlabel="position in training (windows)")
    axes.plot(range(size), order.take(0, size), "o", color=BLUE, markersize=8)
    axes.set(ylabel="window number", xticks=range(0, size, max(1, n // 8)), yticks=range(n))
    for epoch in range(1, epochs):
        axes.axvline(epoch * n - 0.5, linestyle="--", label=f"epoch {epoch} begins")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure
