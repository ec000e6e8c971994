"""The passages that the model knows worst and best, among the windows that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.results.blocks import caption
from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.results.token_paint import painted
from gpt2_nb_utils.tokenization.windows import Windows


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
    for index, losses in zip(measured.indices, measured.losses):
        t = min(length, len(losses))
        sums = torch.cat(
            [torch.zeros(1, dtype=torch.float64), losses.double().cumsum(0)]
        )  # (len + 1,)
        for offset, mean in enumerate(((sums[t:] - sums[:-t]) / t).tolist()):
            # Target number `offset` of a window is the token after input `offset`.
            candidates.append(
                (
                    mean,
                    Passage(
                        index * measured.windows.seq_len + 1 + offset, losses[offset : offset + t]
                    ),
                )
            )
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


def passages_shown(passages: Sequence[Passage], windows: Windows, context: int = 12) -> HTML:
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
        before, after = (
            windows.tokens[max(0, passage.start - context) : passage.start],
            windows.tokens[end : end + context],
        )
        parts.append(
            painted(
                windows.tokens[passage.start : end], passage.losses.tolist(), before, after
            ).data
        )
    return HTML("".join(parts))
