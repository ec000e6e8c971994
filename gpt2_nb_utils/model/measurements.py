"""What notebook 02 measures on a model: shapes of a forward pass, weights, the residual stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2, expected_std


@torch.no_grad()
def trace_shapes(model: GPT2, x: Tensor) -> list[tuple[str, str, tuple[int, ...]]]:
    """The shapes of a forward pass, in the order of the computation; of the blocks, the first.

    Args:
        x: token ids (B, T).

    Returns:
        Rows (part, shape in letters, shape in numbers); the numbers are read from the tensors.
    """
    block = model.transformer.h[0]
    stream = model.embed(x)
    read = block.ln_1(stream)
    attended = block.attn(read)
    read_by_mlp = block.ln_2(stream + attended)
    tensors = [
        ("token ids", "(B, T)", x),
        ("token embedding", "(B, T, C)", model.transformer.wte(x)),
        (
            "position embedding (one for all rows)",
            "(T, C)",
            model.transformer.wpe.weight[: x.size(1)],
        ),
        ("their sum", "(B, T, C)", stream),
        ("LayerNorm 1", "(B, T, C)", read),
        ("queries, keys and values side by side", "(B, T, 3C)", block.attn.c_attn(read)),
        (
            "queries, split into heads (keys and values alike)",
            "(B, H, T, D)",
            block.attn.heads(read)[0],
        ),
        ("attention weights", "(B, H, T, T)", block.attn.weights(read)),
        ("attention output", "(B, T, C)", attended),
        ("LayerNorm 2", "(B, T, C)", read_by_mlp),
        ("MLP, up", "(B, T, 4C)", block.mlp.c_fc(read_by_mlp)),
        ("MLP, down", "(B, T, C)", block.mlp(read_by_mlp)),
        ("block 1 (residual stream)", "(B, T, C)", block(stream)),
        ("last LayerNorm", "(B, T, C)", model.hidden(x)),
        ("logits", "(B, T, V)", model(x)),
    ]
    return [(part, letters, tuple(tensor.shape)) for part, letters, tensor in tensors]


@torch.no_grad()
def weight_stds(model: GPT2) -> list[tuple[str, int, float, float]]:
    """Each parameter's (name, number of values, expected standard deviation, measured one)."""
    return [
        (name, p.numel(), expected_std(name, model.config.n_layer), p.std(correction=0).item())
        for name, p in model.named_parameters()
    ]


@torch.no_grad()
def residual_stds(model: GPT2, x: Tensor, scaled: bool = True) -> list[float]:
    """Standard deviations of the residual stream: the embedding, then after each of 2N additions.

    Args:
        x: token ids (B, T).
        scaled: False shows what would be without the factor 1/√(2N) in the initial residual
            projections (for a model with its initial weights: the projections' biases are 0, so
            their output is scaled instead).
    """
    blocks = model.transformer.h
    factor = 1 if scaled else math.sqrt(2 * len(blocks))
    stream = model.embed(x)  # (B, T, C)
    stds = [stream.std().item()]
    for block in blocks:
        for norm, branch in ((block.ln_1, block.attn), (block.ln_2, block.mlp)):
            stream = stream + factor * branch(norm(stream))
            stds.append(stream.std().item())
    return stds
