"""A lower bound that no training loss can beat: what the beginnings of windows leave open."""

from __future__ import annotations

import numpy as np

from gpt2_nb_utils.tokenization.dataset import TokenDataset


def loss_lower_bound(windows: TokenDataset) -> float:
    """Lower bound of the training loss: entropy of a token given all before it in its window.

    Windows that begin with the same tokens are the same to a model until they differ. The best one
    gives each next token its share among the windows with this prefix, and no other does better on
    average (Gibbs' inequality). The bound is the mean of −ln(share) over the N − 1 targets: the
    loss of a single batch may be lower.

    Args:
        windows: the corpus as training cuts it.

    Returns:
        Nats per token; 0 where no windows begin alike and then part.
    """
    tokens = windows.tokens.cpu().numpy()
    base = int(tokens.max()) + 1
    starts = np.arange(len(windows)) * windows.seq_len
    prefixes = tokens[starts]  # (n,) windows with the same number have the same prefix
    nats = 0.0
    for t in range(1, windows.seq_len + 1):  # t tokens of prefix; the one after them is the target
        there = starts + t <= windows.n_targets  # the last window may have ended
        starts, (prefixes, alike) = starts[there], _numbered(prefixes[there])
        # A window with a prefix of its own leaves nothing open from here on.
        starts, prefixes, alike = (row[alike > 1] for row in (starts, prefixes, alike))
        if not len(starts):
            break
        prefixes, go_on_alike = _numbered(prefixes * base + tokens[starts + t])
        nats += float(np.log(alike / go_on_alike).sum())  # −ln(share), once for each window
    return nats / windows.n_targets


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal values as equal small numbers (n,), and how often the value of each occurs (n,)."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    return numbers, counts[numbers]
