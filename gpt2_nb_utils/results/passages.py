"""What the model knows worst and best among the windows that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from gpt2_nb_utils.figures.html import HTML, caption, code, coloured_tokens, table
from gpt2_nb_utils.figures.token_paint import painted
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.wording import plural


@dataclass(frozen=True)
class Passage:
    """Some predicted tokens in a row.

    Attributes:
        start: number of its first token in the corpus.
        loss: its mean loss, nats per token.
        losses: the loss of each of its tokens (t,), nats.
    """

    start: int
    loss: float
    losses: Tensor


def worst_and_best(
    measured: Measured, n: int = 3, length: int = 24
) -> tuple[list[Passage], list[Passage]]:
    """The `n` passages with the highest and the `n` with the lowest mean loss.

    No two of a list overlap.

    Args:
        n: how many of each; fewer where the measured text is short.
        length: tokens in a passage (less where windows are shorter).
    """
    candidates = []
    for window in measured.read:
        # (places, t): the losses of the passage that begins at each place
        stretches = window.losses.unfold(0, min(length, len(window.losses)), 1)
        means = stretches.double().mean(dim=1).tolist()
        # Target number 0 of a window is the token after its first input.
        for start, mean, losses in zip(count(window.start + 1), means, stretches):
            candidates.append(Passage(start, mean, losses))
    candidates.sort(key=lambda passage: passage.loss)
    return _apart(candidates[::-1], n, length), _apart(candidates, n, length)


def _apart(candidates: Sequence[Passage], n: int, length: int) -> list[Passage]:
    chosen: list[Passage] = []
    for passage in candidates:
        if len(chosen) < n and all(abs(passage.start - one.start) >= length for one in chosen):
            chosen.append(passage)
    return chosen


def passages_shown(passages: Sequence[Passage], windows: TokenDataset, context: int = 12) -> HTML:
    """Each passage with its loss, painted, between some tokens of context in grey.

    Args:
        context: tokens shown before and after it.
    """
    parts, tokens = [], windows.tokens
    for passage in passages:
        start, end = passage.start, passage.start + len(passage.losses)
        seen = plural((start - 1) % windows.seq_len + 1, "token")
        title = (
            f"mean loss {passage.loss:.3f} nats per token, from token {start:,} of the corpus; "
            f"the model sees {seen} before it"
        )
        before, after = tokens[max(0, start - context) : start], tokens[end : end + context]
        shown = painted(tokens[start:end], passage.losses.tolist(), before, after)
        parts += [caption(title), shown.data]
    return HTML("".join(parts))


@dataclass(frozen=True)
class LeastExpected:
    """A place of the text, and what the model expected there.

    Attributes:
        seen: the tokens of its window before that place (t,): all that the model knew.
        token: the one that stands there.
        probability: what the model gave it.
        rank: 1 for the most likely token, and so on.
        likeliest: the most likely tokens, (id, probability), in order.
    """

    seen: Tensor
    token: int
    probability: float
    rank: int
    likeliest: tuple[tuple[int, float], ...]


@torch.no_grad()
def least_expected(measured: Measured, n: int = 5) -> LeastExpected:
    """The measured token with the highest loss.

    Args:
        n: how many of the most likely tokens are kept.
    """
    window = max(measured.read, key=lambda window: window.losses.max().item())
    place, model = int(window.losses.argmax()), measured.trained.model
    seen, token = window.tokens[: place + 1], int(window.tokens[place + 1])
    probabilities = model(seen[None].to(model.device))[0, -1].double().softmax(dim=0).cpu()  # (V,)
    top = probabilities.topk(n)
    return LeastExpected(
        seen,
        token,
        probabilities[token].item(),
        1 + int((probabilities > probabilities[token]).sum()),
        tuple(zip(top.indices.tolist(), top.values.tolist())),
    )


def least_expected_text(one: LeastExpected) -> str:
    """What stands there, in a sentence."""
    return (
        f"The least expected token got a probability of {one.probability:.2g}; {one.rank - 1:,} "
        f"tokens were more likely to the model."
    )


def least_expected_shown(one: LeastExpected, context: int = 12) -> HTML:
    """The last tokens the model saw, the most likely ones after them, and the actual next token.

    Args:
        context: tokens shown before the place.
    """
    rows: list[tuple[object, ...]] = [
        (rank, code(token_strings([token])[0]), f"{probability:.2%}")
        for rank, (token, probability) in enumerate(one.likeliest, start=1)
    ]
    rows.append((one.rank, coloured_tokens([one.token]), f"{one.probability:.2g}"))
    seen = coloured_tokens(one.seen[-context:], show_ids=False).data
    caption = "After these tokens: the most likely ones, and last the actual next token"
    return HTML(seen + table(("rank", "token", "probability"), rows, caption).data)
