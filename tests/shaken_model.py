"""Small models with random weights in every part: what is left out or mixed up shows, which it would not at the initial weights."""

from __future__ import annotations

import torch

from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config


def shaken(
    config: GPT2Config, seed: int = 3, amount: float = 0.3, embedding: float | None = None
) -> GPT2:
    """A model whose every parameter is random, biases and LayerNorms too, in evaluation mode.

    Args:
        config: the model's sizes.
        seed: of the initial weights.
        amount: standard deviation of what is added to them.
        embedding: the same for the tied embedding; `amount` if None. With much of it, a token mostly predicts itself.
    """
    model = GPT2(config, seed=seed)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            alpha = embedding if embedding is not None and "wte" in name else amount
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=alpha)
    return model.eval()
