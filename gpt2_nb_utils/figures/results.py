"""The figures of notebook 04: the curves of a run, how its recall grew, where its heads look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.figures.model import DARKEST
from gpt2_nb_utils.figures.style import (
    BLUE,
    GREY,
    RANDOM_LOSS,
    column,
    legend_beside,
    moving_average,
    panel,
    plain_log_axis,
    reference_losses,
)
from gpt2_nb_utils.wording import loss_text

if TYPE_CHECKING:
    from gpt2_nb_utils.training.records import RecallRow, Row

_LOG_FROM = 5.0
"""A largest value so many times the smallest gets a logarithmic axis."""
_BOUND_WITHIN = 200
"""A lower bound so many times below all else is not drawn: the curves would shrink to a strip."""
_BOUND_FROM = 0.03
"""A lower bound below this share of a linear axis is not drawn: the target's line is there."""
_BETWEEN = "#c9dbec"
"""The colour between two attention maps, whose own upper right is white."""
_MANY = 60
"""Rows from which single ones are no longer marked with a dot."""
_AVERAGED_FROM = 25
"""Rows from which a moving average says more than the rows themselves."""
_DIAMONDS = dict(color=BLUE, linestyle=(0, (4, 2)), marker="D", markerfacecolor="white")
_NAMES = {
    "loss": "batch loss",
    "train_loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tok_per_s": "speed",
    "loss_scale": "loss scale",
}
_STEPS = "step (optimizer updates)"
_UNITS = {"tok_per_s": " (tokens/s)", "loss_scale": " (factor)"}


def loss_figure(
    rows: Sequence[Row], target: float = TARGET_LOSS, lower_bound: float | None = None
) -> Figure:
    """Batch loss, its moving average and the training loss, with target and random guess as lines.

    Args:
        rows: the metrics so far; one row, or none, will do.
        target: the training loss to reach, nats per token.
        lower_bound: the training loss that no model can beat (`loss_lower_bound`), nats per token;
            drawn where the axis of the curves can reach down to it. None where it is not known.
    """
    figure, axes = panel(8, 4.2, ylabel="loss (nats per token)")
    reference_losses(axes, target)
    steps, losses = column(rows, "loss")
    if losses:
        axes.plot(steps, losses, color=GREY, linewidth=0.8, marker=_dot(losses), label="batch loss")
    if len(losses) >= _AVERAGED_FROM:
        look = dict(color="black", linewidth=1.8, label="moving average")
        axes.plot(steps, moving_average(losses), **look)
    measured_at, measured = column(rows, "train_loss")
    if measured:
        axes.plot(
            measured_at, measured, zorder=4, clip_on=False, label="training loss", **_DIAMONDS
        )
    if _loss_axis(axes, [*losses, *measured], target, lower_bound or 0):
        axes.axhline(lower_bound)
        name = f"lower bound {lower_bound:.3g}"
        look = dict(facecolor="0.88", label=name)
        axes.axhspan(axes.get_ylim()[0], lower_bound, **look)
    _steps_and_epochs(axes, rows)
    legend_beside(axes)
    return figure


def _loss_axis(axes: Axes, drawn: Sequence[float], target: float, lower_bound: float) -> bool:
    """Set a logarithmic axis when the losses span much: each factor down is then the same distance.

    Returns:
        Whether the axis has room for the lower bound.
    """
    top = max([RANDOM_LOSS, *drawn])
    positive = [loss for loss in drawn if loss > 0]
    if not positive or max(positive) <= _LOG_FROM * min(positive):
        axes.set_ylim(0, 1.08 * top)
        return lower_bound > _BOUND_FROM * top
    lowest = min([target, *positive])
    has_room = lower_bound > lowest / _BOUND_WITHIN
    bottom = min(0.75 * lowest, 0.6 * lower_bound) if has_room else 0.75 * lowest
    plain_log_axis(axes, bottom, 1.25 * top)
    return has_room


def _dot(values: Sequence[float]) -> str:
    return "." if len(values) <= _MANY else ""


def curve_figure(rows: Sequence[Row], name: str, clip_grad: float = 0.0) -> Figure:
    """One column of the metrics against steps.

    Args:
        name: `lr`, `grad_norm`, `tok_per_s` or `loss_scale`.
        clip_grad: a level to draw: the norm to which larger gradients are shortened; 0 for none.
    """
    figure, axes = panel(8, 2.8, ylabel=_NAMES[name] + _UNITS.get(name, ""))
    _steps_and_epochs(axes, rows)
    steps, values = column(rows, name)
    axes.plot(steps, values, color=BLUE, marker=_dot(values))
    shown = [*values, clip_grad or max(values, default=1)]
    low, high = min(shown), max(shown)
    if name in ("grad_norm", "loss_scale") and low > 0 and high > _LOG_FROM * low:
        plain_log_axis(axes, low / 1.3, high * 1.3)
    else:
        axes.set_ylim(0, 1.08 * high or 1)
        axes.yaxis.set_major_formatter("{x:,g}")
    if clip_grad:
        axes.axhline(clip_grad, linestyle="--", label=f"clipped to {clip_grad:g}")
        axes.legend()
    if not values:
        axes.set_title("nothing logged yet")
    return figure


