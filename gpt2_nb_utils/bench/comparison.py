"""The parts `train` and `sample`: our side, Hugging Face's, and the bare matrix products, in
turn."""

from __future__ import annotations

import contextlib
import math
import sys
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.bench.sides import Products, Side, flops_of_products
from gpt2_nb_utils.bench.worker import Figures, Worker, WorkerFailed, in_turn, ratios
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.training.precision import Precision

SAME_LOSS = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
"""How far two first losses may lie apart, relative, in each number format."""
_SHORTEST_TURN = 0.5
"""Seconds below which a turn does its work several times: longer turns are less noisy."""
_WARM_UP_TOKENS = 8


def formats(config: RunConfig) -> list[str]:
    """The number formats to measure: the given one, or the device's default and, where it has bf16
    units, one to compare."""
    precision = Precision.of(config)
    if config.amp != "auto" or not precision.has_bf16_units:
        return [precision.amp]
    return [precision.amp, "fp32" if precision.amp == "bf16" else "bf16"]


def measure_training(config: RunConfig, compared: bool, rounds: int, profile: bool) -> Figures:
    """Time the step.

    Args:
        compared: with transformers. With `compile` set it takes part twice, as it is and compiled.
        profile: look into one of our steps afterwards.

    Returns:
        The keys of bench.json that this part fills; speeds in tokens/s, `matmul_gflops` in 10⁹
        operations per second. A second number format has the same under its name.

    Raises:
        UserError: the batch does not fit into memory, or the two sides do not compute the same.
    """
    first, *others = formats(config)
    return {
        **_measure(config, first, compared, rounds, profile),
        **{amp: _measure(config, amp, compared, rounds, False) for amp in others},
    }


def _measure(config: RunConfig, amp: str, compared: bool, rounds: int, profile: bool) -> Figures:
    config = config.model_copy(update={"amp": amp})
    size = f"batch_size {config.batch_size} and seq_len {config.seq_len}"
    with contextlib.ExitStack() as stack:

        def worker(name: str, *what: Any) -> Worker:
            return stack.enter_context(Worker(name, size, *what))

        sides = {"ours": worker("ours", Side, config, "ours", config.compile)}
        begins = {"ours": sides["ours"].ask("warm_up")}
        if compared:
            sides["against"] = worker("transformers", Side, config, "transformers")
            begins["against"] = sides["against"].ask("warm_up")
        if compared and config.compile:
            compiled = worker("transformers", Side, config, "transformers", True)
            try:
                begins["against_compiled"] = compiled.ask("warm_up")
                sides["against_compiled"] = compiled
            except WorkerFailed as error:
                print(f"left out, because torch.compile fails on it: {error}", file=sys.stderr)
        for begin in begins.values():
            check_same(begins["ours"]["loss"], begin["loss"], amp)
        products = worker("the matrix products", Products, config)
        times = _times_in_a_turn(begins["ours"]["seconds"])
        passes = _times_in_a_turn(products.ask("turn", 0, 1))
        turns = {
            name: lambda number, side=side: side.ask("turn", number, times)
            for name, side in sides.items()
        }
        turns["products"] = lambda number: products.ask("turn", number, passes)
        seconds = in_turn(turns, rounds, f"training step ({amp})")
        operators = {"profile": sides["ours"].ask("profile")} if profile else {}

    flops = flops_of_products(GPT2Config.of(config), config.batch_size * config.seq_len) / 1e9
    rates = [flops / each for each in seconds.pop("products")]
    speeds = {
        name: [config.tokens_per_step / each for each in took] for name, took in seconds.items()
    }
    figures = {
        name: {
            "tok_per_s": median(speeds[name]),
            "share_of_matmul": median(
                config.grad_accum * flops / each / rate for each, rate in zip(took, rates)
            ),
            "loss": begins[name]["loss"],
            "peak_memory_gb": begins[name]["peak_memory_gb"],
        }
        for name, took in seconds.items()
    }
    ours = figures.pop("ours")
    return {
        "train": {
            "tok_per_s": ours["tok_per_s"],
            "ms_per_step": 1000 * median(seconds["ours"]),
            **config.model_dump(include={"batch_size", "seq_len", "grad_accum"}),
            "loss": ours["loss"],
        },
        "matmul_gflops": median(rates),
        "share_of_matmul": ours["share_of_matmul"],
        "peak_memory_gb": ours["peak_memory_gb"],
        "rounds": {"tok_per_s": speeds, "matmul_gflops": rates},
        **{
            name: {"name": "transformers", **side, **ratios(speeds["ours"], speeds[name])}
            for name, side in figures.items()
        },
        **operators,
    }


