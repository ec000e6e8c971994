"""Tokens cut into windows of inputs and targets, and the order in which training visits them.

No state is kept between calls: a place in the data is one integer, so a resumed run continues with
exactly the windows that an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IGNORE_INDEX = -100
"""Target value of padding; PyTorch's `cross_entropy` leaves it out of the loss by default."""


class TokenDataset:
    """All next-token predictions of a corpus: windows of `seq_len`, no overlap, the last shorter.

    Target t of a window is the token that follows input t, so N tokens hold N - 1 targets, each in
    one window.

    Args:
        tokens: the corpus, `(N,)` long, N at least 2.
        seq_len: tokens in one window.

    Raises:
        ValueError: fewer than 2 tokens, more than one dimension, or a `seq_len` below 1.
    """

    def __init__(self, tokens: torch.Tensor, seq_len: int):
        if tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)} leave nothing to predict: give a row of 2 "
                f"or more"
            )
        if seq_len < 1:
            raise ValueError(f"seq_len {seq_len} is no window: take 1 or more")
        self.tokens = tokens.long()
        self.seq_len = seq_len
        self.n_targets = len(tokens) - 1

    def __len__(self) -> int:
        return -(-self.n_targets // self.seq_len)

    def window(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of window number `i`, without padding.

        Returns:
            x `(t,)` and y `(t,)`, views of the corpus; t is `seq_len`, or less in the last window.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} is not one of the {len(self)} windows")
        start = i * self.seq_len
        end = min(start + self.seq_len, self.n_targets)
        return self.tokens[start:end], self.tokens[start + 1 : end + 1]

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The windows with these numbers, stacked.

        Args:
            indices: B window numbers.

        Returns:
            x `(B, T)` and y `(B, T)` with T = `seq_len`, whatever the windows: one shape suits
            `torch.compile`.
            After the end of the last, shorter window x is 0 and y is `IGNORE_INDEX`.
        """
        numbers = torch.as_tensor(indices, dtype=torch.long, device=self.tokens.device)
        if len(numbers) and not (0 <= int(numbers.min()) and int(numbers.max()) < len(self)):
            raise IndexError(
                f"a window among {list(indices)} is not one of the {len(self)} windows"
            )
        places = numbers[:, None] * self.seq_len + torch.arange(
            self.seq_len, device=self.tokens.device
        )  # (B, T)
        beyond = places >= self.n_targets
        places = places.clamp(max=self.n_targets - 1)
        x = self.tokens[places].masked_fill(beyond, 0)
        y = self.tokens[places + 1].masked_fill(beyond, IGNORE_INDEX)
        return x, y

    def evenly_spread(self, k: int) -> list[int]:
        """`k` window numbers spread evenly over the corpus, always the same ones; 0 means all."""
        if k <= 0 or k >= len(self):
            return list(range(len(self)))
        return [(2 * i + 1) * len(self) // (2 * k) for i in range(k)]


class EpochSampler:
    """An endless sequence of epochs over window numbers, readable from any position.

    Args:
        n_windows: windows in one epoch.
        seed: seed of the shuffles.
        shuffle: a fresh permutation in each epoch; False takes the windows in the text's order.
    """

    def __init__(self, n_windows: int, seed: int, shuffle: bool = True):
        self.n_windows, self.seed, self.shuffle = n_windows, seed, shuffle
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def take(self, position: int, count: int) -> list[int]:
        """The window numbers at places `position` to `position + count - 1` of the sequence.

        The cost does not grow with `position`: a permutation depends on (seed, epoch) alone.
        """
        taken: list[int] = []
        while len(taken) < count:
            epoch, offset = divmod(position + len(taken), self.n_windows)
            taken += self._order_of(epoch)[offset : offset + count - len(taken)].tolist()
        return taken

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.n_windows)
        if epoch != self._epoch:
            # Raw bits of PCG64 are the same in every NumPy version and on every platform, which
            # those of `permutation` need not be.
            bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
            self._order = np.argsort(bits.random_raw(self.n_windows), kind="stable")
            self._epoch = epoch
        return self._order
