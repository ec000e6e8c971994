"""The training loss that no model can beat: what the beginnings of windows leave open.

It knows token ids only. It deliberately knows no model: the bound holds for each that sees nothing before its window.
"""

from __future__ import annotations

import numpy as np

from gpt2_nb_utils.tokenization.windows import Windows


def prefix_entropy(windows: Windows) -> float:
    """The floor of the training loss: conditional entropy of the next token given all tokens of its window before it.

    Windows that begin with the same tokens are one and the same to a model until they part. The best one gives each
    next token its share among the windows with this prefix, and no other does better in the mean (Gibbs' inequality).
    The floor is the mean of −ln(share) over the N − 1 targets. It is one of that whole mean: a batch may lie below.

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
    for t in range(
        1, windows.seq_len + 1
    ):  # t tokens of prefix, and the one after them is the target
        there = starts + t <= windows.n_targets  # the last window may have ended
        starts, (prefixes, alike) = starts[there], _numbered(prefixes[there])
        starts, prefixes, alike = (
            row[alike > 1] for row in (starts, prefixes, alike)
        )  # a lone window stays certain
        if not len(starts):
            break
        prefixes, go_on_alike = _numbered(prefixes * base + tokens[starts + t])
        nats += float(np.log(alike / go_on_alike).sum())  # −ln(share), once for each window
    return nats / windows.n_targets


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal values as equal small numbers (n,), and how often the value of each place occurs (n,)."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    return numbers, counts[numbers]
