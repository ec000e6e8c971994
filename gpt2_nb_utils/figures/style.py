"""One style for all figures: colours, axes, diagrams, legends, the PNG.

Importing it sets the defaults of matplotlib, so what a reader draws in a notebook looks like the
rest.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import pyplot, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
        "font.sans-serif": ["DejaVu Sans"],  # an SVG repeats the whole list at every text
        "grid.color": "0.92",
        "image.cmap": "Greys",
        "image.interpolation": "none",  # an SVG then holds the cells themselves
        "legend.edgecolor": "none",
        "legend.framealpha": 1,
        "lines.linewidth": 1.2,
        "lines.markersize": 5,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "gpt2_nb_utils",  # the same figure, the same ids
    }
)


def panel(width: float, height: float, **settings: Any) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel.

    Args:
        settings: properties of the axes, such as `xlabel`.
    """
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot(**settings)


def diagram(
    width: float,
    height: float,
    boxes: Sequence[tuple[float, float, str, str]],
    arrows: Iterable[tuple[int, int]],
) -> tuple[Figure, Axes]:
    """A drawing of this size in inches: boxes around texts, and arrows between them; no axes.

    Args:
        boxes: (x, y, text, fill); x from the left and y from above, in inches.
        arrows: (from, to), numbers of boxes.
    """
    figure, axes = panel(width, height, xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    drawn = []
    for x, y, text, fill in boxes:
        frame = dict(boxstyle="round,pad=0.6", facecolor=fill)
        drawn.append(axes.text(x, y, text, ha="center", va="center", bbox=frame))
    for start, end in arrows:
        look = dict(arrowstyle="-|>", facecolor="black", shrinkA=0, shrinkB=0)
        # From middle to middle, cut off at the borders of both boxes.
        look |= dict(patchA=drawn[start].get_bbox_patch(), patchB=drawn[end].get_bbox_patch())
        axes.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=look)
    return figure, axes


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


def reference_losses(axes: Axes, target: float) -> None:
    """Draw the target and a random guess as lines."""
    axes.axhline(target, linestyle="--", label=f"target {target:g}")
    guess = f"random guess\nln {VOCAB_SIZE:,} = {RANDOM_LOSS:.3f}"
    axes.axhline(RANDOM_LOSS, linestyle=(0, (1, 2)), label=guess)


def legend_beside(axes: Axes) -> None:
    """Put the legend to the right of the axes, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)


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


def svg(figure: Figure, tight: bool = True) -> str:
    """The figure as SVG.

    Args:
        tight: cut off the margins; False keeps the size of the figure.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight" if tight else None, metadata={"Date": None}
    )
    return buffer.getvalue()


def display_data(
    figure: Figure, alt: str, vector: bool = True
) -> tuple[dict[str, str], dict[str, Any]]:
    """The figure as the data and metadata of a Jupyter display message; the figure is closed.

    Args:
        vector: False leaves the SVG out, which takes as long as the PNG.
    """
    data = {"image/svg+xml": svg(figure)} if vector else {}
    data["image/png"] = base64.b64encode(png(figure, alt)).decode("ascii")
    return {**data, "text/plain": f"[figure] {alt}"}, dict.fromkeys(data, {"alt": alt})
