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
_RIGHT = "tokens right before the first error"


def history(run: Record, measured: Measured) -> list[RecallRow]:
    """Recall at each measurement, in order, one row a step: on record, or else of the random and of the best weights.

    Args:
        measured: the best weights, which the windows of the run were read with.
    """
    if run.recall:
        # A step that was estimated first and then measured whole has two rows: the one with more
        # openings comes last, and stays.
        rows = sorted(run.recall, key=lambda row: (row.step, row.recalled.openings))
        return list({row.step: row for row in rows}.values())
    untrained = GPT2(GPT2Config.of(run.config), seed=run.config.seed)
    precision = Precision(untrained.device, "fp32")
    at_start = training_loss(untrained, run.windows, precision, _OF_RANDOM_WEIGHTS).recall
    counted = ((0, at_start), (measured.trained.step, measured.result.recall))
    return [RecallRow(step, recalled) for step, recalled in counted if recalled]


def growth_text(rows: Sequence[RecallRow]) -> str:
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
    shown = []
    for i in range(n_shown):
        row = rows[i * (len(rows) - 1) // max(1, n_shown - 1)]
        verbatim = f"{row.recalled.verbatim:,} ({row.recalled.share:.0%})"
        right = f"{row.recalled.right:.1f} of {row.recalled.continued}"
        loss = loss_text(losses.get(row.step))
        shown.append((row.step, loss, row.recalled.openings, verbatim, right))
    head = ("step", "training loss", "openings", "continued verbatim", _RIGHT)
    return table(head, shown)
