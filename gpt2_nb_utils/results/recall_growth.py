"""How recall of the corpus grew with training: what was counted at each measurement of the training loss.

Training counts it (`training.verbatim`), since the weights of every measurement are not kept. Of a run of an earlier version,
which did not, there are two points: its random weights and its best ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt2_nb_utils.curves import label_ends, one_panel
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.results.figures import BLUE
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.results.run import RunResults
from gpt2_nb_utils.results.verdict import loss_text
from gpt2_nb_utils.tokenization.display import table
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.run_log import RecallRow
from gpt2_nb_utils.training.start import model_sizes

_OF_RANDOM_WEIGHTS = 8
"""Openings for which random weights are asked: they know none, and eight say so cheaply."""
_TABLE_ROWS = 12


def history(run: RunResults, measured: Measured) -> list[RecallRow]:
    """Recall at each measurement, in order, one row a step: on record, or else of the random and of the best weights.

    Args:
        measured: the best weights, which the windows of the run were read with.
    """
    by_step: dict[int, RecallRow] = {}
    for row in run.recall:
        before = by_step.get(row.step)
        # A step that was estimated first and then measured whole has two rows: the one with more openings says more.
        if before is None or row.recalled.openings >= before.recalled.openings:
            by_step[row.step] = row
    if not by_step:
        untrained = GPT2(model_sizes(run.config), seed=run.config.seed)
        at_start = training_loss(
            untrained, run.windows, Precision(untrained.device, "fp32"), _OF_RANDOM_WEIGHTS
        ).recalled
        for step, recalled in ((0, at_start), (measured.trained.step, measured.result.recalled)):
            if recalled is not None:
                by_step[step] = RecallRow(step, recalled)
    return [by_step[step] for step in sorted(by_step)]


def figure(rows: Sequence[RecallRow]) -> Figure:
    """The share of openings continued verbatim, and the share of tokens right before the first error, by step; two points are not joined.

    Args:
        rows: at least one.
    """
    panel, axes = one_panel(8, 3.4)
    steps = [row.step for row in rows]
    verbatim = [100 * row.recalled.share for row in rows]
    right = [100 * row.recalled.right / row.recalled.continued for row in rows]
    joined = (
        len(rows) > 2
    )  # a line between a beginning and an end would show a course that nobody measured
    axes.plot(
        steps,
        right,
        color=BLUE,
        linewidth=1.2,
        linestyle=(0, (4, 2)) if joined else "none",
        marker="D",
        markersize=5,
        markerfacecolor="white",
    )
    axes.plot(
        steps,
        verbatim,
        color="black",
        linewidth=1.8,
        linestyle="-" if joined else "none",
        marker="o",
        markersize=5,
    )
    axes.set(ylim=(-2, 102), xlabel="step (optimizer updates)", ylabel="share (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    label_ends(
        axes,
        [
            ("openings continued\nverbatim ●", verbatim[-1], "black"),
            ("tokens right before\nthe first error ◇", right[-1], BLUE),
        ],
    )
    return panel


def in_words(rows: Sequence[RecallRow]) -> str:
    """What the figure says, in a sentence."""
    first, last = rows[0].recalled, rows[-1].recalled
    return (
        f"Openings of {last.given} tokens continued verbatim for {last.continued} tokens: {first.verbatim:,} of {first.openings:,} "
        f"({first.share:.0%}) at step {rows[0].step:,}, {last.verbatim:,} of {last.openings:,} ({last.share:.0%}) at step "
        f"{rows[-1].step:,}."
    )


def growth_table(rows: Sequence[RecallRow], run: RunResults) -> HTML:
    """Recall beside the training loss of the same step; of many measurements some, the first and the last among them."""
    losses = {row.step: row.train_loss for row in run.rows}
    n_shown = min(len(rows), _TABLE_ROWS)
    chosen = [rows[i * (len(rows) - 1) // max(1, n_shown - 1)] for i in range(n_shown)]
    return table(
        (
            "step",
            "training loss",
            "openings",
            "continued verbatim",
            "tokens right before the first error",
        ),
        [
            (
                row.step,
                loss_text(losses.get(row.step)),
                row.recalled.openings,
                f"{row.recalled.verbatim:,} ({row.recalled.share:.0%})",
                f"{row.recalled.right:.1f} of {row.recalled.continued}",
            )
            for row in chosen
        ],
    )
