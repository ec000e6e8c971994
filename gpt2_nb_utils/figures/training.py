"""The figures of notebook 03: a step, losses, number formats, schedules, recipes, live curves."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, get_args

import numpy as np
from IPython.display import DisplayHandle
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.config import TARGET_LOSS, RunConfig
from gpt2_nb_utils.figures.model import cells, lines
from gpt2_nb_utils.figures.results import curve_text
from gpt2_nb_utils.figures.style import (
    BLUE,
    GREY,
    PALE,
    RANDOM_LOSS,
    column,
    diagram,
    display_data,
    legend_beside,
    moving_average,
    panel,
    plain_log_axis,
    reference_losses,
)
from gpt2_nb_utils.training.optimizer import learning_rate_factor

if TYPE_CHECKING:
    from gpt2_nb_utils.training.records import Row
    from gpt2_nb_utils.training.sweep_results import Sweep

SMALLEST_FP16 = 2.0**-24
"""The smallest positive fp16 number."""
_FORMATS = {"fp32": (8, 23), "fp16": (5, 10), "bf16": (8, 7)}
"""Bits of the exponent and of the fraction; the sign has one."""
_ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding errors: no gradient there."""
_SECONDS_BETWEEN_DRAWINGS = 3.0


def training_step() -> Figure:
    """One training step as a circle of five boxes, each with what comes out of it."""
    texts = (
        "batch:\nwindows of\ntokens",
        "forward:\na probability for\neach next token",
        "loss:\nhow surprising\nwas the truth?",
        "backward:\na gradient for\nevery weight",
        "update:\neach weight\nmoves a little",
    )
    boxes = [(1 + 2 * number, 0.6, text, PALE) for number, text in enumerate(texts)]
    boxes.append((5, 1.9, "the next batch, with the updated weights", "white"))
    return diagram(10, 2.2, boxes, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)])[0]


def surprise(marks: Mapping[str, float]) -> Figure:
    """The loss −ln p against the probability p that the model gave the actual next token.

    Args:
        marks: name: probability, each drawn as a dot on the curve.
    """
    figure, axes = panel(8, 3, xscale="log", ylabel="loss −ln p (nats)")
    axes.set_xlabel("probability of the actual next token")
    probabilities = np.geomspace(1e-5, 1, 200)
    axes.plot(probabilities, -np.log(probabilities))
    for (name, p), marker in zip(marks.items(), "os^Dv"):
        loss = -math.log(p)
        axes.plot(p, loss, marker, markersize=8, label=f"{name}: {loss:.3g}")
    axes.legend()
    return figure


def number_formats() -> Figure:
    """How fp32, fp16 and bf16 spend their bits."""
    xlabel = "bits (s: the sign, e: exponent, f: fraction)"
    figure, axes = panel(9, 1.8, xlabel=xlabel)
    # IEEE 754; bf16 is the upper half of fp32
    formats = {name: "s" + "e" * e + "f" * f for name, (e, f) in _FORMATS.items()}
    texts = np.array([list(bits.ljust(32)) for bits in formats.values()])  # (3, 32)
    shades = np.select([texts == "s", texts == "e", texts == "f"], [0.6, 0.35, 0.1])
    cells(axes, shades, texts, list(formats), range(1, 33))
    return figure


def schedules(config: RunConfig) -> Figure:
    """The learning rate of each step under every schedule; that of the config thick."""
    rates, names = {}, get_args(RunConfig.model_fields["lr_schedule"].annotation)
    for name in names:
        other = config.model_copy(update={"lr_schedule": name})
        label = f"{name} (this run)" if name == config.lr_schedule else name
        steps = range(1, config.steps + 1)
        rates[label] = steps, [config.lr * learning_rate_factor(n - 1, other) for n in steps]
    figure = lines(rates, "step (optimizer updates)", "learning rate", markers=False)
    figure.axes[0].lines[names.index(config.lr_schedule)].set_linewidth(3)
    return figure


