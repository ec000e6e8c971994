"""Keys and values of the tokens already seen, so that each new token costs one row instead of the whole context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Room for the keys and values of every layer; those of the token at position p of a row stand in slot p.

    Rows need not hold equally many tokens.

    Args:
        n_layer: layers of the model.
        capacity: tokens of one row that fit in.

    Attributes:
        lengths: tokens held by each row; empty before the first.
        mask: True where the queries of the forward pass under way may look, (T, K) or, where rows differ, (B, 1, T, K);
            None where one query of each row may see every key, or where nothing stood before.
    """

    def __init__(self, n_layer: int, capacity: int):
        self.capacity = capacity
        self.lengths: list[int] = []
        self.mask: Tensor | None = None
        self._keys: list[Tensor | None] = [None] * n_layer  # each (B, H, capacity, D)
        self._values: list[Tensor | None] = [None] * n_layer
        self._slots: tuple[
            slice | Tensor, slice, slice | Tensor
        ]  # of the tokens of the forward pass under way
        self._end = 0

    def __len__(self) -> int:
        """Tokens held by the longest row."""
        return max(self.lengths, default=0)

    def begin(self, x: Tensor) -> int | Tensor:
        """Make room for the tokens `x` (B, T) of a forward pass, which come next in each row.

        Returns:
            How many tokens stand before them: one number, or (B,) where rows differ.

        Raises:
            ValueError: they do not fit in.
        """
        B, T = x.shape
        before, longest = self.lengths or [0] * B, len(self)
        self._end = longest + T
        if self._end > self.capacity:
            raise ValueError(f"{self._end} tokens exceed the cache's capacity {self.capacity}")
        self.lengths = [length + T for length in before]
        if min(before) == longest:
            self._slots = (slice(None), slice(None), slice(longest, self._end))
            self.mask = (
                None
                if T == 1 or longest == 0
                else torch.ones(T, self._end, dtype=torch.bool, device=x.device).tril(longest)
            )  # (T, K)
            return longest
        past = torch.tensor(before, device=x.device)  # (B,)
        slots = past[:, None] + torch.arange(T, device=x.device)  # (B, T)
        self._slots = (torch.arange(B, device=x.device)[:, None], slice(None), slots)
        self.mask = (torch.arange(self._end, device=x.device) <= slots[:, :, None])[
            :, None
        ]  # (B, 1, T, K)
        return past

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put in keys and values (B, H, T, D) of one layer and return those of all slots in use, (B, H, K, D)."""
        if self._keys[layer] is None:
            room = (*k.shape[:2], self.capacity, k.size(3))
            # Zeros: a slot that a shorter row has not come to has no weight, but even 0 × NaN is NaN.
            self._keys[layer], self._values[layer] = k.new_zeros(room), v.new_zeros(room)
        for held, new in ((self._keys[layer], k), (self._values[layer], v)):
            held[self._slots] = (
                new if isinstance(self._slots[0], slice) else new.transpose(1, 2)
            )  # (B, T, H, D)
        return self._keys[layer][:, :, : self._end], self._values[layer][:, :, : self._end]

    def keep(self, lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths` tokens of each row."""
        self.lengths = list(lengths)

    def take(self, rows: Sequence[int], other: KVCache) -> None:
        """Put what another cache holds in the place of these rows."""
        for mine, theirs in zip(self._keys + self._values, other._keys + other._values):
            if theirs is not None:
                mine[list(rows), :, : other._end] = theirs[:, :, : other._end]
