"""Verbatim recall: the model continues openings of its corpus, and the text itself is the truth.

Prefixes are taken from the start of windows, so that every token stands at the position at which
training showed it: a learned position is part of what is memorised.
"""

from __future__ import annotations

from dataclasses import dataclass

from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.figures.html import FAINT, beside, marked, table
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.verbatim import LENGTH, PREFIX, opening_of

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
    """Continue the openings of windows spread evenly over the corpus, always with the most likely token.

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
        f"Given {P} tokens, the model continued {n_verbatim} of {len(recalls)} openings verbatim for all {R} "
        f"tokens ({n_verbatim / len(recalls):.0%}). Tokens right before the first error: "
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
        "How far the model goes on with each opening as the text does",
    )


def side_by_side(recalls: list[Recall], at_most: int = 4) -> HTML:
    """Given text, truth and continuation beside each other; ✗ stands at the first error, wrong tokens are underlined.

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