def singular_values(before: Tensor, after: Tensor) -> Figure:
    """The singular values of a matrix before and after it was made orthogonal, over their mean.

    Args:
        before, after: singular values, (n,), falling.
    """
    real = before > _ROUNDING * before.max()
    series = {
        name: (range(1, int(real.sum()) + 1), values[real] / values[real].mean())
        for name, values in (("the gradient", before), ("made orthogonal", after))
    }
    xlabel = "direction (singular vector), the longest first"
    return lines(series, xlabel, "length (share of the mean)", log_y=True)


def sweep_curves(sweep: Sweep, target: float = TARGET_LOSS, title: str = "") -> Figure:
    """Batch loss (smoothed, lines) and training loss (◇) of each run by epoch, the best run thick.

    Args:
        target: the training loss to reach, nats per token.
    """
    height = max(4.8, 2.0 + 0.22 * len(sweep.outcomes))
    figure, axes = panel(9, height, xlabel="epochs", ylabel="loss (nats per token)")
    axes.set_title(title, loc="left")
    reference_losses(axes, target)
    # The better a run, the darker its line and the further down its name.
    outcomes = sorted(sweep.outcomes, key=lambda outcome: outcome.rank, reverse=True)
    shades = np.linspace(0.75, 0.2, len(outcomes))
    strokes = cycle(("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5))))
    for outcome, shade, stroke in zip(outcomes, shades, strokes):
        rows = [row for row in sweep.curves.get(outcome.name, []) if row.step]
        look = dict(color=str(shade), linestyle=stroke, linewidth=1, zorder=3)
        if outcome is sweep.best:
            look = dict(color=BLUE, linestyle="-", linewidth=2.4, zorder=5)
        status = f"({outcome.status.replace('_', ' ')})"
        how = f"{outcome.train_loss:.3f}" if outcome.ranked else status
        epochs, losses = column(rows, "loss", "epoch")
        axes.plot(epochs, moving_average(losses), label=f"{outcome.name}  {how}", **look)
        look |= dict(linestyle="none", marker="D", markerfacecolor="white", clip_on=False)
        axes.plot(*column(rows, "train_loss", "epoch"), **look)
    drawn = np.concatenate([line.get_ydata() for line in axes.lines])
    plain_log_axis(axes, 0.75 * drawn[drawn > 0].min(), 1.25 * RANDOM_LOSS)
    axes.set_xlim(0, max([1e-9, *(row.epoch for rows in sweep.curves.values() for row in rows)]))
    legend_beside(axes)
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
    losses.plot(*column(rows, "loss"), color=GREY, label="batch loss")
    losses.plot(*column(rows, "train_loss"), "o-", color="black", label="training loss")
    losses.axhline(target_loss, linestyle="--", label=f"target {target_loss}")
    losses.set(ylabel="loss (nats per token)", yscale="log", xlim=(0, max(1, steps)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.legend(loc="lower left", fontsize="small")
    rates.plot(*column(rows, "lr"))
    rates.set(xlabel="step (optimizer updates)", ylabel="learning rate", ylim=(0, None))
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
            self._draw(vector=False)

    def finish(self) -> None:
        """Draw the last state."""
        self._draw(vector=True)

    def _draw(self, vector: bool) -> None:
        # The objects of a figure refer to each other: only the garbage collector frees them, some
        # time later. Until then they lie where training freed its large blocks, which no longer
        # fit there. So it runs at once, and looks at the new objects only.
        gc.freeze()
        figure = live(self._rows, self._target, self._steps)
        alt = (
            f"{curve_text(self._rows, 'loss')} Target {self._target}, {self._steps:,} steps at "
            f"most. Below, the learning rate of each step."
        )
        data, metadata = display_data(figure, alt, vector)
        del figure
        gc.collect()
        gc.unfreeze()
        send = self._handle.update if self._drawn_at else self._handle.display
        send(data, metadata=metadata, raw=True)
        self._drawn_at = time.monotonic()
