"""The matrix products of a training step, alone: how fast torch's own `mm` does them on this machine.

Counted are the linear maps, forward and in both directions of the backward pass: queries, keys and values, the
projection of the attention, both maps of the MLP in each block, and the head. Attention's own products (queries with
keys, weights with values) are left out, of the rate as of the step; so are those that Muon does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes


@dataclass(frozen=True)
class LinearMap:
    """A linear map of the model: `n_in` to `n_out` features, `times` of them."""

    n_in: int
    n_out: int
    times: int


def linear_maps(sizes: GPT2Config) -> list[LinearMap]:
    """All linear maps of a model."""
    C, L = sizes.n_embd, sizes.n_layer
    return [
        LinearMap(C, 3 * C, L),
        LinearMap(C, C, L),
        LinearMap(C, 4 * C, L),
        LinearMap(4 * C, C, L),
        LinearMap(C, sizes.vocab_size, 1),
    ]


def flops_of_products(sizes: GPT2Config, n_tokens: int) -> int:
    """Floating-point operations of the products of one step: 2 for each multiplication and addition, 3 products for each map."""
    return sum(
        3 * 2 * n_tokens * each.n_in * each.n_out * each.times for each in linear_maps(sizes)
    )


class Products:
    """The products of one micro-batch, each into a buffer that is there already.

    Maps of one shape share their operands.
    """

    def __init__(self, config: RunConfig):
        self.precision = Precision.of(config)
        device, n_rows = self.precision.device, config.batch_size * config.seq_len
        with self.precision.autocast():
            one = torch.ones(1, 1, device=device)
            dtype = (one @ one).dtype  # in which the model's products are done
        generator = torch.Generator(device).manual_seed(config.seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device=device).normal_(generator=generator).to(dtype)

        self._products = []  # (times, left, right, result)
        for each in linear_maps(model_sizes(config)):
            x, weight, dy = (
                random(n_rows, each.n_in),
                random(each.n_in, each.n_out),
                random(n_rows, each.n_out),
            )
            for left, right in (
                (x, weight),
                (dy, weight.t()),
                (x.t(), dy),
            ):  # y, gradient of x, gradient of the weight
                self._products.append(
                    (
                        each.times,
                        left,
                        right,
                        torch.empty(len(left), right.size(1), device=device, dtype=dtype),
                    )
                )

    def turn(self, times: int) -> float:
        """Do all of them `times` times; seconds for one time."""
        self.precision.wait()
        begun = time.perf_counter()
        for _ in range(times):
            for count, left, right, result in self._products:
                for _ in range(count):
                    torch.mm(left, right, out=result)
        self.precision.wait()
        return (time.perf_counter() - begun) / times
