"""Which rule updates which parameter, and how fast: Muon, AdamW and the learning rate.

Muon is momentum whose matrix updates are made orthogonal, so that rare directions move as far as
common ones. A gradient matrix is dominated by a few directions, those of the frequent tokens. Its
nearest orthogonal matrix gives every direction the same length, and what a text says only once is
learned as fast as what it says everywhere. It is meant for the matrices inside the blocks;
embeddings and vectors take AdamW.

Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
kellerjordan.github.io/posts/muon; "Muon Outperforms Adam in Tail-End Associative Memory Learning",
arXiv 2509.26030.

`torch.optim.Muon` is the same rule. It computes in bf16 alone, which a CPU without bf16 units does
many times slower than fp32, and it takes a parameter for one matrix, where GPT-2 stores queries,
keys and values side by side in one parameter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of x → ax + bx³ + cx⁵, which drives singular values towards 1 quickly. They end between
about 0.7 and 1.2."""

ITERATIONS = 5


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton–Schulz iteration: singular values close to 1, singular vectors kept.

    Args:
        matrices: (..., m, n) of any scale; (B, m, n) where `dtype` is not fp32.
        dtype: number format of the products. fp32 iterates on the Gram matrix of a wide matrix,
            which needs little more than half the products at m × 4m; bf16 is too coarse for that.

    Returns:
        The same shape in `dtype`.
    """
    if matrices.size(-2) > matrices.size(-1):
        return orthogonalise(matrices.mT, dtype).mT
    tiny = torch.finfo(matrices.dtype).tiny
    largest = matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
    # Scaled first: squares of the largest gradients would overflow in the norm.
    x = (matrices / largest).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # now no singular value exceeds 1
    if dtype == torch.float32 and x.size(-1) >= 2 * x.size(-2):
        return _factor_from_gram(x @ x.mT) @ x
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        if dtype == torch.float32:
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        else:  # fewer passes over memory, and sums that are not rounded in between
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _factor_from_gram(gram: Tensor) -> Tensor:
    """The matrix (..., m, m) that the iteration multiplies x by in all, from x xᵀ alone."""
    a, b, c = QUINTIC
    identity = torch.eye(gram.size(-1), dtype=gram.dtype, device=gram.device)
    product = identity
    for iteration in range(ITERATIONS):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor if iteration == 0 else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return product


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay.

    Each group holds matrices (in, out) as GPT-2 stores them; where a group's `parts` is not 1, its
    parameters are that many matrices side by side, each made orthogonal for itself. The update is
    scaled by √max(1, out/in), as in the sources.

    Args:
        params: groups of parameters, each (in, parts · out).
        lr: length of an update: the spectral norm by which a square matrix moves in a step.
        momentum: decay of the running gradient.
        weight_decay: share of lr by which weights shrink in a step.
        dtype: number format of the Newton–Schulz products.
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, parts=1))
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape together: a GPU is given few large products instead of
        many small ones."""
        directions = [
            part
            for parameter in parameters
            for part in self._direction(parameter, group["momentum"]).chunk(group["parts"], dim=1)
        ]
        n_in, n_out = directions[0].shape
        length = group["lr"] * math.sqrt(max(1, n_out / n_in))
        updates = orthogonalise(torch.stack(directions), self.dtype).split(group["parts"])
        # One of (parts, in, out) for each parameter.
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(torch.cat(list(update), dim=1).to(parameter.dtype), alpha=-length)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)  # Nesterov: one step ahead


def parameters_by_kind(model: GPT2) -> dict[str, list[torch.nn.Parameter]]:
    """All parameters, in four lists.

    Returns:
        `matrices` of the blocks, but for `qkv`, which hold three matrices side by side;
        `embeddings`, of tokens (also the head) and positions; `vectors`, the biases and LayerNorms.
    """
    kinds: dict[str, list[torch.nn.Parameter]] = {
        "matrices": [],
        "qkv": [],
        "embeddings": [],
        "vectors": [],
    }
    for name, parameter in model.named_parameters():
        kind = (
            "vectors"
            if parameter.dim() < 2
            else "embeddings"
            if not name.startswith("transformer.h.")
            else "qkv"
            if name.endswith("c_attn.weight")
            else "matrices"
        )
        kinds[kind].append(parameter)
    return kinds


