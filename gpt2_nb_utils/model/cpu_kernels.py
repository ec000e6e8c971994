"""What is faster on a CPU than the plain formulas of gpt2.py, with the same results up to rounding.

**Linear layers in fp32, by oneDNN.** torch carries two libraries: MKL, which it takes for fp32, and
oneDNN, which it takes for bf16. On an AMD EPYC with AVX-512, at the shapes of GPT-2 124M, oneDNN's
fp32 products take 0.75 to 0.9 of MKL's time for 1,024 rows, half of it for 64, and a quarter for
the three rows of sampling three texts. torch has no public way to choose. The operator used here is
the one that torch.compile writes into its programs; where a release or a build lacks it, `F.linear`
is used.

**Head and cross-entropy in one, in chunks of rows.** The plain way writes N × 50,257 logits, reads
them for the softmax, and writes as many gradients: the memory traffic and the page faults of those
buffers cost more than the arithmetic. Here a chunk of logits is turned into its gradient in place,
while it is in the CPU's cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ENABLED = True
"""False computes everything by the plain formulas of gpt2.py."""
_SMALLEST = 2**18
"""Elements of a weight from which oneDNN wins: with fewer, the call costs more than the product."""
_FEW_ROWS = 64
"""Up to so many rows, any number goes to oneDNN; beyond, multiples, such as 4 × 256 tokens."""
_ROWS_AT_ONCE = 64
"""Rows of logits turned into losses or gradients at a time: 13 MB in fp32, which a CPU caches."""


# -- linear layers ---------------------------------------------------------------------------------


def takes_linear(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there, and faster than MKL for `x` (…, in) and `weight` (out, in)."""
    return (
        ENABLED
        and _HAS_ONEDNN
        and weight.numel() >= _SMALLEST
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _suits_onednn(x.numel() // x.size(-1), weight)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _suits_onednn(n_rows: int, weight: Tensor) -> bool:
    if n_rows == 1:
        return weight.is_contiguous()  # the head's; those of the blocks are stored (in, out)
    # Each number of rows gets a program and results of its own size: prompts of all lengths would
    # leave memory in pieces.
    return n_rows <= _FEW_ROWS or n_rows % _FEW_ROWS == 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN; only where `takes_linear`."""
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = d_out.flatten(0, -2)  # (N, out)
        # By MKL: oneDNN gains nothing here. In the layout in which the blocks store their weights,
        # (in, out).
        d_weight = (x.flatten(0, -2).t() @ rows).t()
        d_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None  # the head has none
        return _onednn(d_out, weight.t()), d_weight, d_bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # oneDNN reads a bias as if it were contiguous, whatever its strides: one from a file need not
    # be.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        return bool((_onednn(torch.ones(1, 2), torch.ones(3, 2)) == 2).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_HAS_ONEDNN = _works()


# -- head and cross-entropy ------------------------------------------------------------------------


def takes_loss(weight: Tensor, reduction: str) -> bool:
    """Whether `fused_linear_cross_entropy` computes this loss, on a CPU.

    It does what training and measuring ask for: sum or mean with gradients, single losses without.
    """
    return (
        ENABLED
        and weight.device.type == "cpu"
        and _product_dtype(weight) in (weight.dtype, torch.bfloat16)
        and torch.is_grad_enabled() == (reduction != "none")
    )


def fused_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """Cross-entropy, in nats, of the logits `hidden @ weight.T`; only where `takes_loss`.

    The matrix products follow autocast; exponentials and sums are in the weight's dtype. Where
    gradients are wanted they are formed at once, before the logits are overwritten, and the
    backward pass hands them out.

    Args:
        hidden: last hidden states, (N, C).
        weight: the head's weight, (V, C).
        targets: token ids (N,); `ignore_index` is left out.
        reduction: `mean`, `sum`, or `none` for one value per target, 0 for those left out.

    Returns:
        A scalar, or (N,).
    """
    dtype = _product_dtype(weight)
    if reduction != "none":
        total = _LinearCrossEntropySum.apply(hidden, weight, targets, ignore_index, dtype)
        return total if reduction == "sum" else total / (targets != ignore_index).sum()
    hidden, head, losses = hidden.to(dtype), weight.to(dtype), []
    for h, y in zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE)):
        logits = _product(h, head).to(weight.dtype)  # (rows, V)
        losses.append(F.cross_entropy(logits, y, ignore_index=ignore_index, reduction="none"))
    return torch.cat(losses)  # (N,)


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype
    ) -> Tensor:
        exact = dtype == weight.dtype
        # Each chunk reads and writes the whole (V, C) gradient once, so wide models take more rows
        # at a time.
        rows = max(32, hidden.size(1))
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        head = weight.to(dtype)  # (V, C)
        counts = targets != ignore_index  # (N,)
        targets = targets.where(counts, 0)  # any token will do: what it gives is multiplied by 0
        total = 0.0
        chunks = (t.split(rows) for t in (hidden.to(dtype), targets, counts, d_hidden))
        for h, y, counted, d_h in zip(*chunks):
            products = _product(h, head)  # logits (rows, V), in the dtype of the products
            losses, normalisers = zip(
                *map(_to_gradients, products.split(_ROWS_AT_ONCE), y.split(_ROWS_AT_ONCE))
            )
            counted = counted.to(weight.dtype)[:, None]  # (rows, 1): 1 or 0
            total += (torch.cat(losses) * counted).sum(dtype=torch.float64)
            # Divided only here: rows of C numbers instead of V.
            share = counted / torch.cat(normalisers)
            torch.mul(products @ head, share, out=d_h)
            scaled = (h * share).to(dtype)
            if exact:
                d_weight.addmm_(products.t(), scaled)
            else:
                d_weight += products.t() @ scaled  # the chunks are summed in fp32
            del products  # the next ones take their place
        ctx.gradients = d_hidden, d_weight
        return total.to(weight.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        if ctx.gradients is None:
            raise RuntimeError(
                "the first backward pass consumed the head's gradients: compute the loss again"
            )
        (d_hidden, d_weight), ctx.gradients = ctx.gradients, None
        # In place: (V, C) is 154 MB.
        return d_hidden.mul_(grad_output), d_weight.mul_(grad_output), None, None, None


def _to_gradients(products: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits (n, V) with their gradients times the softmax's normaliser.

    Returns losses and normalisers, (n, 1) each. The gradient is softmax minus truth. It is formed
    in fp32: near a certain target it is a small difference of numbers near 1, of which bf16 would
    leave nothing.
    """
    logits, y = products.to(torch.promote_types(products.dtype, torch.float32)), y[:, None]
    at_target = logits.gather(1, y)
    largest = logits.amax(dim=1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    normaliser = exponentials.sum(dim=1, keepdim=True)
    exponentials.scatter_add_(1, y, -normaliser)
    products.copy_(exponentials)  # does nothing where they are in fp32: both are one tensor
    return normaliser.log() + largest - at_target, normaliser


def _product(h: Tensor, head: Tensor) -> Tensor:
    return _onednn(h, head) if takes_linear(h, head) else F.linear(h, head)


def _product_dtype(weight: Tensor) -> torch.dtype:
    """In which matrix products are done."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
