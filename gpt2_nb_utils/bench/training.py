"""The part `train`: our step, Hugging Face's, and the bare matrix products, in turn."""

from __future__ import annotations

import sys
from typing import Any

from gpt2_nb_utils.bench.products import Products, flops_of_products
from gpt2_nb_utils.bench.rounds import in_turn, median, ratios, times_in_a_turn
from gpt2_nb_utils.bench.steps import OurStep, WarmUp
from gpt2_nb_utils.bench.transformers_gpt2 import TransformersStep
from gpt2_nb_utils.bench.worker import Worker, WorkerFailed
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes

SAME_LOSS = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
"""How far two first losses may lie apart, relative, in each number format."""


def measure_training(
    config: RunConfig, ours: Worker, theirs: Worker | None, rounds: int, profile: bool
) -> dict[str, Any]:
    """Time the step.

    Args:
        theirs: the side to compare with, or None. With `compile` set it takes part twice, as it is and compiled.
        profile: look into one of our steps afterwards.

    Returns:
        The keys of bench.json that this part fills; speeds in tokens/s, `matmul_gflops` in 10⁹ operations per second.

    Raises:
        UserError: the batch does not fit into memory, torch.compile fails, or the two sides do not compute the same.
    """
    size = f"batch_size {config.batch_size} and seq_len {config.seq_len}"
    ours.build("step", OurStep, config, size=size)
    try:
        begin: WarmUp = ours.ask("step", "warm_up")
    except WorkerFailed as error:
        if not config.compile:
            raise
        raise UserError(
            f"torch.compile fails on this machine ({error}): leave out --compile"
        ) from None
    begins = {} if theirs is None else _build_theirs(config, begin, theirs, size)
    ours.build("products", Products, config, size=size)
    steps = times_in_a_turn(begin.seconds)
    passes = times_in_a_turn(ours.ask("products", "turn", 1))
    turns = {
        "ours": lambda number: ours.ask("step", "turn", number, steps),
        **{
            name: lambda number, name=name: theirs.ask(name, "turn", number, steps)
            for name in begins
        },
        "products": lambda number: ours.ask("products", "turn", passes),
    }
    seconds = in_turn(turns, rounds, "training step")

    flops = flops_of_products(model_sizes(config), config.batch_size * config.seq_len)
    rates = [flops / each / 1e9 for each in seconds["products"]]
    speeds = {
        name: [config.tokens_per_step / each for each in seconds[name]]
        for name in ("ours", *begins)
    }
    shares = {
        name: [
            config.grad_accum * flops / each / 1e9 / rate
            for each, rate in zip(seconds[name], rates)
        ]
        for name in speeds
    }
    result: dict[str, Any] = {
        "train": {
            "tok_per_s": median(speeds["ours"]),
            "ms_per_step": 1000 * median(seconds["ours"]),
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "grad_accum": config.grad_accum,
        },
        "matmul_gflops": median(rates),
        "share_of_matmul": median(shares["ours"]),
        "peak_memory_gb": begin.peak_memory_gb,
        "rounds": {"tok_per_s": speeds, "matmul_gflops": rates},
    }
    for name, each in begins.items():
        result[name] = {
            "name": "transformers" if name == "against" else "transformers, torch.compile",
            "tok_per_s": median(speeds[name]),
            **ratios(speeds["ours"], speeds[name]),
            "share_of_matmul": median(shares[name]),
            "loss": each.loss,
        }
    if begins:
        result["against"]["peak_memory_gb"] = begins["against"].peak_memory_gb
        result["train"]["loss"] = begin.loss
    if profile:
        result["profile"] = ours.ask("step", "profile")
    return result


def _build_theirs(config: RunConfig, begin: WarmUp, theirs: Worker, size: str) -> dict[str, WarmUp]:
    """Get the other side ready, in one form or two; how each began, under its key in the result."""
    theirs.build("against", TransformersStep, config, size=size)
    begins = {"against": theirs.ask("against", "warm_up")}
    if config.compile:
        try:
            theirs.build("against_compiled", TransformersStep, config, True, size=size)
            begins["against_compiled"] = theirs.ask("against_compiled", "warm_up")
        except WorkerFailed as error:
            print(f"left out, for torch.compile fails on it: {error}", file=sys.stderr)
    for each in begins.values():
        check_same(begin.loss, each.loss, Precision.of(config).amp)
    return begins


def check_same(ours: float, theirs: float, amp: str) -> None:
    """Refuse to compare two sides whose losses of the first batch differ: they would not do the same work.

    Raises:
        UserError: they differ by more than the number format explains.
    """
    if not abs(ours - theirs) <= SAME_LOSS[amp] * abs(ours):
        raise UserError(
            f"the first loss is {ours:.6f} here and {theirs:.6f} with transformers, on the same weights and batch: "
            f"they do not compute the same, so their speeds are not compared; try another version of transformers"
        )
