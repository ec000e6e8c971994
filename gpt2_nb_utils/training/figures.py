"""The figures of notebook 03: a step, the loss of a probability, number formats, the loss scale, schedules, the live curve.

It draws what it is handed. It deliberately decides nothing: which numbers are shown is the notebook's business.
Figures are readable in grey: no meaning rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.training.run_log import Row
from gpt2_nb_utils.training.schedule import learning_rate_factor

_BITS = {"fp32": (1, 8, 23), "fp16": (1, 5, 10), "bf16": (1, 8, 7)}
"""Bits for sign, exponent and fraction (IEEE 754; bf16 is the upper half of fp32)."""
SMALLEST_FP16 = 2.0**-24
"""The smallest positive fp16 number."""


def training_step() -> Figure:
    """One training step as a circle of five boxes, each with what it does and what comes out of it."""
    figure, axis = pyplot.subplots(figsize=(9, 2.7), layout="constrained")
    axis.set(xlim=(0, 20), ylim=(0, 6))
    axis.axis("off")
    boxes = (
        ("batch", "windows of\ntokens"),
        ("forward", "a probability for\neach next token"),
        ("loss", "how surprising\nwas the truth?"),
        ("backward", "a gradient for\nevery weight"),
        ("update", "each weight\nmoves a little"),
    )
    centres = [2 + 4 * number for number in range(len(boxes))]
    for x, (name, what) in zip(centres, boxes):
        axis.text(
            x,
            4.3,
            name,
            ha="center",
            va="center",
            fontsize=12,
            weight="bold",
            bbox=dict(boxstyle="round,pad=0.5", facecolor="#d6e6f5", edgecolor="black"),
        )
        axis.text(x, 2.5, what, ha="center", va="center", fontsize=10)
    arrow = dict(arrowstyle="-|>", color="black", linewidth=1.4)
    for x in centres[:-1]:
        axis.annotate("", (x + 2.6, 4.3), (x + 1.4, 4.3), arrowprops=arrow)
    axis.plot([centres[-1], centres[-1], centres[0]], [1.6, 0.7, 0.7], color="black", linewidth=1.4)
    axis.annotate("", (centres[0], 1.7), (centres[0], 0.7), arrowprops=arrow)
    axis.text(
        10,
        0.7,
        "the next batch, with the moved weights",
        ha="center",
        va="center",
        fontsize=10,
        bbox=dict(facecolor="white", edgecolor="none"),
    )
    return figure


def surprise(marks: dict[str, float]) -> Figure:
    """The loss −ln p against the probability p that the model gave the token that came.

    Args:
        marks: name: probability, each drawn as a dot on the curve.
    """
    figure, axis = pyplot.subplots(figsize=(8, 3), layout="constrained")
    probabilities = np.geomspace(1e-5, 1, 200)
    axis.plot(probabilities, -np.log(probabilities), color="black", linewidth=1.8)
    for name, p in marks.items():
        loss = -math.log(p)
        axis.plot([p], [loss], "o", color="black", markersize=7)
        axis.annotate(
            f"{name}: {loss:.3g}",
            (p, loss),
            xytext=(10, 9 if loss > 0.5 else -2),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axis.set(
        xscale="log",
        xlabel="probability of the token that came",
        ylabel="loss −ln p (nats)",
        ylim=(-0.6, 12),
    )
    axis.grid(True, color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def number_formats() -> Figure:
    """How fp32, fp16 and bf16 spend their bits."""
    figure, axis = pyplot.subplots(figsize=(8, 1.9), layout="constrained")
    for row, bits in enumerate(_BITS.values()):
        left = 0
        for part, width, shade in zip(
            ("sign", "exponent", "fraction"), bits, ("0.4", "0.65", "0.9")
        ):
            axis.barh(row, width, left=left, color=shade, edgecolor="black")
            if width > 1:
                axis.text(
                    left + width / 2, row, f"{part} {width}", ha="center", va="center", fontsize=9
                )
            left += width
    axis.set(
        yticks=range(len(_BITS)),
        yticklabels=_BITS,
        xlabel="bits (the first one is the sign)",
        xlim=(0, 32.2),
    )
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def gradient_sizes(sizes: Tensor, factor: float) -> Figure:
    """Gradients by size, as they are and multiplied by a loss scale, against the smallest fp16 number.

    Args:
        sizes: absolute values of gradients, (n,), none of them 0.
        factor: the loss scale.
    """
    figure, axis = pyplot.subplots(figsize=(8, 3), layout="constrained")
    bins = [10 ** (exponent / 8) for exponent in range(-112, 33)]
    axis.hist(sizes.numpy(), bins=bins, color="0.75", label="as they are")
    axis.hist(
        (sizes * factor).numpy(),
        bins=bins,
        histtype="step",
        color="black",
        label=f"loss × {factor:,.0f}",
    )
    axis.axvline(SMALLEST_FP16, color="black", linestyle="--")
    axis.annotate(
        "smallest fp16 number ", (SMALLEST_FP16, 0.95 * axis.get_ylim()[1]), ha="right", va="top"
    )
    axis.set(xscale="log", xlabel="size of a gradient", ylabel="number of gradients")
    axis.legend(loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def loss_scales(scales: Sequence[float]) -> Figure:
    """The loss scale at each attempt to take a step."""
    figure, axis = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    axis.step(range(1, len(scales) + 1), scales, where="mid", color="black")
    axis.set_yscale("log", base=2)
    axis.set(xlabel="attempt", ylabel="loss scale")
    axis.grid(True, color="0.9")
    return figure


def schedules(config: RunConfig) -> Figure:
    """The learning rate of each step under every schedule; that of the config thick."""
    figure, axis = pyplot.subplots(figsize=(8, 2.8), layout="constrained")
    for name, style in zip(
        get_args(RunConfig.model_fields["lr_schedule"].annotation), ("-", "--", "-.", ":")
    ):
        chosen = name == config.lr_schedule
        other = config.model_copy(update={"lr_schedule": name})
        rates = [config.lr * learning_rate_factor(step, other) for step in range(config.steps)]
        axis.plot(
            range(1, config.steps + 1),
            rates,
            style,
            color="black" if chosen else "0.55",
            linewidth=2.5 if chosen else 1.2,
            label=name + (" (this run)" if chosen else ""),
        )
    axis.set(xlabel="step (optimizer updates)", ylabel="learning rate")
    axis.legend()
    axis.grid(True, color="0.9")
    return figure


def live(rows: Sequence[Row], target_loss: float, steps: int) -> Figure:
    """The loss so far above, the learning rate so far below.

    Args:
        rows: the metrics so far; none yet is fine.
        target_loss: drawn as a dashed line.
        steps: last step of the run: the right end of both panels.
    """
    figure, (losses, rates) = pyplot.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    batch = [(row.step, row.loss) for row in rows if row.loss is not None]
    measured = [(row.step, row.train_loss) for row in rows if row.train_loss is not None]
    rate = [(row.step, row.lr) for row in rows if row.lr is not None]
    if batch:
        losses.plot(*zip(*batch), color="0.55", linewidth=1.2, label="batch loss")
    if measured:
        losses.plot(
            *zip(*measured), "o-", color="black", markersize=5, linewidth=1, label="training loss"
        )
    losses.axhline(
        target_loss, color="0.3", linestyle="--", linewidth=1, label=f"target {target_loss}"
    )
    losses.set(ylabel="loss (nats per token)", yscale="log", xlim=(0, max(1, steps)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.legend(loc="lower left", fontsize="small")
    if rate:
        rates.plot(*zip(*rate), color="black", linewidth=1.2)
    rates.set(xlabel="step (optimizer updates)", ylabel="learning rate", ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axis in (losses, rates):
        axis.grid(True, color="0.9")
    return figure
