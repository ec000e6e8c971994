"""What notebook 02 measures on a model: shapes on the way through it, weights, the residual stream.

It looks into a model by hooks and deliberately changes none of its weights.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.initialisation import expected_std


@torch.no_grad()
def trace_shapes(model: GPT2, x: Tensor) -> list[tuple[str, str, tuple[int, ...]]]:
    """The shapes that really occur in a forward pass, in the order of the computation; of the blocks, the first.

    Args:
        x: token ids (B, T).

    Returns:
        Rows (part, shape in letters, shape in numbers). The numbers are read from the tensors, and each is checked
        against its letters.
    """
    block = model.transformer.h[0]
    watched = [
        ("token embedding", "(B, T, C)", model.transformer.wte),
        ("LayerNorm 1", "(B, T, C)", block.ln_1),
        ("queries, keys and values side by side", "(B, T, 3C)", block.attn.c_attn),
        ("attention output", "(B, T, C)", block.attn),
        ("LayerNorm 2", "(B, T, C)", block.ln_2),
        ("MLP, up", "(B, T, 4C)", block.mlp.c_fc),
        ("MLP, down", "(B, T, C)", block.mlp.c_proj),
        ("block 1 (residual stream)", "(B, T, C)", block),
        ("last LayerNorm", "(B, T, C)", model.transformer.ln_f),
    ]
    seen: dict[str, tuple[int, ...]] = {}
    inputs: dict[str, Tensor] = {}
    # update() returns None: a hook that returned a value would replace the module's own.
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, part=part: seen.update({part: tuple(out.shape)})
        )
        for part, _, module in watched
    ]
    hooks.append(
        block.attn.register_forward_pre_hook(lambda _, args: inputs.update(attention=args[0]))
    )
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    q, _, _ = block.attn.heads(inputs["attention"])
    maps = block.attn.weights(inputs["attention"])
    rows = [(part, letters, seen[part]) for part, letters, _ in watched]
    rows[3:3] = [
        ("queries, split into heads (keys and values alike)", "(B, H, T, D)", tuple(q.shape)),
        ("attention weights", "(B, H, T, T)", tuple(maps.shape)),
    ]
    rows = [
        ("token ids", "(B, T)", tuple(x.shape)),
        rows[0],
        (
            "position embedding (one for all rows)",
            "(T, C)",
            tuple(model.transformer.wpe.weight[: x.size(1)].shape),
        ),
        ("their sum", "(B, T, C)", tuple(model.embed(x).shape)),
        *rows[1:],
        ("logits", "(B, T, V)", tuple(logits.shape)),
    ]
    sizes = model.config
    value = {
        "B": x.size(0),
        "T": x.size(1),
        "C": sizes.n_embd,
        "H": sizes.n_head,
        "D": sizes.n_embd // sizes.n_head,
        "V": sizes.vocab_size,
    }
    for part, letters, shape in rows:
        claimed = tuple(
            int(factor or 1) * value[letter]
            for factor, letter in re.findall(r"(\d?)([A-Z])", letters)
        )
        if claimed != shape:
            raise ValueError(f"{part} has shape {shape}, not {letters} = {claimed}")
    return rows


@torch.no_grad()
def weight_stds(model: GPT2) -> list[tuple[str, int, float, float]]:
    """Each parameter's (name, number of values, standard deviation it should have, standard deviation it has)."""
    return [
        (name, p.numel(), expected_std(name, model.config.n_layer), p.std(correction=0).item())
        for name, p in model.named_parameters()
    ]


@torch.no_grad()
def residual_stds(model: GPT2, x: Tensor, scaled: bool = True) -> list[float]:
    """The standard deviation of the residual stream after the embedding and after each of the 2N additions.

    Args:
        x: token ids (B, T).
        scaled: False shows what would be without the factor 1/√(2N) in the initial residual projections (for a model
            with its initial weights: the projections' biases are 0, so their output is scaled instead).
    """
    stds: list[float] = []
    blocks = model.transformer.h
    # What each LayerNorm reads is the residual stream at that point.
    hooks = [
        norm.register_forward_pre_hook(lambda _, args: stds.append(args[0].std().item()))
        for norm in (
            *(norm for block in blocks for norm in (block.ln_1, block.ln_2)),
            model.transformer.ln_f,
        )
    ]
    if not scaled:
        hooks += [
            projection.register_forward_hook(lambda _, __, out: out * math.sqrt(2 * len(blocks)))
            for block in blocks
            for projection in (block.attn.c_proj, block.mlp.c_proj)
        ]
    try:
        model.hidden(x)
    finally:
        for hook in hooks:
            hook.remove()
    return stds
