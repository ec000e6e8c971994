"""The figures of notebook 03: a step, losses, number formats, schedules, recipes, live curves."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from IPython.display import DisplayHandle
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.config import TARGET_LOSS, RunConfig
from gpt2_nb_utils.figures.style import (
    BLUE,
    GREY,
    PALE,
    RANDOM_LOSS,
    arrow,
    box,
    canvas,
    column,
    display_data,
    label_ends,
    moving_average,
    panel,
    plain_log_axis,
    reference_losses,
    write,
)
from gpt2_nb_utils.training.optimizer import learning_rate_factor

if TYPE_CHECKING:
    from gpt2_nb_utils.training.records import Row
    from gpt2_nb_utils.training.sweep_results import Sweep

SMALLEST_FP16 = 2.0**-24
"""The smallest positive fp16 number."""
_ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding errors: no gradient there."""
_SECONDS_BETWEEN_DRAWINGS = 3.0


def training_step() -> Figure:
    """One training step as a circle of five boxes, each with what comes out of it."""
    figure, axes = canvas(9, 2.7, 20, 6)
    boxes = (
        ("batch", "windows of\ntokens"),
        ("forward", "a probability for\neach next token"),
        ("loss", "how surprising\nwas the truth?"),
        ("backward", "a gradient for\nevery weight"),
        ("update", "each weight\nmoves a little"),
    )
    for x, (name, what) in zip(range(2, 20, 4), boxes):
        box(axes, x, 1.7, 2.6, name, PALE, 1.3, weight="bold")
        write(axes, x, 3.5, what, fontsize=10)
    for x in range(2, 18, 4):
        arrow(axes, (x + 1.3, 1.7), (x + 2.7, 1.7))
    arrow(axes, (18, 4.4), (18, 5.3), (2, 5.3), (2, 4.3))
    paper = dict(facecolor="white", edgecolor="none")
    write(axes, 10, 5.3, "the next batch, with the moved weights", fontsize=10, bbox=paper)
    return figure


def surprise(marks: Mapping[str, float]) -> Figure:
    """The loss −ln p against the probability p that the model gave the actual next token.

    Args:
        marks: name: probability, each drawn as a dot on the curve.
    """
    figure, axes = panel(8, 3, xscale="log", ylim=(-0.6, 12), ylabel="loss −ln p (nats)")
    axes.set_xlabel("probability of the actual next token")
    probabilities = np.geomspace(1e-5, 1, 200)
    axes.plot(probabilities, -np.log(probabilities))
    for name, p in marks.items():
        loss = -math.log(p)
        axes.plot(p, loss, "o", color="black", markersize=7)
        above = 0.7 if loss > 0.5 else -0.1
        axes.text(1.2 * p, loss + above, f"{name}: {loss:.3g}", va="center")
    return figure


def number_formats() -> Figure:
    """How fp32, fp16 and bf16 spend their bits."""
    figure, axes = panel(8, 1.9, xlabel="bits (the first one is the sign)", xlim=(0, 32.2))
    parts = (  # IEEE 754; bf16 is the upper half of fp32
        ("", "0.4", (1, 1, 1)),
        ("exponent {:.0f}", "0.65", (8, 5, 8)),
        ("fraction {:.0f}", "0.9", (23, 10, 7)),
    )
    left = np.zeros(3)
    for text, shade, bits in parts:
        look = dict(left=left, color=shade, edgecolor="black")
        drawn = axes.barh(["fp32", "fp16", "bf16"], bits, **look)
        axes.bar_label(drawn, fmt=text, label_type="center", fontsize=9)
        left = left + bits
    axes.invert_yaxis()
    return figure