def build_optimizer(
    model: GPT2, config: RunConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer | TwoOptimizers:
    """The optimizer of a run.

    `adamw` (Loshchilov & Hutter, arXiv 1711.05101) updates everything. `muon` updates the matrices
    of the blocks and leaves the rest to AdamW. Weight decay falls on matrices and embeddings, never
    on vectors.

    Args:
        dtype: number format of Muon's matrix products.
    """
    kinds = parameters_by_kind(model)

    def group(
        *names: str, lr: float, weight_decay: float = config.weight_decay, **more: Any
    ) -> dict[str, Any]:
        return {
            "params": [p for name in names for p in kinds[name]],
            "lr": lr,
            "peak_lr": lr,
            "weight_decay": weight_decay,
            **more,
        }

    positions = []
    if config.position_lr:  # only then a group of their own: other runs keep their layout
        kinds["positions"] = [kinds["embeddings"].pop()]
        positions = [group("positions", lr=config.position_lr)]
    rest = [
        group("embeddings", lr=config.embedding_lr or config.lr),
        group("vectors", lr=config.vector_lr or config.lr, weight_decay=0.0),
        *positions,
    ]
    if config.optimizer == "muon":
        muon = Muon(
            [group("matrices", lr=config.lr), group("qkv", lr=config.lr, parts=3)],
            momentum=config.momentum,
            dtype=dtype,
        )
        return TwoOptimizers(muon, _adamw(rest, config))
    return _adamw([group("matrices", "qkv", lr=config.lr), *rest], config)


def _adamw(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.AdamW:
    # fused: one pass over each parameter instead of a dozen
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), fused=True)


class TwoOptimizers:
    """Two optimizers that work as one: what a GradScaler, a schedule and a checkpoint ask of it."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer):
        self.parts = (first, second)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update every parameter once."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def set_learning_rate(optimizer: torch.optim.Optimizer | TwoOptimizers, factor: float) -> None:
    """Give every group of parameters its learning rate for the coming step.

    Args:
        factor: share of the peak learning rate, from `schedule.learning_rate_factor`.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def fits(state: dict[str, Any], config: RunConfig) -> bool:
    """Whether a saved optimizer has the parts and groups that this config builds."""
    parts = [state] if config.optimizer == "adamw" else state.get("parts", ())
    n_groups = sum(len(part.get("param_groups", ())) for part in parts)
    return n_groups == (3 if config.optimizer == "adamw" else 4) + bool(config.position_lr)


def restore_optimizer(
    optimizer: torch.optim.Optimizer | TwoOptimizers, state: dict[str, Any]
) -> None:
    """Take over the averages of a saved optimizer, but not its settings: a resumed run may change
    those.

    torch's own `load_state_dict` brings back the saved rates, betas and decay.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """The share of the peak learning rate that update number `step` (from 0) uses.

    It rises linearly over `warmup_steps`, then follows `lr_schedule` and ends at `min_lr_ratio`:
    `constant` stays; `linear` and `cosine` fall from the end of the warm-up to the last step; `wsd`
    (warm-up, stable, decay: Hu et al., arXiv 2404.06395) stays at the peak and falls linearly over
    the last `decay_share` of the steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    falls_from = config.warmup_steps
    if config.lr_schedule == "wsd":
        falls_from = max(falls_from, round(config.steps * (1 - config.decay_share)))
    if step < falls_from:
        return 1.0
    # The update after the last one would stand at 1: the last one still learns a little.
    fallen = min(1.0, (step - falls_from + 1) / max(1, config.steps - falls_from + 1))
    falling = (
        0.5 * (1 + math.cos(math.pi * fallen)) if config.lr_schedule == "cosine" else 1 - fallen
    )
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * falling
