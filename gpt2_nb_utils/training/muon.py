"""Muon: momentum whose matrix updates are made orthogonal, so that rare directions move as far as
common ones.

A gradient matrix is dominated by a few directions, those of the frequent tokens. Its nearest
orthogonal matrix gives every direction the same length, and what a text says only once is learned
as fast as what it says everywhere. It is meant for the matrices inside the blocks; embeddings and
vectors take AdamW.

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
    largest = (
        matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny)
    )
    x = (matrices / largest).to(
        dtype
    )  # squares of the largest gradients would overflow in the norm
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
        updates = orthogonalise(torch.stack(directions), self.dtype).split(
            group["parts"]
        )  # (parts, in, out) per parameter
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(torch.cat(list(update), dim=1).to(parameter.dtype), alpha=-length)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)  # Nesterov: one step ahead