def gradient_sizes(sizes: Tensor, factor: float) -> Figure:
    """Gradients by size, as they are and scaled, against the smallest fp16 number.

    Args:
        sizes: absolute values of gradients, (n,), none of them 0.
        factor: the loss scale.
    """
    figure, axes = panel(8, 3, xlabel="size of a gradient", ylabel="number of gradients")
    bins = np.logspace(-14, 4, 145)
    axes.hist(sizes.numpy(), bins, color="0.75", label="as they are")
    scaled = (sizes * factor).numpy()
    axes.hist(scaled, bins, histtype="step", color="black", label=f"loss × {factor:,.0f}")
    axes.set_xscale("log")
    axes.axvline(SMALLEST_FP16, linestyle="--")
    top = axes.get_ylim()[1]
    axes.text(SMALLEST_FP16, 0.95 * top, "smallest fp16 number ", ha="right", va="top")
    axes.legend(loc="upper right")
    return figure


def loss_scales(scales: Sequence[float]) -> Figure:
    """The loss scale at each attempt to take a step."""
    figure, axes = panel(8, 2.6, xlabel="attempt", ylabel="loss scale")
    axes.step(range(1, len(scales) + 1), scales, where="mid")
    axes.set_yscale("log", base=2)
    return figure


def schedules(config: RunConfig) -> Figure:
    """The learning rate of each step under every schedule; that of the config thick."""
    figure, axes = panel(8, 2.8, xlabel="step (optimizer updates)", ylabel="learning rate")
    names = get_args(RunConfig.model_fields["lr_schedule"].annotation)
    for name, stroke in zip(names, ("-", "--", "-.", ":")):
        other = config.model_copy(update={"lr_schedule": name})
        rates = [config.lr * learning_rate_factor(step, other) for step in range(config.steps)]
        look = dict(color=GREY, label=name)
        if name == config.lr_schedule:
            look = dict(color="black", linewidth=2.5, label=f"{name} (this run)")
        axes.plot(range(1, config.steps + 1), rates, stroke, **look)
    axes.legend()
    return figure


def singular_values(before: Tensor, after: Tensor) -> Figure:
    """The singular values of a matrix before and after it was made orthogonal, over their mean.

    Args:
        before, after: singular values, (n,), falling.
    """
    figure, axes = panel(8, 3.4, ylabel="length (share of the mean)")
    axes.set_xlabel("direction (singular vector), the longest first")
    real = before > _ROUNDING * before.max()
    before, after = (values[real] / values[real].mean() for values in (before, after))
    directions = range(1, len(before) + 1)
    axes.plot(directions, before, "o:", color="0.45")
    axes.plot(directions, after, "D-", color=BLUE)
    lowest, highest = torch.cat([before, after]).aminmax()
    plain_log_axis(axes, lowest.item() / 1.6, 1.6 * highest.item())
    last = before[-1].item(), after[-1].item()
    label_ends(axes, [("the gradient", last[0], "0.45"), ("made orthogonal", last[1], BLUE)])
    return figure