def _times_in_a_turn(seconds: float) -> int:
    """How often something that takes `seconds` is done in one turn."""
    return max(1, math.ceil(_SHORTEST_TURN / seconds))


def check_same(ours: float, theirs: float, amp: str) -> None:
    """Refuse to compare two sides whose losses of the first batch differ: they would not do the
    same work.

    Raises:
        UserError: they differ by more than the number format explains.
    """
    if not abs(ours - theirs) <= SAME_LOSS[amp] * abs(ours):
        raise UserError(
            f"the first loss is {ours:.6f} here and {theirs:.6f} with transformers, on the same weights and batch: "
            f"they do not compute the same, so their speeds are not compared; try another version of transformers"
        )


def prompt_ids(config: RunConfig, compared: bool) -> Tensor:
    """The prompt as token ids, (t,).

    Raises:
        UserError: the other side, which cannot slide its context, would run out of positions.
    """
    ids = torch.from_numpy(encode(config.prompt))
    total = len(ids) + config.max_new_tokens
    if compared and total > config.block_size:
        raise UserError(
            f"max_new_tokens {config.max_new_tokens} after a prompt of {len(ids)} tokens exceeds block_size "
            f"{config.block_size}, where transformers ends: lower max_new_tokens to {max(1, config.block_size - len(ids))}"
        )
    return ids


def measure_sampling(config: RunConfig, compared: bool, rounds: int) -> Figures:
    """Time one prompt continued with the KV cache, without it, and by Hugging Face's `generate`:
    all three write the same.

    Returns:
        The keys of bench.json that this part fills. Without the cache it is measured once: that
        takes many times as long.
    """
    new_tokens, prompt = config.max_new_tokens, prompt_ids(config, compared)
    size = f"{len(prompt) + new_tokens} tokens of context"
    names = ["ours", "transformers"][: 1 + compared]
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(Worker(name, size, Side, config, name)) for name in names
        }
        for side in sides.values():
            side.ask("sample", prompt, _WARM_UP_TOKENS)
        turns = {
            name: lambda number, side=side: side.ask("sample", prompt, new_tokens)
            for name, side in sides.items()
        }
        answers = in_turn(turns, rounds, "sampling")
        recomputed_seconds, recomputed = sides["ours"].ask("sample", prompt, new_tokens, False)

    speeds = {name: [new_tokens / seconds for seconds, _ in answers[name]] for name in names}
    medians = {name: median(speeds[name]) for name in names}
    written = answers["ours"][0][1]
    sample: Figures = {
        "new_tokens": new_tokens,
        "prompt_tokens": len(prompt),
        "recomputed_tok_per_s": new_tokens / recomputed_seconds,
        "cache_gain": medians["ours"] * recomputed_seconds / new_tokens,
        "same_as_recomputed": _same(written, recomputed),
    }
    if compared:
        sample["against"] = {
            "name": "transformers",
            "tok_per_s": medians["transformers"],
            **ratios(*speeds.values()),
            "same_tokens": _same(written, answers["transformers"][0][1]),
        }
    return {"sample_tok_per_s": medians["ours"], "sample": sample}


def _same(ours: list[int], theirs: list[int]) -> int:
    """How many tokens agree before the first that does not. Rounding decides between two that are
    as likely."""
    return next((place for place, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(ours))
