"""The loss of every token, painted onto the text as HTML.

Darkness and a line below, not hue, carry the meaning; each token shows its figures when pointed at.
"""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2_nb_utils.figures.html import (
    FAINT,
    HTML,
    INK,
    box,
    caption,
    key,
    mark_whitespace,
    marked,
    shown,
    table,
)
from gpt2_nb_utils.tokenization.bpe import token_strings

if TYPE_CHECKING:
    from gpt2_nb_utils.results.measure import Measured

STEPS = (
    (0.9, "#ffffff", "none", "at least 90 %", "up to 0.11"),
    (0.5, "#fdf0c4", "underline dotted", "at least 50 %", "up to 0.69"),
    (0.1, "#fbd98c", "underline dashed", "at least 10 %", "up to 2.30"),
    (0.01, "#f4b46a", "underline", "at least 1 %", "up to 4.61"),
    (0.001, "#e2935c", "underline double", "at least 0.1 %", "up to 6.91"),
    (0.0, "#c97b5b", "underline wavy", "below 0.1 %", "above 6.91"),
)
"""(Probability from which a colour holds, colour, the line below a token, both limits as text).

Each colour is darker than the one before, in grey too.
"""
_LIMITS = [-math.log(probability) for probability, *_ in STEPS[:-1]]  # the same in nats, ascending


def step(loss: float) -> int:
    """The number in STEPS of the colour of a token with this loss (nats)."""
    return bisect.bisect_left(_LIMITS, loss)


def _look(number: int) -> str:
    _, colour, line, *_ = STEPS[number]
    return f"color:{INK}; background:{colour}; text-decoration:{line};"


def probability_text(loss: float) -> str:
    """The probability e^−loss, as a person reads it."""
    probability = math.exp(-loss)
    if probability >= 0.001:
        return f"{probability:.1%}"
    rounded = float(f"{1 / probability:.2g}")  # a large loss may be on record in 16 bits
    return f"1 in {rounded:,.0f}" if loss < 30 else "almost 0"


def painted(
    ids: Iterable[int],
    losses: Sequence[float],
    before: Iterable[int] = (),
    after: Iterable[int] = (),
) -> HTML:
    """A text with each token on a background that shows its loss; line breaks carry a visible ↵.

    Args:
        ids: the tokens that were predicted (t,).
        losses: the loss of each (t,), nats.
        before, after: tokens around them that are shown in grey, without a loss.
    """
    parts = [marked(before, FAINT, breaks=True)]
    for text, loss in zip(token_strings(ids), (float(loss) for loss in losses), strict=True):
        figures = f"loss {loss:.3f} nats, probability {probability_text(loss)}"
        title = html.escape(f"{mark_whitespace(text)}   {figures}")
        parts.append(f'<span style="{_look(step(loss))}" title="{title}">{shown(text)}</span>')
    parts.append(marked(after, FAINT, breaks=True))
    return HTML(box("".join(parts)))


def painted_windows(measured: Measured, at_most_tokens: int = 500) -> HTML:
    """Some of the measured windows, spread over the corpus and painted, below a legend.

    Args:
        at_most_tokens: how much to show; at least one window is shown, from its start.
    """
    seq_len = measured.windows.seq_len
    n_shown = max(1, min(len(measured.read), at_most_tokens // seq_len, 4))
    parts = [legend().data]
    for i in range(n_shown):
        window = measured.read[(2 * i + 1) * len(measured.read) // (2 * n_shown)]
        losses = window.losses[:at_most_tokens]
        number = f"window {window.index:,} of {len(measured.windows):,}"
        parts.append(caption(f"{number}: mean loss {window.mean:.3f} nats per token"))
        # The first token of a window is given, not predicted.
        given, predicted = window.tokens[:1], window.tokens[1 : len(losses) + 1]
        parts.append(painted(predicted, losses.tolist(), before=given).data)
    return HTML("".join(parts))


def legend() -> HTML:
    """The colours with the probabilities and the losses that they stand for."""
    names = [
        key(f"{name}: loss {losses}", _look(number))
        for number, (name, losses) in enumerate(classes())
    ]
    names.append(key("grey: given, not predicted", FAINT))
    return HTML(
        f'<div style="font-size:.85em; color:inherit; margin:.3em 0;">probability of the right '
        f"token (the darker, the less likely):<br>{''.join(names)}</div>"
    )


def classes_table(measured: Measured) -> HTML:
    """How many of the measured predictions have each colour, and their share of the loss."""
    counted = shares(torch.cat([window.losses for window in measured.read]).double())
    rows = [
        (HTML(key(name, _look(number))), limits, *counts)
        for number, ((name, limits), counts) in enumerate(zip(classes(), counted))
    ]
    return table(
        (
            "probability of the right token",
            "loss (nats)",
            "predictions",
            "share",
            "share of the loss",
        ),
        rows,
        "The measured predictions by their colour",
    )


def shares(losses: Tensor) -> list[tuple[int, str, str]]:
    """How many of these losses (n,) have each colour, as a share of all, and of their sum."""
    numbers = torch.tensor([step(loss) for loss in losses.tolist()])
    counts = numbers.bincount(minlength=len(STEPS))
    sums = numbers.bincount(losses, minlength=len(STEPS)) / losses.sum().clamp(min=1e-12)
    return [
        (count, f"{count / len(losses):.1%}", f"{total:.1%}")
        for count, total in zip(counts.tolist(), sums.tolist())
    ]


def classes() -> list[tuple[str, str]]:
    """Each colour as (probabilities in words, losses in words)."""
    return [(probabilities, losses) for *_, probabilities, losses in STEPS]