def sweep_curves(sweep: Sweep, target: float = TARGET_LOSS, title: str = "") -> Figure:
    """Batch loss (smoothed, lines) and training loss (◇) of each run by epoch, the best run thick.

    Args:
        target: the training loss to reach, nats per token.
    """
    height = max(4.8, 2.0 + 0.22 * len(sweep.outcomes))
    figure, axes = panel(9, height, xlabel="epochs", ylabel="loss (nats per token)")
    axes.set_title(title, loc="left")
    ends = reference_losses(axes, target)
    strokes = cycle(("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5))))
    last_points = []  # (outcome, epoch, loss, colour)
    for outcome, stroke in zip(sweep.outcomes, strokes):
        rows = [row for row in sweep.curves.get(outcome.name, []) if row.step]
        color, width, order = "0.45", 1.0, 3
        if outcome is sweep.best:
            color, width, order, stroke = BLUE, 2.4, 5, "-"
        look = dict(color=color, linestyle=stroke, linewidth=width, zorder=order)
        epochs, losses = column(rows, "loss", "epoch")
        losses = moving_average(losses)
        axes.plot(epochs, losses, label=outcome.name, **look)
        look |= dict(linestyle="none", marker="D", markerfacecolor="white", clip_on=False)
        measured_at, measured = column(rows, "train_loss", "epoch")
        axes.plot(measured_at, measured, **look)
        if losses or measured:
            epoch, loss = (measured_at or epochs)[-1], (measured or losses)[-1]
            last_points.append((outcome, epoch, loss, color))
    drawn = np.concatenate([line.get_ydata() for line in axes.lines])
    low, high = 0.75 * drawn[drawn > 0].min(), 1.25 * RANDOM_LOSS
    right = max([1e-9, *(row.epoch for rows in sweep.curves.values() for row in rows)])
    plain_log_axis(axes, low, high)
    axes.set_xlim(0, right)
    for outcome, epoch, loss, color in last_points:
        loss = min(max(loss, low), high)
        if epoch < 0.995 * right:  # it ended early: lead the eye to its label
            axes.plot([epoch, right], [loss, loss], ":", color="0.75", linewidth=0.7)
        failed = f"({outcome.status.replace('_', ' ')})"
        how = f"{outcome.train_loss:.3f}" if outcome.ranked else failed
        ends.append((f"{outcome.name}  {how}", loss, color))
    label_ends(axes, ends)
    return figure


def live(rows: Sequence[Row], target_loss: float, steps: int) -> Figure:
    """The loss so far above, the learning rate so far below.

    Args:
        rows: the metrics so far; none yet is fine.
        target_loss: drawn as a dashed line.
        steps: last step of the run: the right end of both panels.
    """
    figure = Figure(figsize=(8, 5))
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes, name, stroke, look in (
        (losses, "loss", "-", dict(color=GREY, label="batch loss")),
        (losses, "train_loss", "o-", dict(color="black", label="training loss")),
        (rates, "lr", "-", dict(color="black")),
    ):
        axes.plot(*column(rows, name), stroke, **look)
    losses.axhline(target_loss, linestyle="--", label=f"target {target_loss}")
    losses.set(ylabel="loss (nats per token)", yscale="log", xlim=(0, max(1, steps)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.legend(loc="lower left", fontsize="small")
    rates.set(xlabel="step (optimizer updates)", ylabel="learning rate", ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


class LiveFigure:
    """The figure that grows while training runs.

    Give it to `train` as `on_row`; call `finish` afterwards. It is a display output updated in
    place, so a saved notebook keeps its last state.

    Args:
        target_loss: drawn as a dashed line.
        steps: last step of the run: the right end of both panels.
        rows: rows of the same run from before (a resumed run).
    """

    def __init__(self, target_loss: float, steps: int, rows: Sequence[Row] = ()):
        self._target, self._steps = target_loss, steps
        self._rows = list(rows)
        self._handle = DisplayHandle()
        self._drawn_at = 0.0
        if self._rows:  # a resumed run begins with what it had
            self.finish()

    def __call__(self, row: Row) -> None:
        """Take in a row of the metrics, and draw if the last drawing is some seconds old."""
        # A resumed run repeats some steps: their rows replace the earlier ones.
        self._rows = [*(earlier for earlier in self._rows if earlier.step < row.step), row]
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_DRAWINGS:
            self.finish()

    def finish(self) -> None:
        """Draw the last state."""
        # The objects of a figure refer to each other: only the garbage collector frees them, some
        # time later. Until then they lie where training freed its large blocks, which no longer
        # fit there. So it runs at once, and looks at the new objects only.
        gc.freeze()
        figure = live(self._rows, self._target, self._steps)
        data, metadata = display_data(figure, self._alt())
        del figure
        gc.collect()
        gc.unfreeze()
        send = self._handle.update if self._drawn_at else self._handle.display
        send(data, metadata=metadata, raw=True)
        self._drawn_at = time.monotonic()

    def _alt(self) -> str:
        _, losses = column(self._rows, "loss")
        if not losses:
            return "Loss over steps; nothing trained yet."
        return (
            f"Batch loss over steps: from {losses[0]:.3f} to {losses[-1]:.3f} nats per token at "
            f"step {self._rows[-1].step} of {self._steps}; target {self._target}. Below it the "
            f"learning rate of each step."
        )
