"""Why a recipe wins: what Muon does to a gradient, and how the runs of a sweep compare with the best of them.

Every number comes from a gradient computed here or from the sweep's files. It deliberately draws nothing
(`recipe_figures` does) and knows nothing of what a certain sweep found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.tokenization.display import table
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX, Windows
from gpt2_nb_utils.training.sweep_results import Outcome, Sweep, different

_WIDTH, _TOKENS, _WINDOWS = 64, 64, 8
"""The example: a model 64 wide, and a batch of 8 windows of 64 tokens."""


@dataclass(frozen=True)
class SplitGradient:
    """The gradient of one weight matrix and one batch, in two parts that add up.

    Attributes:
        rare: what the rare tokens contribute, (in, out).
        frequent: what all others contribute, (in, out).
        share: predictions of rare tokens among those of the batch.
    """

    rare: Tensor
    frequent: Tensor
    share: float

    @property
    def whole(self) -> Tensor:
        """The gradient, (in, out)."""
        return self.rare + self.frequent


def first_gradient(tokens: Tensor, seed: int) -> SplitGradient:
    """The gradient that a small model with random weights gets from real text: of `c_fc` (64, 256) in its last block.

    Args:
        tokens: token ids of the text, (N,), N at least 2. A token is rare here if the batch asks for it once only.
        seed: of the weights.
    """
    windows = Windows(tokens, _TOKENS)
    x, y = windows.batch(windows.evenly_spread(_WINDOWS))  # (B, T) each
    counted = y != IGNORE_INDEX
    occurrences = torch.bincount(y[counted])
    rare = counted & (occurrences[y.clamp(min=0)] == 1)  # (B, T)
    model = GPT2(GPT2Config(block_size=_TOKENS, n_layer=2, n_head=2, n_embd=_WIDTH), seed=seed)
    matrix = model.transformer.h[-1].mlp.c_fc.weight
    losses = (
        model.loss(x, y, reduction="none") / counted.sum()
    )  # (B, T): they add up to the loss of the batch
    parts = [
        torch.autograd.grad((losses * part).sum(), matrix, retain_graph=True)[0]
        for part in (rare, counted & ~rare)
    ]
    return SplitGradient(*parts, share=(rare.sum() / counted.sum()).item())


def share_of_rare(update: Tensor, gradient: SplitGradient) -> float:
    """The part of an update's promise that falls to the rare tokens.

    A small step along `update` lowers the loss by its inner product with the gradient, to first order. The two parts of
    the gradient split that fall.

    Args:
        update: direction in which the matrix moves, (in, out), of any length.
    """
    return ((update * gradient.rare).sum() / (update * gradient.whole).sum()).item()


def behind(outcome: Outcome, best: Outcome) -> float | None:
    """How far the training loss of a run lies above that of the best one, nats per token; None where it has none."""
    return outcome.train_loss - best.train_loss if outcome.ranked else None


def differences(outcome: Outcome, base: Outcome) -> str:
    """What a run did otherwise than another: `lr 0.01 (not 0.03), optimizer adamw (not muon)`."""
    return ", ".join(
        f"{name} {outcome.settings[name]} (not {base.settings[name]})"
        for name in different(outcome, base)
    )


def comparison(sweep: Sweep) -> HTML:
    """Each run of a sweep: what it did otherwise than the run that all vary, and how far it stayed behind the best."""
    best, base = sweep.best, sweep.base
    rows = []
    for outcome in sweep.outcomes:
        told = outcome.status.replace("_", " ") + (f": {outcome.reason}" if outcome.reason else "")
        loss = f"{outcome.train_loss:.4f}" if outcome.ranked else told
        cost = (
            "the best"
            if outcome is best
            else ""
            if best is None or not outcome.ranked
            else f"{behind(outcome, best):+.4f}"
        )
        rows.append((outcome.name, differences(outcome, base), outcome.tokens_per_step, loss, cost))
    otherwise = f"what it does otherwise than {base.name}" if base else "what it does"
    return table(("run", otherwise, "tokens per step", "training loss", "above the best"), rows)


def losers(sweep: Sweep) -> str:
    """Who won, who came next, how far the best run of every other optimizer stays behind, and who came last, a line each."""
    finished = [outcome for outcome in sweep.outcomes if outcome.ranked]
    if len(finished) < 2:
        return "Fewer than two runs came to their end: there is nothing to compare."
    best, *others = finished

    def how(outcome: Outcome) -> str:
        told = differences(outcome, sweep.base)
        return f" ({told})" if told else ""

    def line(place: str, outcome: Outcome) -> str:
        return f"{place}: {outcome.name}, {behind(outcome, best):+.4f} nats per token{how(outcome)}"

    told = {others[0].name: line("next", others[0])}
    for name in dict.fromkeys(outcome.settings.get("optimizer") for outcome in others):
        first = next(outcome for outcome in finished if outcome.settings.get("optimizer") == name)
        if first is not best:
            told.setdefault(first.name, line(f"best of {name}", first))
    told.setdefault(others[-1].name, line("last", others[-1]))
    lines = [
        f"best: {best.name}, training loss {best.train_loss:.4f} after {best.epochs:.3g} epochs{how(best)}",
        *told.values(),
    ]
    lines += [
        f"{outcome.status.replace('_', ' ')}: {outcome.name}"
        for outcome in sweep.outcomes
        if not outcome.ranked
    ]
    return "\n".join(lines)


def in_words(sweep: Sweep) -> str:
    """What the curves of a sweep say, for those who cannot see them."""
    finished = [outcome for outcome in sweep.outcomes if outcome.ranked]
    if not finished:
        return f"Loss of {len(sweep.outcomes)} runs; none came to its end."
    best, last = finished[0], finished[-1]
    said = f"Loss of {len(sweep.outcomes)} runs against epochs. Lowest: {best.name}, training loss {best.train_loss:.4f} "
    said += f"after {best.epochs:.3g} epochs."
    if last is not best:
        said += (
            f" Highest: {last.name}, {last.train_loss:.4f}, which is {behind(last, best):.4f} more."
        )
    return said
