"""One style for all figures: colours, axes, boxes and arrows, labels at line ends, the PNG.

Importing it sets the defaults of matplotlib, so what a reader draws in a notebook looks like the
rest.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import pyplot, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullLocator

from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE

BLUE, PALE, WARM, GREY = "#1f5a96", "#d6e6f5", "#ffe0ad", "0.55"
"""The palette, from dark to light in grey: BLUE, GREY, PALE and WARM."""
RANDOM_LOSS = math.log(VOCAB_SIZE)
"""The loss of a uniform guess among all tokens of the vocabulary, nats per token."""


rcParams.update(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": "0.4",
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=["black", BLUE, GREY]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "grid.color": "0.92",
        "image.cmap": "Greys",
        "legend.edgecolor": "none",
        "legend.framealpha": 1,
        "lines.linewidth": 1.2,
        "lines.markersize": 5,
    }
)


def panel(width: float, height: float, **settings: Any) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel.

    Args:
        settings: properties of the axes, such as `xlabel`.
    """
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot(**settings)


def canvas(width: float, height: float, right: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure for a drawing: x from 0 to `right`, y from 0 (above) to `bottom`, no axes."""
    figure, axes = panel(width, height, xlim=(0, right), ylim=(bottom, 0))
    axes.axis("off")
    return figure, axes


def write(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text around this point."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 11, **look})


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    text: str,
    fill: str,
    height: float = 0.9,
    **look: Any,
) -> None:
    """Draw a box with rounded corners around its text."""
    corner = x - width / 2, y - height / 2
    shape = dict(boxstyle="round,pad=0.02,rounding_size=0.15", facecolor=fill, zorder=3)
    axes.add_patch(FancyBboxPatch(corner, width, height, **shape))
    write(axes, x, y, text, zorder=4, **look)


def arrow(axes: Axes, *places: tuple[float, float]) -> None:
    """Draw a line through these places with its head at the last one."""
    look = dict(arrowstyle="-|>", mutation_scale=14, linewidth=1.4, facecolor="black")
    axes.add_patch(FancyArrowPatch(path=Path(places), **look))


def column(
    rows: Sequence[Any], name: str, x: str = "step"
) -> tuple[Sequence[float], Sequence[float]]:
    """The values of a column of the metrics that are finite, after the x value of each."""
    pairs = ((getattr(row, x), getattr(row, name)) for row in rows)
    pairs = [(x, value) for x, value in pairs if value is not None and math.isfinite(value)]
    return tuple(zip(*pairs)) or ((), ())


def moving_average(values: Sequence[float], n_rows: int | None = None) -> list[float]:
    """The mean of each value and those before it, `n_rows` in all (fewer at the start).

    Args:
        n_rows: None takes a fortieth of the values, at least 5.
    """
    n_rows = n_rows or max(5, len(values) // 40)
    array = np.asarray(values, dtype=np.float64)
    return [array[max(0, end - n_rows) : end].mean().item() for end in range(1, len(array) + 1)]


def plain_log_axis(axes: Axes, low: float, high: float) -> None:
    """Give the y axis a logarithmic scale with plain numbers: 0.1, 0.2, 0.5, 1, 2, 5, 10 …"""
    axes.set(yscale="log", ylim=(low, high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def reference_losses(axes: Axes, target: float) -> list[tuple[str, float, str]]:
    """Draw the target and a random guess as lines; returns what `label_ends` writes beside them."""
    axes.axhline(target, linestyle="--")
    axes.axhline(RANDOM_LOSS, linestyle=(0, (1, 2)))
    guess = f"random guess\nln {VOCAB_SIZE:,} = {RANDOM_LOSS:.3f}"
    return [(f"target {target:g}", target, "black"), (guess, RANDOM_LOSS, "black")]


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write (text, y value, colour) beside the right edge, pushed apart where they would overlap.

    Call it last: it reads the limits of the axes.
    """
    ends = sorted(ends, key=lambda end: end[1])
    to_share = axes.transData + axes.transAxes.inverted()
    shares = to_share.transform([(0, y) for _, y, _ in ends])[:, 1]
    line = 11.5 / 72 / (axes.figure.get_size_inches()[1] * 0.78)  # height, as a share of the axes
    heights = np.array([line * (1 + text.count("\n")) for text, _, _ in ends])
    pile = heights.cumsum() - heights / 2  # their places where they lie on each other from 0
    places = np.maximum.accumulate(shares - pile) + pile  # up from below
    places = np.minimum(
        places, 1 - pile[-1] + pile
    )  # a pile that grew over the top comes down again
    leader = dict(arrowstyle="-", color="0.6", linewidth=0.7, shrinkA=0, shrinkB=0, relpos=(0, 0.5))
    for (text, _, colour), share, place in zip(ends, shares, places):
        moved = dict(arrowprops=leader) if abs(place - share) > 0.01 else {}
        look = dict(va="center", fontsize=9, color=colour, annotation_clip=False, **moved)
        axes.annotate(text, (1, share), (1.03, place), "axes fraction", **look)


def png(figure: Figure, alt: str) -> bytes:
    """The figure as a PNG that carries its alternative text; the figure is closed.

    Args:
        alt: what the figure says, in a sentence, for those who cannot see it.
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Description": alt}
    )
    pyplot.close(figure)  # a figure made with pyplot would be shown a second time by Jupyter
    return buffer.getvalue()


def display_data(figure: Figure, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The figure as the data and metadata of a Jupyter display message; the figure is closed."""
    image = base64.b64encode(png(figure, alt)).decode("ascii")
    return {"image/png": image, "text/plain": f"[figure] {alt}"}, {"image/png": {"alt": alt}}
