"""What curve figures of several rooms share: a moving average, a plain logarithmic axis, labels at the ends of lines.

It knows matplotlib and numbers. It deliberately does not know what any curve means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator


def smoothing_rows(n_rows: int) -> int:
    """Over how many rows the moving average of `n_rows` goes: a fortieth of them, at least 5."""
    return max(5, n_rows // 40)


def moving_average(values: Sequence[float], n_rows: int) -> list[float]:
    """The mean of each value and those before it, `n_rows` in all (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - n_rows)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel: no frame, a faint grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.4")
    axes.tick_params(color="0.4")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def plain_log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers: 0.1, 0.2, 0.5, 1, 2, 5, 10 …"""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 5 else (1,)
    axes.yaxis.set_major_locator(
        FixedLocator([factor * 10.0**decade for decade in decades for factor in factors])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write (text, y value, colour) beside the right edge, pushed apart where they would lie on each other."""
    to_share = axes.transData + axes.transAxes.inverted()
    wanted = sorted(
        (float(to_share.transform((0, y))[1]), text, colour) for text, y, colour in ends
    )
    height = (
        11.5 / 72 / (axes.figure.get_size_inches()[1] * 0.78)
    )  # of one line, as a share of the axes
    halves = [height * (1 + text.count("\n")) / 2 for _, text, _ in wanted]
    places = [share for share, _, _ in wanted]
    for i in range(1, len(places)):  # up from below
        places[i] = max(places[i], places[i - 1] + halves[i - 1] + halves[i])
    for i in reversed(range(len(places))):  # a pile that grew over the top comes down again
        ceiling = places[i + 1] - halves[i + 1] - halves[i] if i + 1 < len(places) else 1.0
        places[i] = min(places[i], ceiling)
    for (share, text, colour), place in zip(wanted, places):
        moved = abs(place - share) > 0.01
        arrow = (
            dict(arrowstyle="-", color="0.6", linewidth=0.7, shrinkA=0, shrinkB=0, relpos=(0, 0.5))
            if moved
            else None
        )
        axes.annotate(
            text,
            (1.0, share),
            xycoords="axes fraction",
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops=arrow,
            annotation_clip=False,
        )
