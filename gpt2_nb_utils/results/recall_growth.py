"""How recall of the corpus grew with training: what was counted at each measurement of the training loss.

Training counts it (`training.verbatim`), since the weights of every measurement are not kept. Of a run of an earlier version,
which did not, there are two points: its random weights and its best ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from IPython.display import HTML

from gpt2_nb_utils.figures.html import table
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.results.verdict import loss_text
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import RecallRow

_OF_RANDOM_WEIGHTS = 8
"""Openings for which random weights are asked: they know none, and eight say so cheaply."""
_TABLE_ROWS = 12


def history(run: Record, measured: Measured) -> list[RecallRow]:
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
        untrained = GPT2(GPT2Config.of(run.config), seed=run.config.seed)
        at_start = training_loss(
            untrained, run.windows, Precision(untrained.device, "fp32"), _OF_RANDOM_WEIGHTS
        ).recall
        for step, recalled in ((0, at_start), (measured.trained.step, measured.result.recall)):
            if recalled is not None:
                by_step[step] = RecallRow(step, recalled)
    return [by_step[step] for step in sorted(by_step)]


def in_words(rows: Sequence[RecallRow]) -> str:
    """What the figure says, in a sentence."""
    first, last = rows[0].recalled, rows[-1].recalled
    return (
        f"Openings of {last.given} tokens continued verbatim for {last.continued} tokens: {first.verbatim:,} of {first.openings:,} "
        f"({first.share:.0%}) at step {rows[0].step:,}, {last.verbatim:,} of {last.openings:,} ({last.share:.0%}) at step "
        f"{rows[-1].step:,}."
    )


def growth_table(rows: Sequence[RecallRow], run: Record) -> HTML:
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
