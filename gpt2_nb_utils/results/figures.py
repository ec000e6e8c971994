"""The curves of a run, drawn from the rows of its metrics.

It draws whatever rows there are, none included, and fast enough to be drawn anew while a run goes on (notebook 03). It
deliberately knows no files. Every curve carries its own label and its own stroke, so nothing rests on colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.curves import (
    label_ends,
    moving_average,
    one_panel,
    plain_log_axis,
    smoothing_rows,
)
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, loss_text
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.training.run_log import Row

BLUE, GREY = "#1f5a96", "0.58"
_LOG_FROM = 5.0
"""A largest value so many times the smallest gets a logarithmic axis: below, a linear one is easier to read."""
_FLOOR_WITHIN = 200
"""A floor so many times below all else is not drawn on a logarithmic axis: the curves would have too little of it."""
_FLOOR_FROM = 0.03
"""A floor below this share of a linear axis is not drawn: it would lie on the axis, and on the line of the target."""
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


def loss_figure(
    rows: Sequence[Row], target: float = TARGET_LOSS, floor: float | None = None
) -> Figure:
    """Batch loss, its moving average, and the training loss as marked points, with target and random guess as lines.

    Args:
        rows: the metrics so far; one row, or none, will do.
        target: the training loss to reach, nats per token.
        floor: the training loss that no model can beat (`prefix_entropy`), nats per token; drawn where the axis of
            the curves can reach down to it. None where it is not known.
    """
    figure, axes = one_panel(8, 4.2)
    batch, training = _points(rows, "loss"), _points(rows, "train_loss")
    ends: list[tuple[str, float, str]] = []
    if batch:
        steps, losses = zip(*batch)
        smooth = moving_average(losses, smoothing_rows(len(losses)))
        axes.plot(
            steps,
            losses,
            color=GREY,
            linewidth=0.8,
            marker="." if len(batch) <= _MANY else "",
            markersize=4,
        )
        if len(batch) >= _AVERAGED_FROM:
            axes.plot(steps, smooth, color="black", linewidth=1.8)
            ends.append(("moving average", smooth[-1], "black"))
        ends.append(("batch loss", losses[-1], "0.4"))
    if training:
        steps, losses = zip(*training)
        axes.plot(
            steps,
            losses,
            color=BLUE,
            linewidth=1.0,
            linestyle=(0, (4, 2)),
            marker="D",
            markersize=5.5,
            markerfacecolor="white",
            markeredgewidth=1.5,
            zorder=4,
        )
        ends.append(("training loss ◇", losses[-1], BLUE))
    drawn = [loss for _, loss in batch + training]
    if _loss_axis(axes, drawn, target, floor):
        axes.axhline(floor, color="black", linewidth=1.2)
        axes.axhspan(
            axes.get_ylim()[0], floor, facecolor="none", edgecolor="0.6", linewidth=0, hatch="////"
        )
        ends.append((f"floor {floor:.3g}", floor, "black"))
    axes.axhline(target, color="black", linewidth=1.2, linestyle="--")
    axes.axhline(RANDOM_LOSS, color="black", linewidth=1.0, linestyle=(0, (1, 2)))
    ends += [
        (f"target {target:g}", target, "black"),
        (f"random guess\nln {VOCAB_SIZE:,} = {RANDOM_LOSS:.3f}", RANDOM_LOSS, "black"),
    ]
    axes.set_ylabel("loss (nats per token)")
    _steps_and_epochs(axes, rows)
    label_ends(axes, ends)
    return figure


def learning_rate_figure(rows: Sequence[Row]) -> Figure:
    """The learning rate of each logged update."""
    return _curve(rows, "lr")


def grad_norm_figure(rows: Sequence[Row], clip_grad: float = 0.0) -> Figure:
    """The gradient norm before clipping, with the norm to which larger ones are shortened.

    Args:
        clip_grad: that norm; 0 means no clipping.
    """
    return _curve(
        rows,
        "grad_norm",
        level=clip_grad or None,
        level_name=f"clipped to {clip_grad:g}",
        may_be_log=True,
    )


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
    return (
        f"{text[:1].upper()}{text[1:]} from {number(start)} at step {first:,} to {number(end)} at step {last:,}; "
        f"highest {number(peak)} at step {peak_step:,}, lowest {number(low)} at step {low_step:,}."
    )


def loss_in_words(
    rows: Sequence[Row], target: float = TARGET_LOSS, floor: float | None = None
) -> str:
    """What the loss figure says, for those who cannot see it; the floor too where it lies too low to be drawn."""
    lines = f"Target {target:g}, random guess {RANDOM_LOSS:.3f}"
    if floor is not None:
        lines += f", floor that no training can beat {loss_text(floor)}"
    return f"{in_words(rows, 'loss')} {in_words(rows, 'train_loss')} {lines}."


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have a finite value there."""
    values = ((row.step, getattr(row, name)) for row in rows)
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def _curve(
    rows: Sequence[Row],
    name: str,
    level: float | None = None,
    level_name: str = "",
    may_be_log: bool = False,
) -> Figure:
    figure, axes = one_panel(8, 2.8)
    points = _points(rows, name)
    if points:
        steps, values = zip(*points)
        axes.plot(
            steps,
            values,
            color=BLUE,
            linewidth=1.5,
            marker="o" if len(points) <= _MANY else "",
            markersize=3.5,
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        shown = [*values, *([level] if level else [])]
        if may_be_log and min(shown) > 0 and max(shown) > _LOG_FROM * min(shown):
            plain_log_axis(axes, min(shown) / 1.3, max(shown) * 1.3)
        else:
            axes.set_ylim(0, 1.08 * max(shown) or 1)
    else:
        _nothing_yet(axes)
    axes.set_ylabel(_QUANTITIES[name][1])
    _steps_and_epochs(axes, rows)
    if level:
        axes.axhline(level, color="black", linewidth=1.2, linestyle="--")
        if points:
            label_ends(axes, [(level_name, level, "black")])
    return figure


def _nothing_yet(axes: Axes) -> None:
    axes.text(
        0.5,
        0.5,
        "nothing logged yet",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="0.4",
    )
    axes.set_yticks([])


def _loss_axis(axes: Axes, drawn: Sequence[float], target: float, floor: float | None) -> bool:
    """Logarithmic when the losses themselves span much: then every factor towards the target is the same way.

    Returns:
        Whether the axis has room for the floor.
    """
    top = max([RANDOM_LOSS, *drawn])
    positive = [loss for loss in drawn if loss > 0]
    if positive and max(positive) > _LOG_FROM * min(positive):
        lowest = min([target, *positive])
        has_floor = floor is not None and floor > lowest / _FLOOR_WITHIN
        plain_log_axis(axes, min(0.75 * lowest, 0.6 * floor if has_floor else lowest), 1.25 * top)
        return has_floor
    axes.set_ylim(0, 1.08 * top)
    return floor is not None and floor > _FLOOR_FROM * top


def _steps_and_epochs(axes: Axes, rows: Sequence[Row]) -> None:
    last = rows[-1] if rows else None
    steps = max(1, last.step if last else 1)
    axes.set_xlim(-0.01 * steps, 1.01 * steps)
    axes.set_xlabel("step (optimizer updates)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if last and last.step and last.epoch:
        per_step = last.epoch / last.step
        above = axes.secondary_xaxis(
            "top", functions=(lambda step: step * per_step, lambda epoch: epoch / per_step)
        )
        above.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        above.set_xlabel("epochs", color="0.35", fontsize=9)
        above.tick_params(color="0.6", labelcolor="0.35", labelsize=8)
        above.spines["top"].set_visible(False)
