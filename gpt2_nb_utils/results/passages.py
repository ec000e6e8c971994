"""What the model knows worst and best among the windows that were measured: passages, and the least expected token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.figures.html import caption, code, coloured_tokens, table
from gpt2_nb_utils.figures.token_paint import painted
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.dataset import TokenDataset


@dataclass(frozen=True)
class Passage:
    """Some predicted tokens in a row.

    Attributes:
        start: number of its first token in the corpus.
        losses: the loss of each of its tokens (t,), nats.
    """

    start: int
    losses: Tensor

    @property
    def loss(self) -> float:
        """Its mean loss, nats per token."""
        return self.losses.double().mean().item()

    def __len__(self) -> int:
        return len(self.losses)


def worst_and_best(
    measured: Measured, n: int = 3, length: int = 24
) -> tuple[list[Passage], list[Passage]]:
    """The `n` passages with the highest and the `n` with the lowest mean loss, no two of a list overlapping.

    Args:
        n: how many of each; fewer where the measured text is short.
        length: tokens in a passage (less where windows are shorter).
    """
    candidates = []
    for window in measured.read:
        t = min(length, len(window.losses))
        means = window.losses.double().unfold(0, t, 1).mean(dim=1)  # one for each place
        for offset, mean in enumerate(means.tolist()):
            # Target number `offset` of a window is the token after input `offset`.
            passage = Passage(window.start + 1 + offset, window.losses[offset : offset + t])
            candidates.append((mean, passage))
    candidates.sort(key=lambda candidate: candidate[0])
    return _apart(candidates[::-1], n), _apart(candidates, n)


def _apart(candidates: Sequence[tuple[float, Passage]], n: int) -> list[Passage]:
    chosen: list[Passage] = []
    for _, passage in candidates:
        if all(
            passage.start + len(passage) <= other.start or other.start + len(other) <= passage.start
            for other in chosen
        ):
            chosen.append(passage)
        if len(chosen) == n:
            break
    return chosen


def passages_shown(passages: Sequence[Passage], windows: TokenDataset, context: int = 12) -> HTML:
    """Each passage with its loss, painted, between some tokens of context in grey.

    Args:
        context: tokens shown before and after it.
    """
    parts = []
    for passage in passages:
        end = passage.start + len(passage)
        seen = (passage.start - 1) % windows.seq_len + 1
        parts.append(
            caption(
                f"mean loss {passage.loss:.3f} nats per token, from token {passage.start:,} of the "
                f"corpus; the model sees {seen:,} token{'s' * (seen > 1)} before it"
            )
        )
        before = windows.tokens[max(0, passage.start - context) : passage.start]
        said, after = windows.tokens[passage.start : end], windows.tokens[end : end + context]
        parts.append(painted(said, passage.losses.tolist(), before, after).data)
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


def least_expected_in_words(one: LeastExpected) -> str:
    """What stands there, in a sentence."""
    return (
        f"The least expected token got a probability of {one.probability:.2g}; {one.rank - 1:,} tokens were more "
        f"likely to the model."
    )


def least_expected_shown(one: LeastExpected, context: int = 12) -> HTML:
    """The last tokens that the model saw, the most likely ones after them, and the actual next token.

    Args:
        context: tokens shown before the place.
    """
    rows = [
        (rank, code(token_strings([token])[0]), f"{probability:.2%}")
        for rank, (token, probability) in enumerate(one.likeliest, start=1)
    ]
    came = (
        one.rank,
        HTML(f"<b>{coloured_tokens([one.token]).data}</b>"),
        f"{one.probability:.2g}",
    )
    seen = coloured_tokens(one.seen[-context:].tolist(), show_ids=False).data
    caption = "After these tokens: the most likely ones, and last the actual next token"
    return HTML(seen + table(("rank", "token", "probability"), [*rows, came], caption).data)
