"""One optimizer update: micro-batches, scaled backward pass, clipping, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX, EpochSampler, TokenDataset
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.optimizer import TwoOptimizers, build_optimizer, restore_optimizer
from gpt2_nb_utils.training.precision import Precision


@dataclass
class Learner:
    """A model and all that updates it.

    Attributes:
        model: the network.
        optimizer: updates its parameters.
        scaler: scales the loss in fp16, and passes it through otherwise.
        precision: where and in which number format it computes.
        clip_grad: largest gradient norm; 0 means no clipping.
        dist: the processes that share out each micro-batch.
        loss_sum: the summed cross-entropy of (x, y), both (B, T), where it is not just
            `model.loss`: compiled, say.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer | TwoOptimizers
    scaler: torch.amp.GradScaler
    precision: Precision
    clip_grad: float
    dist: DistContext = SINGLE
    loss_sum: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.loss_sum is None:
            self.loss_sum = lambda x, y: self.model.loss(x, y, reduction="sum")

    @classmethod
    def of(
        cls,
        config: RunConfig,
        precision: Precision,
        dist: DistContext = SINGLE,
        compile: bool = False,
    ) -> Learner:
        """A model with random weights, and what trains it with these settings."""
        model = GPT2(GPT2Config.of(config), seed=config.seed).to(precision.device)
        optimizer = build_optimizer(model, config, precision.muon_dtype)
        learner = cls(model, optimizer, precision.scaler(), precision, config.clip_grad, dist)
        if compile:
            learner.loss_sum = torch.compile(learner.loss_sum)
        learner.loss_sum = dist.data_parallel(model, learner.loss_sum)
        return learner

    @property
    def loss_scale(self) -> float | None:
        """The scaler's factor; None where it does not scale."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        random_states = {"cpu": torch.get_rng_state()}
        if self.precision.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(self.precision.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_states": random_states,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, the random states of this process included."""
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():  # else the run was, or is, not in fp16
            self.scaler.load_state_dict(state["scaler"])
        random_states = state["random_states"]
        torch.set_rng_state(random_states["cpu"])
        if self.precision.device.type == "cuda" and "cuda" in random_states:
            torch.cuda.set_rng_state(random_states["cuda"], self.precision.device)


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


def micro_batches_of(
    step: int, config: RunConfig, windows: TokenDataset, order: EpochSampler
) -> list[tuple[Tensor, Tensor]]:
    """The batch of update number `step` (from 0), as `grad_accum` micro-batches (x, y), each (B,
    T).

    The place in the data follows from the step: a resumed run has nothing else to remember.
    """
    B, n_windows = config.batch_size, config.batch_size * config.grad_accum
    indices = order.take(step * n_windows, n_windows)
    return [windows.batch(indices[i : i + B]) for i in range(0, n_windows, B)]


def training_step(learner: Learner, micro_batches: Sequence[tuple[Tensor, Tensor]]) -> StepResult:
    """Add up the gradients of the micro-batches and update the parameters once.

    Args:
        learner: the model and what updates it.
        micro_batches: (x, y), both (B, T): together they are the batch of this step, and a target
            counts the same in each. Of several processes each takes its share of the rows; what the
            step did is the same in all.
    """
    dist, precision, scaler = learner.dist, learner.precision, learner.scaler
    n_targets = sum(int((y != IGNORE_INDEX).sum()) for _, y in micro_batches)
    learner.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for number, (x, y) in enumerate(micro_batches, start=1):
        x, y = dist.shard(x).to(precision.device), dist.shard(y).to(precision.device)  # (B/N, T)
        # Only the last backward pass exchanges gradients: the sums of the others come with it.
        with dist.gradient_sync(learner.loss_sum, last=number == len(micro_batches)):
            with precision.autocast():
                loss = learner.loss_sum(x, y) / n_targets  # its share of the mean of all targets
            # DistributedDataParallel takes the mean of the gradients; their sum is wanted.
            scaler.scale(loss * dist.world_size).backward()
        total += loss.detach()
    scaler.unscale_(learner.optimizer)  # before clipping, which needs the true norm
    largest = learner.clip_grad if learner.clip_grad > 0 else float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), largest).item()
    finite = grad_norm < float("inf")  # False for NaN as well
    if finite:
        scaler.step(learner.optimizer)
    scaler.update()  # halves the scale after an overflow, raises it after a long time without one
    (total,) = dist.sum(float(total))
    return StepResult(loss=total, grad_norm=grad_norm, n_targets=n_targets, skipped=not finite)
