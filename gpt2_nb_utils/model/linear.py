"""The products of linear layers in fp32 on a CPU, by the library that is faster at them.

torch carries two: MKL, which it takes for fp32, and oneDNN, which it takes for bf16. On an AMD EPYC with AVX-512, at the shapes of
GPT-2 124M, oneDNN's fp32 products take 0.75 to 0.9 of MKL's time for 1,024 rows, half of it for 64, and a quarter for the
three rows of sampling three texts. Some stay with MKL: the gradient of a weight, which gains nothing; a single row by a weight
stored (in, out), for which oneDNN is slower; and numbers of rows that no training has, because each number gets a program
and results of its own size, and prompts of all lengths would leave memory in pieces. The sums are the same but for the
order of their terms.

torch has no public way to choose. The operator used here is the one that torch.compile writes into its programs; where a
release or a build lacks it, everything goes the usual way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALLEST = 2**18
"""Elements of a weight from which oneDNN wins: for less, the call takes longer than the product."""
_FEW_ROWS = 64
"""Rows up to which any number goes to oneDNN; above, its multiples do, such as 4 windows of 256 tokens."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight + bias` for `x` (…, in), `weight` (in, out) and `bias` (out,): (…, out)."""
    if not takes_onednn(x, weight):
        return F.linear(x, weight.t(), bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return onednn_product(x, weight.t(), bias)


def takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there, and faster than MKL for `x @ weight`, `x` (…, in) and `weight` (in, out)."""
    return (
        _HAS_ONEDNN
        and weight.numel() >= _SMALLEST
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _suits(x.numel() // x.size(-1), weight)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _suits(n_rows: int, weight: Tensor) -> bool:
    if n_rows == 1:
        return not weight.is_contiguous()
    return n_rows <= _FEW_ROWS or n_rows % _FEW_ROWS == 0


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.t() + bias` for `x` (…, in) and `weight` (out, in), without a gradient; only where `takes_onednn`."""
    # oneDNN reads a bias as if it were contiguous, whatever its strides: one from a file need not be.
    return torch.ops.mkldnn._linear_pointwise(
        x, weight, None if bias is None else bias.contiguous(), "none", [], ""
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = d_out.reshape(-1, d_out.size(-1))  # (N, out)
        return (
            onednn_product(d_out, weight) if needs_x else None,
            x.reshape(-1, x.size(-1)).t() @ rows if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )


def _works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(1, 2), torch.ones(3, 2)
        return bool((onednn_product(x, weight) == 2).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_HAS_ONEDNN = _works()
