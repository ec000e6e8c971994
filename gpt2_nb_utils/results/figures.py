"""The curves of a run, drawn from the rows of its metrics.

It draws whatever rows there are, none included, and fast enough to be drawn anew while a run goes on (notebook 03). It
deliberately knows no files. Every curve carries its own label and its own stroke, so nothing rests on colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, loss_text
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.training.run_log import Row

BLUE, GREY = "#1f5a96", "0.58"
_LOG_FROM = 5.0
"""A largest value so many times the smallest gets a logarithmic axis: below, a linear one is easier to read."""
_MANY = 60
"""Rows from which single ones are no longer marked with a dot."""

_AVERAGED_FROM = 25
"""Rows from which a moving average tells more than the rows themselves."""

_QUANTITIES = {
    "lr": ("learning rate", "learning rate"),
    "grad_norm": ("gradient norm", "gradient norm"),
    "tok_per_s": ("speed", "speed (tokens/s)"),
    "loss_scale": ("loss scale", "loss scale (factor)"),
}


def loss_figure(rows: Sequence[Row], target: float = TARGET_LOSS) -> Figure:
    """Batch loss, its moving average, and the training loss as marked points, with target and random guess as lines.

    Args:
        rows: the metrics so far; one row, or none, will do.
        target: the training loss to reach, nats per token.
    """
    figure, axes = _axes(8, 4.2)
    batch, training = _points(rows, "loss"), _points(rows, "train_loss")
    ends: list[tuple[str, float, str]] = []
    if batch:
        steps, losses = zip(*batch)
        smooth = moving_average(losses, smoothing_rows(len(losses)))
        axes.plot(steps, losses, color=GREY, linewidth=0.8, marker="." if len(batch) <= _MANY else "", markersize=4)
        if len(batch) >= _AVERAGED_FROM:
            axes.plot(steps, smooth, color="black", linewidth=1.8)
            ends.append(("moving average", smooth[-1], "black"))
        ends.append(("batch loss", losses[-1], "0.4"))
    if training:
        steps, losses = zip(*training)
        axes.plot(steps, losses, color=BLUE, linewidth=1.0, linestyle=(0, (4, 2)), marker="D", markersize=5.5,
                  markerfacecolor="white", markeredgewidth=1.5, zorder=4)
        ends.append(("training loss ◇", losses[-1], BLUE))
    drawn = [loss for _, loss in batch + training]
    _loss_axis(axes, drawn, target)
    axes.axhline(target, color="black", linewidth=1.2, linestyle="--")
    axes.axhline(RANDOM_LOSS, color="black", linewidth=1.0, linestyle=(0, (1, 2)))
    ends += [(f"target {target:g}", target, "black"),
             (f"random guess\nln {VOCAB_SIZE:,} = {RANDOM_LOSS:.3f}", RANDOM_LOSS, "black")]
    axes.set_ylabel("loss (nats per token)")
    _steps_and_epochs(axes, rows)
    _label_ends(axes, ends)
    return figure


def learning_rate_figure(rows: Sequence[Row]) -> Figure:
    """The learning rate of each logged update."""
    return _curve(rows, "lr")


def grad_norm_figure(rows: Sequence[Row], clip_grad: float = 0.0) -> Figure:
    """The gradient norm before clipping, with the norm to which larger ones are shortened.

    Args:
        clip_grad: that norm; 0 means no clipping.
    """
    return _curve(rows, "grad_norm", level=clip_grad or None, level_name=f"clipped to {clip_grad:g}", may_be_log=True)


def speed_figure(rows: Sequence[Row]) -> Figure:
    """Tokens per second of training, from one logged step to the next."""
    return _curve(rows, "tok_per_s")


def loss_scale_figure(rows: Sequence[Row]) -> Figure:
    """The factor of the GradScaler (fp16 only), on an axis of powers of two."""
    figure = _curve(rows, "loss_scale")
    axes = figure.axes[0]
    scales = [scale for _, scale in _points(rows, "loss_scale") if scale > 0]
    if scales:
        axes.set_yscale("log", base=2)
        axes.set_ylim(min(scales) / 2, max(scales) * 2)
    return figure


def in_words(rows: Sequence[Row], name: str) -> str:
    """What the curve of one column says, for those who cannot see it.

    Args:
        name: a column of the metrics, such as `loss` or `lr`.
    """
    points = _points(rows, name)
    text = {"loss": "batch loss", "train_loss": "training loss"}.get(name) or _QUANTITIES[name][0]
    if not points:
        return f"No {text} was logged."
    (first, start), (last, end) = points[0], points[-1]
    number = loss_text if name.endswith("loss") else lambda value: f"{value:.4g}"
    if first == last:
        return f"{text[:1].upper()}{text[1:]} {number(start)} at step {first:,}."
    peak_step, peak = max(points, key=lambda point: point[1])
    low_step, low = min(points, key=lambda point: point[1])
    return (f"{text[:1].upper()}{text[1:]} from {number(start)} at step {first:,} to {number(end)} at step {last:,}; "
            f"highest {number(peak)} at step {peak_step:,}, lowest {number(low)} at step {low_step:,}.")


def loss_in_words(rows: Sequence[Row], target: float = TARGET_LOSS) -> str:
    """What the loss figure says, for those who cannot see it."""
    return f"{in_words(rows, 'loss')} {in_words(rows, 'train_loss')} Target {target:g}, random guess {RANDOM_LOSS:.3f}."


def smoothing_rows(n_rows: int) -> int:
    """Over how many rows the moving average of `n_rows` goes: a fortieth of them, at least 5."""
    return max(5, n_rows // 40)


def moving_average(values: Sequence[float], n_rows: int) -> list[float]:
    """The mean of each value and those before it, `n_rows` in all (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - n_rows)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have a finite value there."""
    values = ((row.step, getattr(row, name)) for row in rows)
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def _curve(rows: Sequence[Row], name: str, level: float | None = None, level_name: str = "",
           may_be_log: bool = False) -> Figure:
    figure, axes = _axes(8, 2.8)
    points = _points(rows, name)
    if points:
        steps, values = zip(*points)
        axes.plot(steps, values, color=BLUE, linewidth=1.5, marker="o" if len(points) <= _MANY else "", markersize=3.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        shown = [*values, *([level] if level else [])]
        if may_be_log and min(shown) > 0 and max(shown) > _LOG_FROM * min(shown):
            _plain_log_axis(axes, min(shown) / 1.3, max(shown) * 1.3)
        else:
            axes.set_ylim(0, 1.08 * max(shown) or 1)
    else:
        _nothing_yet(axes)
    axes.set_ylabel(_QUANTITIES[name][1])
    _steps_and_epochs(axes, rows)
    if level:
        axes.axhline(level, color="black", linewidth=1.2, linestyle="--")
        if points:
            _label_ends(axes, [(level_name, level, "black")])
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.4")
    axes.tick_params(color="0.4")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _nothing_yet(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing logged yet", transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set_yticks([])


def _loss_axis(axes: Axes, drawn: Sequence[float], target: float) -> None:
    """Logarithmic when the losses themselves span much: then every factor towards the target is the same way."""
    top = max([RANDOM_LOSS, *drawn])
    positive = [loss for loss in drawn if loss > 0]
    if positive and max(positive) > _LOG_FROM * min(positive):
        _plain_log_axis(axes, 0.75 * min([target, *positive]), 1.25 * top)
    else:
        axes.set_ylim(0, 1.08 * top)


def _plain_log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers: 0.1, 0.2, 0.5, 1, 2, 5, 10 …"""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 5 else (1,)
    axes.yaxis.set_major_locator(FixedLocator([factor * 10.0**decade for decade in decades for factor in factors]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _steps_and_epochs(axes: Axes, rows: Sequence[Row]) -> None:
    last = rows[-1] if rows else None
    steps = max(1, last.step if last else 1)
    axes.set_xlim(-0.01 * steps, 1.01 * steps)
    axes.set_xlabel("step (optimizer updates)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if last and last.step and last.epoch:
        per_step = last.epoch / last.step
        above = axes.secondary_xaxis("top", functions=(lambda step: step * per_step, lambda epoch: epoch / per_step))
        above.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        above.set_xlabel("epochs", color="0.35", fontsize=9)
        above.tick_params(color="0.6", labelcolor="0.35", labelsize=8)
        above.spines["top"].set_visible(False)


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write (text, y value, colour) beside the right edge, pushed apart where they would lie on each other."""
    to_share = axes.transData + axes.transAxes.inverted()
    wanted = sorted((float(to_share.transform((0, y))[1]), text, colour) for text, y, colour in ends)
    height = 11.5 / 72 / (axes.figure.get_size_inches()[1] * 0.78)  # of one line, as a share of the axes
    halves = [height * (1 + text.count("\n")) / 2 for _, text, _ in wanted]
    places = [share for share, _, _ in wanted]
    for i in range(1, len(places)):  # up from below
        places[i] = max(places[i], places[i - 1] + halves[i - 1] + halves[i])
    for i in reversed(range(len(places))):  # a pile that grew over the top comes down again
        ceiling = places[i + 1] - halves[i + 1] - halves[i] if i + 1 < len(places) else 1.0
        places[i] = min(places[i], ceiling)
    for (share, text, colour), place in zip(wanted, places):
        moved = abs(place - share) > 0.01
        arrow = dict(arrowstyle="-", color="0.6", linewidth=0.7, shrinkA=0, shrinkB=0) if moved else None
        axes.annotate(text, (1.0, share), xycoords="axes fraction", xytext=(1.03, place), textcoords="axes fraction",
                      va="center", fontsize=9, color=colour, arrowprops=arrow, annotation_clip=False)
