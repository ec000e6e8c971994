"""Verbatim recall: the model continues openings of its corpus, and the text itself is the truth.

Prefixes are taken from the start of windows, so that every token stands at the position at which
training showed it: a learned position is part of what is memorised.

How recall grew, training counts at each measurement (`training.verbatim`), since the weights of
every measurement are not kept. Of a run of an earlier version, which did not, there are two points:
its random weights and its best ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gpt2_nb_utils.figures.html import FAINT, HTML, beside, marked, table
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import RecallRow
from gpt2_nb_utils.training.verbatim import LENGTH, PREFIX, opening_of
from gpt2_nb_utils.wording import loss_text

_OF_RANDOM_WEIGHTS = 8
"""Openings for which random weights are asked: they know none, and eight say so cheaply."""
_TABLE_ROWS = 12
_RIGHT_BEFORE = "tokens right before the first error"
_RIGHT, _WRONG = "background:#d3e6f7;", "text-decoration:underline wavy #7a2b12;"


@dataclass(frozen=True)
class Recall:
    """One prefix of the corpus, what follows it, and what the model makes of it.

    Attributes:
        start: number of the first token of the prefix in the corpus.
        prefix: the given tokens (P,).
        truth: the tokens that follow in the corpus (R,).
        generated: the greedy continuation (R,).
    """

    start: int
    prefix: Tensor
    truth: Tensor
    generated: Tensor

    @property
    def n_right(self) -> int:
        """Tokens that are right before the first wrong one."""
        wrong = (self.generated != self.truth).nonzero()
        return int(wrong[0]) if len(wrong) else len(self.truth)

    @property
    def verbatim(self) -> bool:
        """Whether the whole continuation is right."""
        return self.n_right == len(self.truth)


def recall(
    model: GPT2, windows: TokenDataset, n: int = 8, prefix: int = PREFIX, length: int = LENGTH
) -> list[Recall]:
    """The greedy continuation of the openings of windows spread evenly over the corpus.

    Args:
        n: how many openings; fewer where the corpus has fewer windows.
        prefix: tokens given (less where a window or the corpus is too short), P.
        length: tokens generated (less likewise), R.
    """
    seq_len, tokens = windows.seq_len, windows.tokens.cpu()
    prefix, length = opening_of(windows, prefix, length)
    starts = [number * seq_len for number in windows.evenly_spread(n)]
    starts = [start for start in starts if start + prefix + length <= len(tokens)]
    prompts = [tokens[start : start + prefix] for start in starts]
    texts = generate(model, prompts, length, temperature=0, context=seq_len)
    return [
        Recall(start, prompt, tokens[start + prefix : start + prefix + length], text[prefix:])
        for start, prompt, text in zip(starts, prompts, texts)
    ]


def recall_text(recalls: list[Recall]) -> str:
    """The result in a sentence."""
    P, R = len(recalls[0].prefix), len(recalls[0].truth)
    right = [one.n_right for one in recalls]
    n_verbatim = sum(one.verbatim for one in recalls)
    return (
        f"Given {P} tokens, the model continued {n_verbatim} of {len(recalls)} openings verbatim "
        f"for all {R} tokens ({n_verbatim / len(recalls):.0%}). Tokens right before the first error: "
        f"{sum(right) / len(right):.1f} of {R} on average, {max(right)} at best."
    )


def recall_table(recalls: list[Recall]) -> HTML:
    """How far each continuation went before its first error."""
    rows = [
        (f"{one.start:,}", one.n_right, len(one.truth), "✓ yes" if one.verbatim else "✗ no")
        for one in recalls
    ]
    return table(
        ("opening at token", "right before the first error", "of", "verbatim"),
        rows,
        "How far the model continues each opening as the text does",
    )


def side_by_side(recalls: list[Recall], at_most: int = 4) -> HTML:
    """Given text, truth and continuation beside each other.

    ✗ stands at the first error, wrong tokens are underlined.

    Args:
        at_most: how many to show, spread over the corpus.
    """
    step = max(1, -(-len(recalls) // at_most))
    rows = []
    for one in recalls[::step]:
        n = one.n_right
        truth = marked(one.truth[:n], _RIGHT) + marked(one.truth[n:])
        said = marked(one.generated[:n], _RIGHT) + _from_first_error(one)
        columns = (
            (f"given, from token {one.start:,}", marked(one.prefix, FAINT)),
            ("truth", truth),
            (f"model: {n} of {len(one.truth)} right", said),
        )
        rows.append(beside(columns))
    return HTML("".join(rows))


def _from_first_error(one: Recall) -> str:
    if one.verbatim:
        return " <b>✓</b>"
    parts = ["<b>✗</b>"]
    for said, true in zip(one.generated[one.n_right :], one.truth[one.n_right :]):
        parts.append(marked(said[None], "" if said == true else _WRONG))
    return "".join(parts)


def recorded(run: Record) -> list[RecallRow]:
    """Recall at each measurement of a run, in order, one row a step; empty where none is on
    record."""
    # A step that was estimated first and then measured whole has two rows: the one with more
    # openings comes last, and stays.
    rows = sorted(run.recall, key=lambda row: (row.step, row.recalled.openings))
    return list({row.step: row for row in rows}.values())


def history(run: Record, measured: Measured) -> list[RecallRow]:
    """The recall on record, or else that of the random and of the best weights.

    Args:
        measured: the best weights, which the windows of the run were read with.
    """
    if run.recall:
        return recorded(run)
    untrained = GPT2(GPT2Config.of(run.config), seed=run.config.seed)
    precision = Precision(untrained.device, "fp32")
    at_start = training_loss(untrained, run.windows, precision, _OF_RANDOM_WEIGHTS).recall
    counted = ((0, at_start), (measured.trained.step, measured.result.recall))
    return [RecallRow(step, recalled) for step, recalled in counted if recalled]


def growth_text(rows: Sequence[RecallRow]) -> str:
    """What the figure says, in a sentence."""
    first, last = rows[0].recalled, rows[-1].recalled
    return (
        f"Openings of {last.given} tokens continued verbatim for {last.continued} tokens: "
        f"{first.verbatim:,} of {first.openings:,} ({first.share:.0%}) at step {rows[0].step:,}, "
        f"{last.verbatim:,} of {last.openings:,} ({last.share:.0%}) at step {rows[-1].step:,}."
    )


def growth_table(rows: Sequence[RecallRow], run: Record) -> HTML:
    """Recall beside the training loss of the same step.

    Of many measurements it shows some, the first and the last among them.
    """
    losses = {row.step: row.train_loss for row in run.rows}
    n_shown = min(len(rows), _TABLE_ROWS)
    shown = []
    for i in range(n_shown):
        row = rows[i * (len(rows) - 1) // max(1, n_shown - 1)]
        verbatim = f"{row.recalled.verbatim:,} ({row.recalled.share:.0%})"
        right = f"{row.recalled.right:.1f} of {row.recalled.continued}"
        loss = loss_text(losses.get(row.step))
        shown.append((row.step, loss, row.recalled.openings, verbatim, right))
    head = ("step", "training loss", "openings", "continued verbatim", _RIGHT_BEFORE)
    return table(head, shown)
