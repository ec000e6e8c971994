"""The initial weights of GPT-2, and what their standard deviations should be.

Source: Radford et al. (2019), section 2.3: the weights of residual layers are scaled by 1/√N, N residual layers;
the standard deviation 0.02 is that of GPT (Radford et al., 2018, section 4.1).
"""

from __future__ import annotations

import torch
from torch import nn

STANDARD_DEVIATION = 0.02


def expected_std(name: str, n_layer: int) -> float:
    """The standard deviation that the initial values of a parameter should have.

    Args:
        name: parameter name, such as `transformer.h.0.mlp.c_proj.weight`.
        n_layer: blocks in the model; each adds to the residual stream twice.
    """
    if name.endswith(".bias") or ".ln_" in name:
        return 0.0  # biases start at 0, LayerNorm weights at 1
    if name.endswith("c_proj.weight"):
        return STANDARD_DEVIATION / (2 * n_layer) ** 0.5
    return STANDARD_DEVIATION


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter of a GPT-2 model with its initial value.

    The random numbers are drawn on the CPU from a generator of their own, in the order of the parameters: the global
    random state stays untouched, and a GPU starts from the same weights as a CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif ".ln_" in name:
            parameter.fill_(1.0)
        elif parameter.device.type == "meta":
            continue  # a model without storage, built to count its parameters
        else:
            std = expected_std(name, model.config.n_layer)
            parameter.copy_(
                torch.empty(parameter.shape, device="cpu").normal_(0.0, std, generator=generator)
            )
