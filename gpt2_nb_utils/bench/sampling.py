"""The part `sample`: one prompt continued with the KV cache, without it, and by Hugging Face's `generate`.

The likeliest token is taken each time, so that all three write the same.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.bench.rounds import in_turn, median, ratios
from gpt2_nb_utils.bench.transformers_gpt2 import TransformersSampling
from gpt2_nb_utils.bench.worker import Worker
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes

_WARM_UP_TOKENS = 8


class OurSampling:
    """Our sampling, in fp32 as the samples of a run are drawn.

    Args:
        prompt: token ids, (t,).
    """

    def __init__(self, config: RunConfig, prompt: Tensor):
        self.precision = Precision.of(config)
        self.model = GPT2(model_sizes(config), seed=config.seed).to(self.precision.device)
        self.prompt = prompt

    def turn(self, new_tokens: int, use_cache: bool = True) -> tuple[float, list[int]]:
        """Continue the prompt; seconds, and the new ids."""
        self.precision.wait()
        begun = time.perf_counter()
        ids = generate(self.model, [self.prompt], new_tokens, temperature=0, use_cache=use_cache)[
            0
        ]  # on the CPU: it has waited
        return time.perf_counter() - begun, ids[len(self.prompt) :].tolist()


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


def measure_sampling(
    config: RunConfig, ours: Worker, theirs: Worker | None, rounds: int
) -> dict[str, Any]:
    """Time the sampling.

    Returns:
        The keys of bench.json that this part fills. Without the cache it is measured once, in the first round: that takes
        many times as long.
    """
    new_tokens, prompt = config.max_new_tokens, prompt_ids(config, theirs is not None)
    size = f"{len(prompt) + new_tokens} tokens of context"
    ours.build("sampling", OurSampling, config, prompt, size=size)
    ours.ask("sampling", "turn", _WARM_UP_TOKENS)
    turns = {"ours": lambda number: ours.ask("sampling", "turn", new_tokens)}
    if theirs is not None:
        theirs.build("sampling", TransformersSampling, config, prompt, size=size)
        theirs.ask("sampling", "turn", _WARM_UP_TOKENS)
        turns["theirs"] = lambda number: theirs.ask("sampling", "turn", new_tokens)
    turns["recomputed"] = lambda number: (
        ours.ask("sampling", "turn", new_tokens, False) if number == 0 else None
    )
    answers = in_turn(turns, rounds, "sampling")

    ours_seconds = [seconds for seconds, _ in answers["ours"]]
    recomputed_seconds, recomputed = answers["recomputed"][0]
    written = answers["ours"][0][1]
    sample: dict[str, Any] = {
        "new_tokens": new_tokens,
        "prompt_tokens": len(prompt),
        "recomputed_tok_per_s": new_tokens / recomputed_seconds,
        "cache_gain": recomputed_seconds / ours_seconds[0],
        "same_as_recomputed": _same(written, recomputed),
    }
    if theirs is not None:
        seconds = [each for each, _ in answers["theirs"]]
        sample["against"] = {
            "name": "transformers",
            "tok_per_s": new_tokens / median(seconds),
            **ratios([1 / each for each in ours_seconds], [1 / each for each in seconds]),
            "same_tokens": _same(written, answers["theirs"][0][1]),
        }
    return {"sample_tok_per_s": new_tokens / median(ours_seconds), "sample": sample}


def _same(ours: list[int], theirs: list[int]) -> int:
    """How many tokens agree before the first that does not. Rounding decides between two that are as likely."""
    return next(
        (place for place, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
