"""Where the heads of a trained model look, and the heads with a plain habit by name.

What a head is for, these counts do not say: where it looks is not yet what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gpt2_nb_utils.figures.html import HTML, mark_whitespace, table

HABITS = ("the first token", "itself", "the previous token", "any other token")
"""Where a head can look; each weight counts for one of them."""


@dataclass(frozen=True)
class Head:
    """One attention head. Layers and heads are counted from 0, as in the lists that hold them."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer {self.layer + 1}, head {self.head + 1}"


def habits(maps: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The share of its attention that each head gives to each of HABITS, averaged over tokens.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them; T at least 3.

    Returns:
        (L, H) for each habit; together they are 1. The first two tokens are left out: theirs
        cannot be told apart.
    """
    weights = np.stack([layer[0].float().cpu().numpy() for layer in maps])[
        :, :, 2:
    ]  # (L, H, T - 2, T)
    queries = np.arange(weights.shape[2])
    shares = {
        "the first token": weights[..., 0],
        "itself": weights[:, :, queries, queries + 2],
        "the previous token": weights[:, :, queries, queries + 1],
    }
    shares = {name: share.mean(axis=-1) for name, share in shares.items()}
    return {**shares, "any other token": 1 - sum(shares.values())}


def strongest(maps: Sequence[Tensor], habit: str) -> Head:
    """The head that looks most at one of HABITS."""
    shares = habits(maps)[habit]
    return Head(*map(int, np.unravel_index(shares.argmax(), shares.shape)))


def habits_table(maps: Sequence[Tensor]) -> HTML:
    """For each of HABITS strongest head, its share, and that of an average head."""
    rows = [
        (f"looks at {habit}", strongest(maps, habit), f"{shares.max():.0%}", f"{shares.mean():.0%}")
        for habit, shares in habits(maps).items()
    ]
    head = ("habit", "strongest head", "share of its attention", "average head")
    return table(head, rows)


def attention_text(maps: Sequence[Tensor], which: Head, pieces: Sequence[str]) -> str:
    """What the enlarged map says, for those who cannot see it: where the last tokens look most."""
    shares, keys = maps[which.layer][0, which.head].max(dim=-1)  # of each token: (T,)
    texts = [f"“{mark_whitespace(piece)}”" for piece in pieces]
    looks = [
        f"{texts[t]} at {texts[keys[t]]} ({shares[t]:.0%})"
        for t in range(max(1, len(pieces) - 6), len(pieces))
    ]
    return f"Where the last tokens look most, {which}: {', '.join(looks)}."
