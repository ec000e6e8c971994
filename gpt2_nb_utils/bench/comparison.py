"""The parts `train` and `sample`: our side, Hugging Face's, and the bare matrix products, in
turn."""

from __future__ import annotations

import contextlib
import math
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_nb_utils.bench.sides import Products, Side, flops_of_products
from gpt2_nb_utils.bench.worker import Figures, Worker, in_turn, ratios
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


def measure_training(config: RunConfig, rounds: int, compared: bool, profile: bool) -> Figures:
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
        **_measure(config, rounds, first, compared, profile),
        **{amp: _measure(config, rounds, amp, compared, False) for amp in others},
    }


def _measure(config: RunConfig, rounds: int, amp: str, compared: bool, profile: bool) -> Figures:
    config = config.model_copy(update={"amp": amp})
    size = f"batch_size {config.batch_size} and seq_len {config.seq_len}"
    with contextlib.ExitStack() as stack:

        def worker(name: str, *what: Any) -> Worker:
            return stack.enter_context(Worker(name, size, *what))

        ours = worker("ours", Side, config, "ours", config.compile)
        seconds, first = ours.ask("warm_up")
        times = _times_in_a_turn(seconds)
        figures, turns = {"ours": first}, {"ours": partial(ours.ask, "turn", times)}
        for name, compiled in (("against", False), ("against_compiled", True)):
            if not compared or compiled and not config.compile:
                continue
            theirs = worker("transformers", Side, config, "transformers", compiled)
            try:
                _, figures[name] = theirs.ask("warm_up")
            except RuntimeError as error:
                if not compiled:
                    raise
                print(f"left out, because torch.compile fails on it: {error}", file=sys.stderr)
                continue
            check_same(first["loss"], figures[name]["loss"], amp)
            turns[name] = partial(theirs.ask, "turn", times)
        products = worker("the matrix products", Products, config)
        passes = _times_in_a_turn(products.ask("turn", 1))
        turns["products"] = partial(products.ask, "turn", passes)
        took = in_turn(turns, rounds, f"training step ({amp})")
        operators = {"profile": ours.ask("profile")} if profile else {}

    flops = flops_of_products(GPT2Config.of(config), config.batch_size * config.seq_len)
    rates = flops / 1e9 / took["products"]
    speeds = {name: config.tokens_per_step / took[name] for name in figures}
    for name, side in figures.items():
        side["tok_per_s"] = np.median(speeds[name])
        side["share_of_matmul"] = np.median(config.grad_accum * took["products"] / took[name])
    del figures["ours"]
    return {
        "train": {
            "tok_per_s": first["tok_per_s"],
            "ms_per_step": 1000 * np.median(took["ours"]),
            **config.model_dump(include={"batch_size", "seq_len", "grad_accum"}),
            "loss": first["loss"],
        },
        "matmul_gflops": np.median(rates),
        "share_of_matmul": first["share_of_matmul"],
        "peak_memory_gb": first["peak_memory_gb"],
        "rounds": {
            "tok_per_s": {name: speed.tolist() for name, speed in speeds.items()},
            "matmul_gflops": rates.tolist(),
        },
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
            f"the first loss is {ours:.6f} here and {theirs:.6f} with transformers, on the same "
            f"weights and batch: they do not compute the same, so their speeds are not compared; "
            f"try another version of transformers"
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
            f"max_new_tokens {config.max_new_tokens} after a prompt of {len(ids)} tokens exceeds "
            f"block_size {config.block_size}, where transformers ends: lower max_new_tokens to "
            f"{max(1, config.block_size - len(ids))}"
        )
    return ids


def measure_sampling(config: RunConfig, rounds: int, compared: bool) -> Figures:
    """Time one prompt continued with the KV cache, without it, and by Hugging Face's `generate`:
    all three write the same.

    Returns:
        The keys of bench.json that this part fills. Without the cache it is measured once: that
        takes many times as long.
    """
    new_tokens, prompt = config.max_new_tokens, prompt_ids(config, compared)
    size = f"{len(prompt) + new_tokens} tokens of context"
    sides: dict[str, Worker] = {}
    written: dict[str, list[int]] = {}

    def turn(name: str, use_cache: bool = True) -> float:
        seconds, ids = sides[name].ask("sample", prompt, new_tokens, use_cache)
        written[name if use_cache else "recomputed"] = ids
        return new_tokens / seconds

    with contextlib.ExitStack() as stack:
        for name in ("ours", "transformers") if compared else ("ours",):
            sides[name] = stack.enter_context(Worker(name, size, Side, config, name))
            sides[name].ask("sample", prompt, _WARM_UP_TOKENS)
        speeds = in_turn({name: partial(turn, name) for name in sides}, rounds, "sampling")
        recomputed = turn("ours", use_cache=False)

    tok_per_s = np.median(speeds["ours"])
    sample: Figures = {
        "new_tokens": new_tokens,
        "prompt_tokens": len(prompt),
        "recomputed_tok_per_s": recomputed,
        "cache_gain": tok_per_s / recomputed,
        "same_as_recomputed": _same(written["ours"], written["recomputed"]),
    }
    if compared:
        sample["against"] = {
            "name": "transformers",
            "tok_per_s": np.median(speeds["transformers"]),
            **ratios(speeds["ours"], speeds["transformers"]),
            "same_tokens": _same(written["ours"], written["transformers"]),
        }
    return {"sample_tok_per_s": tok_per_s, "sample": sample}


def _same(ours: list[int], theirs: list[int]) -> int:
    """How many tokens agree before the first that does not. Rounding decides between two that are
    as likely."""
    return int(np.cumprod(np.equal(ours, theirs)).sum())
