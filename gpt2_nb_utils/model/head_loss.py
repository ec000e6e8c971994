"""Head and cross-entropy in one, row chunk by row chunk, with the gradient formed in place.

The plain way writes N × 50,257 logits, reads them for the softmax, and writes as many gradients: on a CPU the memory
traffic and the page faults of those buffers cost more than the arithmetic. Here one small buffer holds the logits of
some rows, turns into their gradient, and is used again. The numbers are those of the plain formula.

It serves fp32 on a CPU. On a GPU, and under autocast, the plain way is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def head_loss_sum(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Summed cross-entropy, in nats, of a linear head.

    Args:
        hidden: what the head sees, (N, C).
        weight: the head's weight, (V, C).
        targets: token ids (N,); `ignore_index` is left out.

    Returns:
        A scalar. Its gradients with respect to `hidden` and `weight` are computed together with it.
    """
    return _HeadLossSum.apply(hidden, weight, targets, ignore_index)


class _HeadLossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        N, C = hidden.shape
        # Each chunk reads and writes the whole (V, C) gradient once, so wide models take more rows at a time.
        rows = min(N, max(32, C))
        buffer = hidden.new_empty(rows, weight.size(0))  # (rows, V)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        keep = (targets != ignore_index).to(hidden.dtype).unsqueeze(1)  # (N, 1): 1 where a target counts
        counted = targets.masked_fill(targets == ignore_index, 0)
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            h, y, k = hidden[chunk], counted[chunk], keep[chunk]
            logits = torch.mm(h, weight.t(), out=buffer[:len(h)])
            at_target = logits.gather(1, y.unsqueeze(1))
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            normaliser = exponentials.sum(dim=1, keepdim=True)
            total += ((normaliser.log() + largest - at_target) * k).sum(dtype=torch.float64)
            # The gradient of the logits is softmax minus truth. Dividing by the normaliser after the products, and
            # subtracting the truth's one row of the weight, spares two passes over the (rows, V) buffer.
            share = k / normaliser
            d_hidden[chunk] = torch.mm(exponentials, weight).mul_(share).sub_(weight[y] * k)
            d_weight.addmm_(exponentials.t(), h * share)
            d_weight.index_add_(0, y, h * k, alpha=-1)
        ctx.save_for_backward(d_hidden, d_weight)
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad_output, d_weight * grad_output, None, None
