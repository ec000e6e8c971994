"""Why a recipe wins: what Muon does to a gradient, and how the runs of a sweep compare."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2_nb_utils.figures.html import HTML, table
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX, TokenDataset
from gpt2_nb_utils.training.sweep_results import Sweep

_WIDTH, _TOKENS, _WINDOWS = 64, 64, 8
"""The example: a model 64 wide, and a batch of 8 windows of 64 tokens."""


def first_gradient(tokens: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    """The gradient of `c_fc` (64, 256), in the last block of a small model with random weights.

    It is split in two parts that add up: what the rare tokens contribute, and all others.

    Args:
        tokens: token ids of the text, (N,), N at least 2. A token is rare here if it is a target
            only once in the batch.
        seed: of the weights.

    Returns:
        The part of the rare tokens (64, 256), the part of all others (64, 256), and the share of
        the predictions in the batch that are of rare tokens.
    """
    windows = TokenDataset(tokens, _TOKENS)
    x, y = windows.batch(windows.evenly_spread(_WINDOWS))  # (B, T) each
    counted = y != IGNORE_INDEX
    occurrences = torch.bincount(y[counted])
    rare = counted & (occurrences[y.clamp(min=0)] == 1)  # (B, T)
    model = GPT2(GPT2Config(block_size=_TOKENS, n_layer=2, n_head=2, n_embd=_WIDTH), seed=seed)
    matrix = model.transformer.h[-1].mlp.c_fc.weight
    # (B, T), adding up to the loss of the batch
    losses = model.loss(x, y, reduction="none") / counted.sum()
    parts = [
        torch.autograd.grad((losses * part).sum(), matrix, retain_graph=True)[0]
        for part in (rare, counted & ~rare)
    ]
    return *parts, (rare.sum() / counted.sum()).item()


def share_of_rare(update: Tensor, rare: Tensor, frequent: Tensor) -> float:
    """The part of an update's expected fall of the loss that belongs to the rare tokens.

    A small step along `update` lowers the loss by its inner product with the gradient, to first
    order. The two parts of the gradient split that fall.

    Args:
        update: direction in which the matrix moves, (in, out), of any length.
        rare, frequent: the two parts of the gradient, (in, out).
    """
    return ((update * rare).sum() / (update * (rare + frequent)).sum()).item()


def comparison(sweep: Sweep) -> HTML:
    """Each run of a sweep: which of the usual settings it changes, and how far from the best it
    is."""
    rows = []
    for run in sweep.outcomes:
        loss, above = run.ending, ""
        if run.ranked:
            loss, above = f"{run.train_loss:.4f}", f"{run.train_loss - sweep.best.train_loss:+.4f}"
        rows.append((run.name, sweep.changes(run), run.tokens_per_step, loss, above))
    return table(
        ("run", "what it changes", "tokens per step", "training loss", "above the best"), rows
    )


def highlights(sweep: Sweep) -> str:
    """The best run, the next one, the best of each optimizer and the last one, a line each."""
    runs = sweep.finished
    labelled = dict(zip(("best", "next"), runs))
    labelled |= {f"best of {run.settings.get('optimizer')}": run for run in reversed(runs)}
    labelled |= dict(zip(["last"], reversed(runs)))
    lines: dict[str, str] = {}
    for label, run in labelled.items():
        above = f"{run.train_loss:.4f} ({run.train_loss - runs[0].train_loss:+.4f})"
        line = f"{label}: {run.name}, training loss {above}, {sweep.changes(run)}"
        lines.setdefault(
            run.name, line.rstrip(", ")
        )  # one line each, with the first label that fits
    return "\n".join(lines.values()) or "No run finished: there is nothing to compare."


def alt_text(sweep: Sweep) -> str:
    """What the curves of a sweep show, for those who cannot see them."""
    text = f"Loss of {len(sweep.outcomes)} runs against epochs."
    for label, run in zip(("Lowest", "Highest"), sweep.finished[:1] + sweep.finished[-1:]):
        text += f" {label}: {run.name}, training loss {run.train_loss:.4f}, {run.epoch:.3g} epochs."
    return text