def _steps_and_epochs(axes: Axes, rows: Sequence[Row]) -> None:
    last_step = max([1, *(row.step for row in rows)])
    axes.set(xlim=(-0.01 * last_step, 1.01 * last_step), xlabel=_STEPS)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if rows and rows[-1].step and rows[-1].epoch:
        per_step = rows[-1].epoch / rows[-1].step
        both_ways = (lambda step: step * per_step, lambda epoch: epoch / per_step)
        above = axes.secondary_xaxis("top", functions=both_ways)
        above.set_xlabel("epochs", color="0.35", fontsize=9)
        above.tick_params(labelcolor="0.35", labelsize=8)
        above.spines["top"].set_visible(False)


def curve_text(rows: Sequence[Row], name: str) -> str:
    """What the curve of one column says, for those who cannot see it.

    Args:
        name: a column of the metrics, such as `loss` or `lr`.
    """
    points = list(zip(*column(rows, name)))
    if not points:
        return f"No {_NAMES[name]} was logged."

    def at(point: tuple[float, float]) -> str:
        step, value = point
        number = loss_text(value) if name.endswith("loss") else f"{value:.4g}"
        return f"{number} at step {step:,}"

    text, first, last = _NAMES[name].capitalize(), points[0], points[-1]
    if first[0] == last[0]:
        return f"{text} {at(first)}."
    highest, lowest = (extreme(points, key=lambda point: point[1]) for extreme in (max, min))
    return f"{text} from {at(first)} to {at(last)}; highest {at(highest)}, lowest {at(lowest)}."


def loss_figure_text(
    rows: Sequence[Row], target: float = TARGET_LOSS, lower_bound: float | None = None
) -> str:
    """What the loss figure says, for those who cannot see it; it names a known lower bound."""
    levels = f"Target {target:g}, random guess {RANDOM_LOSS:.3f}"
    if lower_bound is not None:
        levels += f", lower bound that no training can beat {loss_text(lower_bound)}"
    return f"{curve_text(rows, 'loss')} {curve_text(rows, 'train_loss')} {levels}."


def recall_figure(rows: Sequence[RecallRow]) -> Figure:
    """The shares of openings continued verbatim, and of tokens right before the first error.

    Args:
        rows: at least one. Two are not joined: the line would show a course that nobody measured.
    """
    figure, axes = panel(8, 3.4, ylim=(-2, 102), xlabel=_STEPS, ylabel="share (%)")
    steps = [row.step for row in rows]
    verbatim = [100 * row.recalled.share for row in rows]
    right = [100 * row.recalled.right / row.recalled.continued for row in rows]
    width = 1.8 if len(rows) > 2 else 0
    look = dict(linewidth=width, label="tokens right before\nthe first error")
    axes.plot(steps, right, **_DIAMONDS, **look)
    look = dict(linewidth=width, label="openings continued\nverbatim")
    axes.plot(steps, verbatim, color="black", marker="o", **look)
    axes.locator_params(axis="x", integer=True)
    legend_beside(axes)
    return figure


def all_heads(maps: Sequence[Tensor]) -> Figure:
    """Every attention map as a small picture: a row for each layer, a column for each head.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them.
    """
    n_layers, (_, n_heads, T, _) = len(maps), maps[0].shape
    gap = 1 + T // 16  # cells around each map
    side = T + 2 * gap
    weights = torch.cat(list(maps)).float().cpu()  # (L, H, T, T)
    tiles = pad(weights, [gap] * 4, value=math.nan)  # (L, H, side, side)
    # One picture of all: a hundred and more panels would take matplotlib many times as long.
    mosaic = tiles.transpose(1, 2).reshape(n_layers * side, n_heads * side).numpy()
    inches = min(2.0, 9.0 / n_heads)  # for a map
    figure, axes = panel(0.9 + inches * n_heads, 0.6 + inches * n_layers)
    shades = colormaps["Greys"].with_extremes(bad=_BETWEEN)
    axes.imshow(mosaic, cmap=shades, vmin=0, vmax=DARKEST)
    axes.set_xticks((np.arange(n_heads) + 0.5) * side - 0.5, range(1, n_heads + 1))
    axes.set_yticks((np.arange(n_layers) + 0.5) * side - 0.5, range(1, n_layers + 1))
    axes.set(xlabel="head", ylabel="layer")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.grid(False)
    return figure
