"""The loss of every token, painted onto the text as HTML.

It knows how to paint what it is handed. It deliberately decides nothing about which text is shown. Every text goes
through `html.escape`; darkness and a line below, not hue, carry the meaning, and each token tells its figures when pointed at.
"""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Iterable, Sequence

import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.results.blocks import FAINT, box, caption, key, shown, tokens_text
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.display import INK, table, visible

STEPS = (
    (0.9, "#ffffff"),
    (0.5, "#fdf0c4"),
    (0.1, "#fbd98c"),
    (0.01, "#f4b46a"),
    (0.001, "#e2935c"),
    (0.0, "#c97b5b"),
)
"""(Probability from which a colour holds, colour): each is darker than the one before, in grey too."""
LINES = (
    "none",
    "underline dotted",
    "underline dashed",
    "underline",
    "underline double",
    "underline wavy",
)
"""The line below a token of each colour, for whoever does not see the colours apart."""
_LIMITS = [-math.log(probability) for probability, _ in STEPS[:-1]]  # the same in nats, ascending


def step(loss: float) -> int:
    """The number in STEPS of the colour of a token with this loss (nats)."""
    return bisect.bisect_left(_LIMITS, loss)


def colour(loss: float) -> str:
    """The background of a token with this loss (nats)."""
    return STEPS[step(loss)][1]


def _look(number: int) -> str:
    line = LINES[number]
    return f"background:{STEPS[number][1]};" + (
        f" text-decoration:{line};" if line != "none" else ""
    )


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
    """A text with each token on a background that tells its loss; line ends carry a visible ↵.

    Args:
        ids: the tokens that were predicted (t,).
        losses: the loss of each (t,), nats.
        before, after: tokens around them that are shown in grey, without a loss.
    """
    parts = [_given(before)]
    for text, loss in zip(token_strings(ids), (float(loss) for loss in losses), strict=True):
        title = html.escape(
            f"{visible(text)}   loss {loss:.3f} nats, probability {probability_text(loss)}",
            quote=True,
        )
        parts.append(f'<span style="{_look(step(loss))}" title="{title}">{shown(text)}</span>')
    parts.append(_given(after))
    return HTML(box("".join(parts)))


def painted_windows(measured: Measured, at_most_tokens: int = 500) -> HTML:
    """Some of the measured windows, spread over the corpus and painted, below a legend.

    Args:
        at_most_tokens: how much to show; at least one window is shown, from its start.
    """
    seq_len = measured.windows.seq_len
    n_shown = max(1, min(len(measured.indices), at_most_tokens // seq_len, 4))
    chosen = [(2 * i + 1) * len(measured.indices) // (2 * n_shown) for i in range(n_shown)]
    parts = [legend().data]
    for number in chosen:
        x, y = measured.windows.window(measured.indices[number])
        losses = measured.losses[number][:at_most_tokens]
        parts.append(
            caption(
                f"window {measured.indices[number]:,} of {len(measured.windows):,}: mean loss "
                f"{measured.losses[number].mean():.3f} nats per token"
            )
        )
        # The first token of a window is given, not predicted.
        parts.append(painted(y[: len(losses)], losses.tolist(), before=x[:1]).data)
    return HTML("".join(parts))


def legend() -> HTML:
    """The colours with the probabilities and the losses that they stand for."""
    names = [
        key(f"{name}: loss {losses}", f"color:{INK}; {_look(number)}")
        for number, (name, losses) in enumerate(classes())
    ]
    names.append(key("grey: given, not predicted", FAINT))
    return HTML(
        f'<div style="font-size:.85em; color:inherit; margin:.3em 0;">probability of the right token (the '
        f"darker, the less likely):<br>{''.join(names)}</div>"
    )


def classes_table(measured: Measured) -> HTML:
    """How many of the measured predictions fall into each colour, and how much of the loss they make."""
    losses = torch.cat(list(measured.losses)).double()
    rows = [
        (HTML(key(name, f"color:{INK}; {_look(number)}")), limits, n, share, share_of_loss)
        for number, ((name, limits), (n, share, share_of_loss)) in enumerate(
            zip(classes(), shares(losses))
        )
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
    """Of each colour how many of these losses (n,) have it, which share that is, and which share of their sum they make."""
    numbers = torch.tensor([step(loss) for loss in losses.tolist()])
    members = [losses[numbers == number] for number in range(len(STEPS))]
    return [
        (
            len(each),
            f"{len(each) / len(losses):.1%}",
            f"{float(each.sum() / losses.sum().clamp(min=1e-12)):.1%}",
        )
        for each in members
    ]


def classes() -> list[tuple[str, str]]:
    """Each colour as (probabilities in words, losses in words)."""
    texts = [f"{100 * probability:g} %" for probability, _ in STEPS[:-1]]
    limits = [f"up to {limit:.2f}" for limit in _LIMITS]
    names = [f"at least {text}" for text in texts] + [f"below {texts[-1]}"]
    return list(zip(names, [*limits, f"above {_LIMITS[-1]:.2f}"]))


def _given(ids: Iterable[int]) -> str:
    text = tokens_text(ids)
    return f'<span style="{FAINT}" title="given, not predicted">{text}</span>' if text else ""
