"""Where the heads of a trained model look: all of them at a glance, one enlarged, and those with a plain habit by name.

It draws and counts attention weights that it is handed. It deliberately does not say what a head is for: where it looks is
not yet what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from IPython.display import HTML
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.tokenization.display import table, visible

HABITS = ("the first token", "itself", "the token before", "any other token")
"""Where a head can look; each weight counts for one of them."""
_DARKEST = 0.5
"""The attention weight from which a map is black: rarely does a head put more on a single token."""
_BETWEEN = "#c9dbec"
"""The colour between two maps, whose own upper right is white."""


@dataclass(frozen=True)
class Head:
    """One attention head. Layers and heads are counted from 0, as in the lists that hold them."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer {self.layer + 1}, head {self.head + 1}"


def habits(maps: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The share of its attention that each head gives to each of HABITS, averaged over the tokens of a line.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them; T at least 3.

    Returns:
        (L, H) for each habit; together they are 1. The first two tokens are left out: theirs cannot be told apart.
    """
    weights = np.stack([layer[0].float().cpu().numpy() for layer in maps])[
        :, :, 2:
    ]  # (L, H, T - 2, T)
    queries = np.arange(weights.shape[2])
    shares = {
        "the first token": weights[..., 0],
        "itself": weights[:, :, queries, queries + 2],
        "the token before": weights[:, :, queries, queries + 1],
    }
    shares = {name: share.mean(axis=-1) for name, share in shares.items()}
    return {**shares, "any other token": 1 - sum(shares.values())}


def strongest(maps: Sequence[Tensor], habit: str) -> Head:
    """The head that looks most at one of HABITS."""
    shares = habits(maps)[habit]
    return Head(*map(int, np.unravel_index(shares.argmax(), shares.shape)))


def habits_table(maps: Sequence[Tensor]) -> HTML:
    """For each of HABITS the head that has most of it, how much, and how much an average head has."""
    rows = []
    for habit, shares in habits(maps).items():
        rows.append(
            (
                f"looks at {habit}",
                str(strongest(maps, habit)),
                f"{shares.max():.0%}",
                f"{shares.mean():.0%}",
            )
        )
    return table(
        ("habit", "the head that has most of it", "share of its attention", "average head"), rows
    )


def all_heads(maps: Sequence[Tensor]) -> Figure:
    """Every attention map as a small picture: a row for each layer, a column for each head.

    Args:
        maps: one (1, H, T, T) per layer.
    """
    n_layers, n_heads, T = len(maps), maps[0].size(1), maps[0].size(2)
    gap = 1 + T // 8  # cells between two maps
    # One picture of all: a hundred and more panels would take matplotlib many times as long.
    mosaic = np.full(
        (n_layers * (T + gap) + gap, n_heads * (T + gap) + gap), np.nan, dtype=np.float32
    )
    for layer, head in np.ndindex(n_layers, n_heads):
        mosaic[place(layer, T, gap), place(head, T, gap)] = (
            maps[layer][0, head].float().cpu().numpy()
        )
    side = min(2.0, 9.0 / n_heads)  # inches for a map
    figure = Figure(figsize=(0.9 + side * n_heads, 0.6 + side * n_layers), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["Greys"].with_extremes(bad=_BETWEEN)
    axes.imshow(mosaic, cmap=shades, vmin=0, vmax=_DARKEST, interpolation="nearest")
    for axis, name, n in ((axes.yaxis, "layer", n_layers), (axes.xaxis, "head", n_heads)):
        axis.set_ticks([gap + i * (T + gap) + (T - 1) / 2 for i in range(n)], range(1, n + 1))
        axis.set_label_text(name)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def place(number: int, T: int, gap: int) -> slice:
    """Where map number `number` lies along a side of the picture of all heads, in cells."""
    return slice(gap + number * (T + gap), (number + 1) * (T + gap))


def one_head(maps: Sequence[Tensor], which: Head, pieces: Sequence[str]) -> Figure:
    """The map of one head with its tokens: row by row, where each token looks.

    Args:
        maps: one (1, H, T, T) per layer.
        which: the head.
        pieces: the T tokens as text.
    """
    weights = maps[which.layer][0, which.head].float().cpu().numpy()
    side = 1.6 + 0.27 * len(pieces)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="Greys", vmin=0, vmax=_DARKEST)
    for axis, rotation in ((axes.xaxis, 90), (axes.yaxis, 0)):
        axis.set_ticks(
            range(len(pieces)),
            [visible(piece) for piece in pieces],
            fontsize=9,
            rotation=rotation,
            parse_math=False,
        )  # a corpus may hold dollar signs
    axes.set(xlabel="token looked at", ylabel="token that looks")
    axes.set_title(str(which), fontsize=11)
    figure.colorbar(
        image, ax=axes, label=f"attention weight (darkest: {_DARKEST:g} and more)", shrink=0.8
    )
    return figure


def in_words(maps: Sequence[Tensor], which: Head, pieces: Sequence[str]) -> str:
    """What the enlarged map says, for those who cannot see it: where each of the last tokens looks most."""
    weights = maps[which.layer][0, which.head].float().cpu().numpy()
    said = [
        f"“{visible(pieces[t])}” at “{visible(pieces[int(weights[t].argmax())])}” ({weights[t].max():.0%})"
        for t in range(max(1, len(pieces) - 6), len(pieces))
    ]
    return f"Where the last tokens look most, {which}: {', '.join(said)}."
