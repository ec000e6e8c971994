"""The figures of notebook 01: merges, frequencies, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from gpt2_nb_utils.figures.html import TINTS, mark_whitespace, merged_at
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
    figure, axes = panel(
        max(4.0, 0.6 * n_bytes + 1.0),
        0.45 * n_rows + 1.0,
        xlim=(0, n_bytes),
        ylim=(-0.5, n_rows - 0.5),
        xlabel="byte of the word",
        ylabel="merges done",
        yticks=range(n_rows),
    )
    axes.set_xticks(np.arange(n_bytes) + 0.5, range(n_bytes))
    for level, parts in enumerate(merges):
        lengths = np.array([len(part) for part in parts])
        is_new = np.arange(len(parts)) == (merged_at(merges[level - 1], parts) if level else -1)
        bars = axes.barh(
            level,
            lengths - 0.12,
            left=lengths.cumsum() - lengths + 0.06,
            height=0.76,
            color=np.where(is_new, TINTS[0], "white"),
            edgecolor="black",
            linewidth=np.where(is_new, 1.8, 0.7),
        )
        texts = [mark_whitespace(printable(part)) for part in parts]
        axes.bar_label(
            bars, texts, label_type="center", fontsize=12, family="monospace", parse_math=False
        )
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
    axes.loglog(ranks, counts, ".", color=BLUE, label="tokens of this corpus")
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
    figure, axes = panel(
        7,
        1.9,
        xlim=(-0.1, n_tokens + 0.1),
        ylim=(-0.1, 2.25),
        xticks=[],
        xlabel="number of the token in the text (thick boxes are windows)",
    )
    places = np.arange(n_tokens - 1)
    windows, starts = places // seq_len % 3, places[::seq_len]
    widths = np.minimum(seq_len, n_tokens - 1 - starts)
    for first, middle in ((0, 1.65), (1, 0.5)):
        tokens = axes.barh(
            middle,
            1,
            left=places + first,
            height=1,
            color=np.take(TINTS, windows),
            hatch=np.take(("", "//", ".."), windows).tolist(),
            edgecolor="0.35",
            linewidth=0.8,
        )
        paper = dict(facecolor="white", edgecolor="none", pad=0.8)
        axes.bar_label(tokens, places + first, label_type="center", fontsize=9, bbox=paper)
        axes.barh(
            middle, widths, left=starts + first, height=1, fill=False, linewidth=2.2, zorder=3
        )
    axes.set_yticks([1.65, 0.5], ["inputs x", "targets y"])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def window_order(order: EpochSampler, epochs: int) -> Figure:
    """Which window training sees at which place: a dot each, a line between epochs.

    Args:
        order: the order to draw.
        epochs: how many epochs to draw.
    """
    n = order.n_windows
    figure, axes = panel(
        7,
        0.24 * n + 1.4,
        xlabel="position in training (windows)",
        ylabel="window number",
        yticks=range(n),
        ylim=(-0.7, n - 0.3),
        xticks=range(0, epochs * n, max(1, n // 8)),
    )
    for epoch in range(epochs):
        axes.plot(
            range(epoch * n, (epoch + 1) * n),
            order.take(epoch * n, n),
            "os"[epoch % 2],
            color=BLUE,
            markersize=8,
            markerfacecolor=(BLUE, "white")[epoch % 2],
            label=f"epoch {epoch}",
        )
        if epoch:
            axes.axvline(epoch * n - 0.5, linestyle="--")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    return figure
