"""Verbatim recall, counted in the forward pass of the training loss: no token has to be generated.

Decoding greedily, a model continues an opening of its corpus verbatim for exactly as long as the
most likely token, *given the true text before it*, is the true one: up to there its own text and
the true one are the same. So the hidden states of a window, there already for the loss, show how
far it would get; only the head is applied once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import linear
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.records import RecallStats

PREFIX, LENGTH = 32, 32
"""Tokens given and tokens to continue, where windows are long enough."""
_MOST_OPENINGS = 256
"""Openings counted where more windows are measured: the head costs a tenth of their forward
pass."""


def opening_of(
    windows: TokenDataset, prefix: int = PREFIX, length: int = LENGTH
) -> tuple[int, int]:
    """Tokens of a window that are given, and tokens to be continued: (P, R), each at least 1.

    Args:
        prefix: P at most; half a window, or half the corpus, where those are short.
        length: R at most; no more than the window taught.
    """
    seq_len, n_tokens = windows.seq_len, len(windows.tokens)
    prefix = max(1, min(prefix, seq_len // 2, n_tokens // 2))
    # seq_len inputs have seq_len targets: the last one taught is token seq_len, counted from 0.
    return prefix, max(1, min(length, seq_len + 1 - prefix, n_tokens - prefix))


def openings_among(indices: Sequence[int]) -> set[int]:
    """The windows whose openings are counted when these are measured: all, or some of many."""
    n = min(len(indices), _MOST_OPENINGS)
    return {indices[i * len(indices) // n] for i in range(n)}


def counted_openings(windows: TokenDataset, indices: Sequence[int]) -> list[int]:
    """Those windows of `openings_among` that are long enough for their openings to count."""
    P, R = opening_of(windows)
    return [
        index
        for index in sorted(openings_among(indices))
        if windows.n_targets - index * windows.seq_len >= P + R - 1
    ]


@torch.no_grad()
def tokens_right(
    hidden: Tensor, head: Tensor, targets: Tensor, opening: tuple[int, int]
) -> list[int | None]:
    """Tokens of the continuation right before the first error, for each window of a batch.

    Args:
        hidden: what the head sees, (B, T, C).
        head: its weight, (V, C).
        targets: (B, T), padded with IGNORE_INDEX; a window too short for the opening gives None.
        opening: P and R, from `opening_of`.
    """
    P, R = opening
    places = slice(P - 1, P + R - 1)  # token P is the target of the last one given
    wanted = targets[:, places]  # (B, R)
    # In fp32 whatever the run's format: the two largest of 50,257 logits are often equal in bf16.
    with torch.autocast(hidden.device.type, enabled=False):
        greedy = linear(hidden[:, places].float(), head.float()).argmax(dim=-1)  # (B, R)
    right = (greedy == wanted).long().cumprod(dim=1).sum(dim=1)  # ones up to the first error
    return [n if last >= 0 else None for n, last in zip(right.tolist(), wanted[:, -1].tolist())]


def counted(right: Sequence[int | None], opening: tuple[int, int]) -> tuple[int, int, int]:
    """Of these windows: openings tried, those continued verbatim, and tokens right in all."""
    tried = [n for n in right if n is not None]
    return len(tried), sum(n == opening[1] for n in tried), sum(tried)


def recall_stats(counts: Sequence[float], opening: tuple[int, int]) -> RecallStats | None:
    """What `counted` counted, summed over all windows; None where no window was long enough."""
    openings, verbatim, right = counts
    return (
        RecallStats(int(openings), *opening, int(verbatim), right / openings) if openings else None
    )
