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
        counted = targets != ignore_index
        safe_targets = targets.masked_fill(~counted, 0).unsqueeze(1)  # (N, 1)
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            h, y, keep = hidden[chunk], safe_targets[chunk], counted[chunk]
            logits = torch.mm(h, weight.t(), out=buffer[:len(h)])
            normaliser = logits.logsumexp(dim=1, keepdim=True)  # (rows, 1)
            total += (normaliser - logits.gather(1, y)).squeeze(1)[keep].sum(dtype=torch.float64)
            gradient = logits.sub_(normaliser).exp_()  # the probabilities …
            gradient.scatter_add_(1, y, torch.full_like(y, -1, dtype=gradient.dtype))  # … minus the truth
            if not keep.all():
                gradient[~keep] = 0.0
            torch.mm(gradient, weight, out=d_hidden[chunk])
            d_weight.addmm_(gradient.t(), h)
        ctx.save_for_backward(d_hidden, d_weight)
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad_output, d_weight * grad_output, None, None
