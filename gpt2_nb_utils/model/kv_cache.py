"""Keys and values of the tokens already seen, so that each new token costs one row instead of the whole context."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Room for the keys and values of every layer, filled from the left.

    Args:
        n_layer: layers of the model.
        capacity: tokens that fit in.
    """

    def __init__(self, n_layer: int, capacity: int):
        self.capacity = capacity
        self._keys: list[Tensor | None] = [None] * n_layer  # each (B, H, capacity, D)
        self._values: list[Tensor | None] = [None] * n_layer
        self._lengths = [0] * n_layer

    def __len__(self) -> int:
        """Tokens held. Between two forward passes all layers hold the same number."""
        return self._lengths[0]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D) of one layer and return all it holds, (B, H, past + T, D)."""
        if self._keys[layer] is None:
            room = (*k.shape[:2], self.capacity, k.size(3))
            self._keys[layer], self._values[layer] = k.new_empty(room), v.new_empty(room)
        start, end = self._lengths[layer], self._lengths[layer] + k.size(2)
        if end > self.capacity:
            raise ValueError(f"{end} tokens exceed the cache's capacity {self.capacity}")
        self._keys[layer][:, :, start:end] = k
        self._values[layer][:, :, start:end] = v
        self._lengths[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]
