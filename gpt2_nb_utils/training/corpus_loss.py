"""The training loss: mean cross-entropy of the predictions of the corpus, whole or estimated.

This is the figure that the target is about (never a single batch). Every one of the N − 1 targets
counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX, TokenDataset
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import TrainingLoss
from gpt2_nb_utils.training.verbatim import (
    counted,
    opening_of,
    openings_among,
    recall_stats,
    tokens_right,
)

_TOKENS_AT_ONCE = 2048
"""Tokens in one forward pass: 2,048 rows of 50,257 fp32 logits are 0.4 GB."""


@dataclass(frozen=True)
class WindowLosses:
    """What a model made of one window.

    Attributes:
        index: its number in the corpus.
        start: number of its first token in the corpus.
        tokens: its tokens and the one after it (t + 1,): the first is given, the others are
            predicted.
        losses: cross-entropy of each prediction (t,), fp32, on the CPU, in nats; t is `seq_len`,
            less in the last window.
        n_right: tokens that the model continues verbatim after the opening of the window
            (`verbatim.opening_of`); None where the window is too short for that, or was not asked
            for.
    """

    index: int
    start: int
    tokens: Tensor
    losses: Tensor
    n_right: int | None = None

    @property
    def mean(self) -> float:
        """Mean loss, nats per token."""
        return self.losses.double().mean().item()


@torch.no_grad()
def read_windows(
    model: GPT2,
    windows: TokenDataset,
    indices: Sequence[int],
    precision: Precision,
    on_windows: Callable[[int], None] | None = None,
    openings: Collection[int] = (),
) -> list[WindowLosses]:
    """One forward pass over each of the given windows.

    Args:
        on_windows: called with the number of windows done so far.
        openings: those of them whose verbatim continuation is counted too
            (`verbatim.openings_among`).
    """
    was_training = model.training
    model.eval()
    opening, head = opening_of(windows), model.transformer.wte.weight
    read: list[WindowLosses] = []
    at_once = max(1, _TOKENS_AT_ONCE // windows.seq_len)
    for start in range(0, len(indices), at_once):
        numbers = indices[start : start + at_once]
        x, y = (part.to(precision.device) for part in windows.batch(numbers))  # (B, T)
        with precision.autocast():
            hidden = model.hidden(x)  # (B, T, C)
            batch = model.loss_of(hidden, y, reduction="none").cpu()  # (B, T)
        rows = [row for row, number in enumerate(numbers) if number in openings]
        right = dict(zip(rows, tokens_right(hidden[rows], head, y[rows], opening))) if rows else {}
        for row, (number, losses, targets) in enumerate(zip(numbers, batch, y.cpu())):
            losses, first = losses[targets != IGNORE_INDEX], number * windows.seq_len
            tokens = windows.tokens[first : first + len(losses) + 1]
            read.append(WindowLosses(number, first, tokens, losses, right.get(row)))
        if on_windows is not None:
            on_windows(len(read))
    model.train(was_training)
    return read


def mean_loss(
    read: Sequence[WindowLosses],
    windows: TokenDataset,
    n_windows: int,
    processes: DistContext = SINGLE,
) -> TrainingLoss:
    """The training loss over windows that were read.

    Args:
        windows: all windows of the corpus.
        n_windows: how many all processes have read.
    """
    opening = opening_of(windows)
    total, n_targets, *recalled = processes.sum(
        sum(window.losses.double().sum().item() for window in read),
        sum(len(window.losses) for window in read),
        *counted([window.n_right for window in read], opening),
    )
    return TrainingLoss(
        total / n_targets,
        "all" if n_windows == len(windows) else n_windows,
        int(n_targets),
        n_windows,
        recall_stats(recalled, opening),
    )


def training_loss(
    model: GPT2,
    windows: TokenDataset,
    precision: Precision,
    n_windows: int = 0,
    on_windows: Callable[[int], None] | None = None,
    processes: DistContext = SINGLE,
) -> TrainingLoss:
    """The training loss, over the whole corpus or estimated.

    Args:
        n_windows: estimate on this many windows, spread evenly over the corpus and the same ones
            each time; 0 measures all.
        on_windows: called with the number of windows done so far.
        processes: they share out the windows, for the whole corpus takes as long as many a step;
            all get the same figure.
    """
    indices = windows.evenly_spread(n_windows)
    read = read_windows(
        model,
        windows,
        indices[processes.rank :: processes.world_size],
        precision,
        on_windows and (lambda done: on_windows(min(done * processes.world_size, len(indices)))),
        openings_among(indices),
    )
    return mean_loss(read, windows, len(indices), processes)
