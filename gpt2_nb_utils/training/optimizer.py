"""Which rule updates which parameter, and how fast."""

from __future__ import annotations

from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.training.muon import Muon


def parameters_by_kind(model: GPT2) -> dict[str, list[torch.nn.Parameter]]:
    """All parameters, in four lists.

    Returns:
        `matrices` of the blocks, but for `qkv`, which hold three matrices side by side;
        `embeddings`, of tokens (also the head) and positions; `vectors`, the biases and LayerNorms.
    """
    kinds: dict[str, list[torch.nn.Parameter]] = {
        "matrices": [],
        "qkv": [],
        "embeddings": [],
        "vectors": [],
    }
    for name, parameter in model.named_parameters():
        kind = (
            "vectors"
            if parameter.dim() < 2
            else "embeddings"
            if not name.startswith("transformer.h.")
            else "qkv"
            if name.endswith("c_attn.weight")
            else "matrices"
        )
        kinds[kind].append(parameter)
    return kinds


def build_optimizer(
    model: GPT2, config: RunConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer | TwoOptimizers:
    """The optimizer of a run.

    `adamw` (Loshchilov & Hutter, arXiv 1711.05101) updates everything. `muon` updates the matrices
    of the blocks and leaves the rest to AdamW. Weight decay falls on matrices and embeddings, never
    on vectors.

    Args:
        dtype: number format of Muon's matrix products.
    """
    kinds = parameters_by_kind(model)

    def group(
        *names: str, lr: float, weight_decay: float = config.weight_decay, **more: Any
    ) -> dict[str, Any]:
        return {
            "params": [p for name in names for p in kinds[name]],
            "lr": lr,
            "peak_lr": lr,
            "weight_decay": weight_decay,
            **more,
        }

    rest = [
        group("embeddings", lr=config.embedding_lr or config.lr),
        group("vectors", lr=config.vector_lr or config.lr, weight_decay=0.0),
    ]
    if config.optimizer == "muon":
        muon = Muon(
            [group("matrices", lr=config.lr), group("qkv", lr=config.lr, parts=3)],
            momentum=config.momentum,
            dtype=dtype,
        )
        return TwoOptimizers(muon, _adamw(rest, config))
    return _adamw([group("matrices", "qkv", lr=config.lr), *rest], config)


def _adamw(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.AdamW:
    # fused: one pass over each parameter instead of a dozen
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), fused=True)


class TwoOptimizers:
    """Two optimizers that work as one: what a GradScaler, a schedule and a checkpoint ask of it."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer):
        self.parts = (first, second)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update every parameter once."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def set_learning_rate(optimizer: torch.optim.Optimizer | TwoOptimizers, factor: float) -> None:
    """Give every group of parameters its learning rate for the coming step.

    Args:
        factor: share of the peak learning rate, from `schedule.learning_rate_factor`.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def fits(state: dict[str, Any], config: RunConfig) -> bool:
    """Whether a saved optimizer has the parts and groups that this config builds."""
    if config.optimizer == "muon":
        return "parts" in state
    return len(state.get("param_groups", ())) == 3


def restore_optimizer(
    optimizer: torch.optim.Optimizer | TwoOptimizers, state: dict[str, Any]
) -> None:
    """Take over the averages of a saved optimizer, but not its settings: a resumed run may change
    those.

    torch's own `load_state_dict` brings back the saved rates, betas and decay.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
