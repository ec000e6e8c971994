"""The training loss: mean cross-entropy of the predictions of the corpus, whole or estimated.

This is the figure that the target is about (never a single batch). Every one of the N − 1 targets counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX, Windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.processes import ALONE, Processes

_TOKENS_AT_ONCE = 2048
"""Tokens in one forward pass: 2,048 rows of 50,257 fp32 logits are 0.4 GB."""


@dataclass(frozen=True)
class CorpusLoss:
    """A measured training loss.

    Attributes:
        loss: nats per token.
        n_targets: predictions that were measured.
        n_windows: windows that were measured.
        whole: all windows of the corpus were measured; otherwise the figure is an estimate.
    """

    loss: float
    n_targets: int
    n_windows: int
    whole: bool

    @property
    def windows(self) -> str | int:
        """`all`, or how many: what summary.json calls train_loss_windows."""
        return "all" if self.whole else self.n_windows


def describe_windows(windows: str | int | None, max_tokens: int = 0) -> str:
    """How a training loss was measured, in words.

    Args:
        windows: `all`, or how many.
        max_tokens: not 0 where the run trains on an excerpt: all of that is not the whole corpus.
    """
    if windows != "all":
        return f"estimated on {windows} windows"
    return f"whole excerpt of {max_tokens:,} tokens" if max_tokens else "whole corpus"


@torch.no_grad()
def token_losses(model: GPT2, windows: Windows, indices: Sequence[int], precision: Precision,
                 on_windows: Callable[[int], None] | None = None) -> list[Tensor]:
    """Cross-entropy of each prediction of the given windows.

    Args:
        on_windows: called with the number of windows done so far.

    Returns:
        One fp32 tensor (t,) per window, on the CPU, in nats; t is `seq_len`, less in the last window.
    """
    was_training = model.training
    model.eval()
    losses = []
    at_once = max(1, _TOKENS_AT_ONCE // windows.seq_len)
    for start in range(0, len(indices), at_once):
        x, y = windows.batch(indices[start:start + at_once])  # (B, T)
        with precision.autocast():
            batch = model.loss(x.to(precision.device), y.to(precision.device), reduction="none").cpu()  # (B, T)
        losses += [row[targets != IGNORE_INDEX] for row, targets in zip(batch, y)]
        if on_windows is not None:
            on_windows(len(losses))
    model.train(was_training)
    return losses


def training_loss(model: GPT2, windows: Windows, precision: Precision, n_windows: int = 0,
                  on_windows: Callable[[int], None] | None = None, processes: Processes = ALONE) -> CorpusLoss:
    """The training loss, over the whole corpus or estimated.

    Args:
        n_windows: estimate on this many windows, spread evenly over the corpus and the same ones each time;
            0 measures all.
        on_windows: called with the number of windows done so far.
        processes: they share out the windows, for the whole corpus takes as long as many a step; all get the same figure.
    """
    indices = windows.evenly_spread(n_windows)
    losses = token_losses(model, windows, indices[processes.rank::processes.count], precision,
                          on_windows and (lambda done: on_windows(min(done * processes.count, len(indices)))))
    total, n_targets = processes.sum(sum(window.double().sum().item() for window in losses), sum(len(window) for window in losses))
    return CorpusLoss(total / n_targets, int(n_targets), len(indices), whole=len(indices) == len(windows))
