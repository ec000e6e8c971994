"""Head and cross-entropy in one, row chunk by row chunk, with the gradient formed in place.

The plain way writes N × 50,257 logits, reads them for the softmax, and writes as many gradients: on a CPU the memory
traffic and the page faults of those buffers cost more than the arithmetic. Here one buffer holds the logits of
some rows, turns into their gradient, and is used again. The numbers are those of the plain formula.

It serves a CPU, in fp32 and in bf16. On a GPU the plain way is used, with rows of zeros behind the vocabulary inside the product:
neither the parameters nor the loss know of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_nb_utils.model.linear import onednn_product, takes_onednn

_ROWS_AT_ONCE = 64
"""Rows whose logits stay in the cache of a CPU while they are turned into losses or gradients: 13 MB in fp32."""
_ALIGNED = 64
"""Values of which tensor cores take a whole number: 128 bytes in 16 bits."""


def head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """Cross-entropy, in nats, of a linear head. The matrix products follow autocast; exponentials and sums are fp32.

    Args:
        hidden: what the head sees, (N, C).
        weight: the head's weight, (V, C).
        targets: token ids (N,); `ignore_index` is left out.
        reduction: `mean`, `sum`, or `none` for one value per target, 0 for those left out.

    Returns:
        A scalar, or (N,).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    by_rows = device == "cpu" and dtype in (weight.dtype, torch.bfloat16)
    if by_rows and torch.is_grad_enabled() and reduction != "none":
        total = _HeadLossSum.apply(hidden, weight, targets, ignore_index, dtype)
        return total if reduction == "sum" else total / (targets != ignore_index).sum()
    if by_rows and not torch.is_grad_enabled():
        losses = _losses_by_rows(hidden.to(dtype), weight.to(dtype), targets, ignore_index)
        return (
            losses
            if reduction == "none"
            else losses.sum()
            if reduction == "sum"
            else (losses.sum() / (targets != ignore_index).sum())
        )
    # Not in fp32: no tensor core takes part, and the cross-entropy would copy logits that are not contiguous.
    padded = device == "cuda" and dtype != weight.dtype
    logits = padded_product(hidden, weight) if padded else F.linear(hidden, weight)  # (N, V)
    # In fp32 whatever the autocast: an fp16 sum of 50,257 exponentials overflows.
    return F.cross_entropy(
        logits.to(weight.dtype), targets, ignore_index=ignore_index, reduction=reduction
    )


def padded_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden @ weight.t()` (N, V) for `hidden` (N, C) and `weight` (V, C), through a product whose V is a multiple of 64.

    Tensor cores take matrices in tiles, and slow down where a row of the result ends in the midst of one, as 50,257 do.

    Source: NVIDIA, "Matrix Multiplication Background User's Guide", on tensor core requirements.
    """
    return F.linear(hidden, F.pad(weight, (0, 0, 0, -len(weight) % _ALIGNED)))[:, : len(weight)]


def _losses_by_rows(hidden: Tensor, head: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    product = _Product(head, _ROWS_AT_ONCE)
    return torch.cat(
        [
            F.cross_entropy(
                product(h).to(torch.promote_types(head.dtype, torch.float32)),
                y,
                ignore_index=ignore_index,
                reduction="none",
            )
            for h, y in zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE))
        ]
    )


class _HeadLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype
    ) -> Tensor:
        N, C = hidden.shape
        # Each chunk reads and writes the whole (V, C) gradient once, so wide models take more rows at a time.
        rows = min(N, max(32, C))
        exact = dtype == weight.dtype
        scratch = None if exact else weight.new_empty(min(rows, _ROWS_AT_ONCE), weight.size(0))
        d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
        hidden, head = hidden.to(dtype), weight.to(dtype)
        keep = (
            (targets != ignore_index).to(weight.dtype).unsqueeze(1)
        )  # (N, 1): 1 where a target counts
        counted = targets.masked_fill(targets == ignore_index, 0).unsqueeze(1)  # (N, 1)
        normalisers = weight.new_empty(N, 1)
        total = weight.new_zeros((), dtype=torch.float64)
        product = _Product(head, rows)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            h, y, k = hidden[chunk], counted[chunk], keep[chunk]
            products = product(h)  # (rows, V)
            if exact:
                losses = _logits_to_gradients(products, y, normalisers[chunk])
            else:
                losses = torch.cat(
                    [
                        _through_scratch(part, scratch, y_part, normaliser)
                        for part, y_part, normaliser in zip(
                            *(t.split(_ROWS_AT_ONCE) for t in (products, y, normalisers[chunk]))
                        )
                    ]
                )
            total += (losses * k).sum(dtype=torch.float64)
            share = k / normalisers[chunk]
            d_hidden[chunk] = torch.mm(products, head) * share
            scaled = (h * share).to(dtype)
            if start == 0 and exact:
                torch.mm(products.t(), scaled, out=d_weight)
            elif start == 0:
                d_weight.copy_(torch.mm(products.t(), scaled))
            elif exact:
                d_weight.addmm_(products.t(), scaled)
            else:
                d_weight += torch.mm(products.t(), scaled)  # summed over the chunks in fp32
            del products  # the next ones take their place
        ctx.gradients = d_hidden, d_weight
        return total.to(weight.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        if ctx.gradients is None:
            raise RuntimeError(
                "the head's gradients were handed out by the first backward pass: compute the loss again"
            )
        (d_hidden, d_weight), ctx.gradients = ctx.gradients, None
        return (
            d_hidden.mul_(grad_output),
            d_weight.mul_(grad_output),
            None,
            None,
            None,
        )  # in place: (V, C) is 154 MB


class _Product:
    """`hidden @ head.t()` for some rows at a time.

    Args:
        head: (V, C).
        rows: the most at once. They share one buffer where the library writes into a given one.
    """

    def __init__(self, head: Tensor, rows: int):
        self._head, self._rows, self._buffer = head, rows, None

    def __call__(self, hidden: Tensor) -> Tensor:
        if takes_onednn(hidden, self._head.t()):
            return onednn_product(hidden, self._head)
        if self._buffer is None:
            self._buffer = self._head.new_empty(self._rows, len(self._head))
        return torch.mm(hidden, self._head.t(), out=self._buffer[: len(hidden)])


def _logits_to_gradients(logits: Tensor, y: Tensor, normaliser: Tensor) -> Tensor:
    """Turn fp32 logits (n, V) into their gradients times the softmax's normaliser, in place; returns the losses (n, 1).

    The gradient is softmax minus truth. Left undivided here, it is divided after the products, where the rows are
    C wide instead of V.
    """
    at_target = logits.gather(1, y)
    largest = logits.amax(dim=1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    torch.sum(exponentials, dim=1, keepdim=True, out=normaliser)
    exponentials.scatter_add_(1, y, -normaliser)
    return normaliser.log() + largest - at_target


def _through_scratch(products: Tensor, scratch: Tensor, y: Tensor, normaliser: Tensor) -> Tensor:
    logits = scratch[: len(products)].copy_(products)
    losses = _logits_to_gradients(logits, y, normaliser)
    products.copy_(logits)
    return losses
