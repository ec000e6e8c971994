"""The training loss: mean cross-entropy of the predictions of the corpus, whole or estimated.

This is the figure that the target is about (never a single batch). Every one of the N − 1 targets counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX, Windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.processes import ALONE, Processes
from gpt2_nb_utils.training.verbatim import (
    Recalled,
    counted,
    opening_of,
    openings_among,
    recalled_of,
    tokens_right,
)

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
        recalled: how far the model continues the openings of these windows verbatim; None where none is long enough.
    """

    loss: float
    n_targets: int
    n_windows: int
    whole: bool
    recalled: Recalled | None = None

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


@dataclass(frozen=True)
class Reading:
    """What a model made of one window.

    Attributes:
        losses: cross-entropy of each prediction (t,), fp32, on the CPU, in nats; t is `seq_len`, less in the last window.
        n_right: tokens that it continues verbatim after the opening of the window (`verbatim.opening_of`); None where the
            window is too short for that, or was not asked for.
    """

    losses: Tensor
    n_right: int | None = None


@torch.no_grad()
def read_windows(
    model: GPT2,
    windows: Windows,
    indices: Sequence[int],
    precision: Precision,
    on_windows: Callable[[int], None] | None = None,
    openings: Collection[int] = (),
) -> list[Reading]:
    """One forward pass over each of the given windows.

    Args:
        on_windows: called with the number of windows done so far.
        openings: those of them whose verbatim continuation is counted too (`verbatim.openings_among`).
    """
    was_training = model.training
    model.eval()
    opening, head = opening_of(windows), model.transformer.wte.weight
    readings: list[Reading] = []
    at_once = max(1, _TOKENS_AT_ONCE // windows.seq_len)
    for start in range(0, len(indices), at_once):
        numbers = indices[start : start + at_once]
        x, y = (part.to(precision.device) for part in windows.batch(numbers))  # (B, T)
        with precision.autocast():
            hidden = model.hidden(x)  # (B, T, C)
            batch = model.loss_of(hidden, y, reduction="none").cpu()  # (B, T)
        rows = [row for row, number in enumerate(numbers) if number in openings]
        right = dict(zip(rows, tokens_right(hidden[rows], head, y[rows], opening))) if rows else {}
        readings += [
            Reading(losses[targets != IGNORE_INDEX], right.get(row))
            for row, (losses, targets) in enumerate(zip(batch, y.cpu()))
        ]
        if on_windows is not None:
            on_windows(len(readings))
    model.train(was_training)
    return readings


def training_loss(
    model: GPT2,
    windows: Windows,
    precision: Precision,
    n_windows: int = 0,
    on_windows: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> CorpusLoss:
    """The training loss, over the whole corpus or estimated.

    Args:
        n_windows: estimate on this many windows, spread evenly over the corpus and the same ones each time;
            0 measures all.
        on_windows: called with the number of windows done so far.
        processes: they share out the windows, for the whole corpus takes as long as many a step; all get the same figure.
    """
    indices = windows.evenly_spread(n_windows)
    readings = read_windows(
        model,
        windows,
        indices[processes.rank :: processes.count],
        precision,
        on_windows and (lambda done: on_windows(min(done * processes.count, len(indices)))),
        openings_among(indices),
    )
    opening = opening_of(windows)
    total, n_targets, *recalled = processes.sum(
        sum(reading.losses.double().sum().item() for reading in readings),
        sum(len(reading.losses) for reading in readings),
        *counted([reading.n_right for reading in readings], opening),
    )
    return CorpusLoss(
        total / n_targets,
        int(n_targets),
        len(indices),
        whole=len(indices) == len(windows),
        recalled=recalled_of(recalled, opening),
    )
