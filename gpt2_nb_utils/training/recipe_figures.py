"""The figures about recipes: singular values of an update, and the curves of the runs that lost beside the best.

It draws what it is handed. Figures are readable in grey: no meaning rests on colour alone.
"""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.curves import (
    label_ends,
    moving_average,
    one_panel,
    plain_log_axis,
    smoothing_rows,
)
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.training.run_log import Row
from gpt2_nb_utils.training.sweep_results import Outcome, Sweep

BLUE = "#1f5a96"
_STROKES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_NOTHING = 1e-5
"""Singular values below this share of the largest are rounding errors: a direction without any gradient."""


def singular_values(before: Tensor, after: Tensor) -> Figure:
    """The lengths of a matrix's directions, before and after it was made orthogonal, each as a share of its mean.

    Args:
        before, after: singular values, (n,), falling.
    """
    figure, axes = one_panel(8, 3.4)
    ends = []
    for values, name, look in (
        (before, "the gradient", dict(color="0.45", marker="o", linestyle=":")),
        (after, "made orthogonal", dict(color=BLUE, marker="D", linestyle="-")),
    ):
        real = values[before > _NOTHING * before.max()]
        real = real / real.mean()
        axes.plot(range(1, len(real) + 1), real.tolist(), markersize=3.5, linewidth=1.2, **look)
        ends.append((name, real[-1].item(), look["color"]))
    lowest, highest = (
        bound(
            line.get_ydata().min() if bound is min else line.get_ydata().max()
            for line in axes.lines
        )
        for bound in (min, max)
    )
    plain_log_axis(axes, lowest / 1.6, 1.6 * highest)
    axes.set(
        xlabel="direction (singular vector), the longest first", ylabel="length (share of the mean)"
    )
    label_ends(axes, ends)
    return figure


def curves(sweep: Sweep, target: float = TARGET_LOSS, title: str = "") -> Figure:
    """Batch loss (smoothed, lines) and training loss (◇) of each run against epochs, the best run thick.

    Args:
        target: the training loss to reach, nats per token.
    """
    figure, axes = one_panel(9, max(4.8, 2.0 + 0.22 * len(sweep.outcomes)))
    measured = [loss for rows in sweep.curves.values() for _, loss in _points(rows, "train_loss")]
    lines = {name: _smoothed(rows) for name, rows in sweep.curves.items()}
    shown = [loss for line in lines.values() for _, loss in line] + measured
    random = math.log(VOCAB_SIZE)
    low, high = 0.75 * min([target, *(loss for loss in shown if loss > 0)]), 1.25 * random
    plain_log_axis(axes, low, high)
    right = max([1e-9, *(row.epoch for rows in sweep.curves.values() for row in rows)])
    axes.set_xlim(0, right)
    ends = [(f"target {target:g}", target, "black"), ("random guess", random, "0.35")]
    axes.axhline(target, color="black", linewidth=1.2, linestyle="--")
    axes.axhline(random, color="black", linewidth=1.0, linestyle=(0, (1, 2)))
    for number, outcome in enumerate(sweep.outcomes):
        line, is_best = lines.get(outcome.name, []), outcome is sweep.best
        color, width = (BLUE, 2.4) if is_best else ("0.45", 1.0)
        order = 5 if is_best else 3
        if line:
            axes.plot(
                *zip(*line),
                color=color,
                linewidth=width,
                linestyle="-" if is_best else _STROKES[number % len(_STROKES)],
                zorder=order,
                label=outcome.name,
            )
        marks = _points(sweep.curves.get(outcome.name, []), "train_loss")
        if marks:
            axes.plot(
                *zip(*marks),
                linestyle="",
                marker="D",
                markersize=6 if is_best else 4.5,
                color=color,
                markerfacecolor="white",
                markeredgewidth=1.4,
                zorder=order + 1,
                clip_on=False,
            )
        if not line and not marks:
            continue
        epoch, loss = (marks or line)[-1]
        loss = min(max(loss, low), high)
        if epoch < 0.995 * right:  # it ended early: lead the eye to its label
            axes.plot([epoch, right], [loss, loss], color="0.75", linewidth=0.7, linestyle=":")
        ends.append((_label(outcome), loss, color if is_best else "0.25"))
    axes.set(xlabel="epochs", ylabel="loss (nats per token)")
    if title:
        axes.set_title(title, fontsize=11, loc="left")
    label_ends(axes, ends)
    return figure


def _label(outcome: Outcome) -> str:
    how = f"{outcome.train_loss:.3f}" if outcome.ranked else f"({outcome.status.replace('_', ' ')})"
    return f"{outcome.name}  {how}"


def _points(rows: list[Row], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows after the first step that have a finite value there."""
    values = ((row.epoch, getattr(row, name)) for row in rows if row.step)
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]


def _smoothed(rows: list[Row]) -> list[tuple[float, float]]:
    points = _points(rows, "loss")
    smooth = moving_average([loss for _, loss in points], smoothing_rows(len(points)))
    return [(epoch, loss) for (epoch, _), loss in zip(points, smooth)]
