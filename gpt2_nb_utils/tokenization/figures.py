"""The figures of notebook 01: merges, frequencies, windows.

It draws what it is handed. It deliberately decides nothing: which text, which tokens and which windows are shown is
the notebook's business. Figures are readable in grey: no meaning rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt2_nb_utils.tokenization.bpe import printable
from gpt2_nb_utils.tokenization.display import TINTS, merged_at, visible
from gpt2_nb_utils.tokenization.windows import WindowOrder


def merge_tree(merges: Sequence[Sequence[bytes]]) -> Figure:
    """The merges of one word as a tree: bytes at the bottom, one merge per row, the tokens on top."""
    figure, axes = pyplot.subplots(
        figsize=(max(4.0, 0.6 * len(merges[0]) + 1.0), 0.45 * len(merges) + 1.0)
    )
    for level, parts in enumerate(merges):
        merged = merged_at(merges[level - 1], parts) if level else -1
        left = 0
        for number, part in enumerate(parts):
            color, line = (TINTS[0], 1.8) if number == merged else ("white", 0.7)
            axes.add_patch(
                pyplot.Rectangle(
                    (left + 0.06, level + 0.12),
                    len(part) - 0.12,
                    0.76,
                    facecolor=color,
                    edgecolor="black",
                    linewidth=line,
                )
            )
            axes.text(
                left + len(part) / 2,
                level + 0.5,
                visible(printable(part)),
                fontsize=12,
                family="monospace",
                ha="center",
                va="center",
            )
            left += len(part)
    n_bytes, n_rows = len(merges[0]), len(merges)
    axes.set(xlim=(0, n_bytes), ylim=(0, n_rows), xlabel="byte of the word", ylabel="merges done")
    axes.set_xticks(np.arange(n_bytes) + 0.5, range(n_bytes))
    axes.set_yticks(np.arange(n_rows) + 0.5, range(n_rows))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


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
    axes.loglog(
        ranks,
        counts[middle] * ranks[middle] / ranks,
        "--",
        color="black",
        linewidth=1.2,
        label="slope −1 (Zipf's law)",
    )
    axes.set(
        xlabel="rank of the token (1 = most frequent)",
        ylabel="occurrences",
        ylim=(0.5, 3 * counts[0]),
    )
    return _finished(figure, axes)


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
            axes.add_patch(
                pyplot.Rectangle(
                    (place + first, height), 1, 1, edgecolor="0.35", linewidth=0.8, **look
                )
            )
            axes.text(
                place + first + 0.5,
                height + 0.5,
                str(place + first),
                ha="center",
                va="center",
                fontsize=9,
                bbox=dict(facecolor="white", edgecolor="none", pad=0.8),
            )
        for window in range(0, n_tokens - 1, seq_len):
            width = min(seq_len, n_tokens - 1 - window)
            axes.add_patch(
                pyplot.Rectangle(
                    (window + first, height), width, 1, fill=False, linewidth=2.2, zorder=3
                )
            )
    axes.set(
        xlim=(-0.1, n_tokens + 0.1),
        ylim=(-0.1, 2.25),
        xticks=[],
        yticks=[1.65, 0.5],
        yticklabels=["inputs x", "targets y"],
        xlabel="number of the token in the text (thick boxes are windows)",
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


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
        axes.plot(
            places,
            taken[epoch * n : (epoch + 1) * n],
            "os"[epoch % 2],
            color="#33628f",
            markersize=8,
            markerfacecolor=("#33628f", "white")[epoch % 2],
            label=f"epoch {epoch}",
        )
        if epoch:
            axes.axvline(epoch * n - 0.5, color="black", linestyle="--", linewidth=1)
    axes.set(
        xlabel="position in training (windows)",
        ylabel="window number",
        yticks=range(n),
        ylim=(-0.7, n - 0.3),
        xticks=range(0, epochs * n, max(1, n // 8)),
    )
    return _finished(figure, axes, legend="above")


def _finished(figure: Figure, axes: Axes, legend: str = "inside") -> Figure:
    axes.grid(True, which="major", color="0.85", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend == "above":
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False)
    else:
        axes.legend(framealpha=1)
    return figure
