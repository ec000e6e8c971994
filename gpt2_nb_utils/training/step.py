"""One optimizer update: micro-batches, scaled backward pass, clipping, step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.optimizer import TwoOptimizers
from gpt2_nb_utils.training.precision import Precision


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean cross-entropy of the batch before the update, in nats per token.
        grad_norm: norm of all gradients before clipping.
        n_targets: predictions in the batch.
        skipped: the gradients were not finite, so the weights stayed as they were.
    """

    loss: float
    grad_norm: float
    n_targets: int
    skipped: bool


def training_step(
    loss_sum: Callable[[Tensor, Tensor], Tensor],
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer | TwoOptimizers,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    micro_batches: Iterable[tuple[Tensor, Tensor]],
    clip_grad: float,
    processes: DistContext = SINGLE,
) -> StepResult:
    """Add up the gradients of the micro-batches and update the parameters once.

    Args:
        loss_sum: the summed cross-entropy of (x, y), both (B, T); with several processes, from
            `DistContext.data_parallel`.
        micro_batches: together they are the batch of this step; a target counts the same in each.
        clip_grad: largest gradient norm; 0 means no clipping.
        processes: they share out each micro-batch; what the step did is the same in all.
    """
    micro_batches = list(micro_batches)
    n_targets = sum(int((y != IGNORE_INDEX).sum()) for _, y in micro_batches)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for number, (x, y) in enumerate(micro_batches, start=1):
        x, y = processes.shard(x), processes.shard(y)
        with processes.gradient_sync(loss_sum, last=number == len(micro_batches)):
            with precision.autocast():
                loss = loss_sum(x.to(precision.device), y.to(precision.device)) / n_targets
            scaler.scale(
                loss * processes.world_size
            ).backward()  # the mean of the gradients is taken
        total += loss.detach()
    scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(
        parameters, clip_grad if clip_grad > 0 else float("inf")
    ).item()
    finite = grad_norm < float("inf")  # False for NaN as well
    if finite:
        scaler.step(optimizer)
    scaler.update()  # halves the scale after an overflow, raises it after a long time without one
    (total,) = processes.sum(float(total))
    return StepResult(loss=total, grad_norm=grad_norm, n_targets=n_targets, skipped=not finite)
