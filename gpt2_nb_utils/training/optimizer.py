"""Which rule updates which parameter."""

from __future__ import annotations

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2


def parameter_groups(model: GPT2, weight_decay: float) -> list[dict]:
    """Matrices with weight decay, vectors (biases, LayerNorms) without."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: GPT2, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a run: AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=(config.beta1, config.beta2),
        fused=True,  # one pass over each parameter instead of a dozen
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of parameters the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
