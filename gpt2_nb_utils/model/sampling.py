"""Continue token sequences with a model: temperature, top-k, KV cache.

It sees token ids only, never text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.kv_cache import KVCache
from gpt2_nb_utils.model.linear import linear


def context_start(n_tokens: int, longest: int) -> int:
    """Index of the first token that the model still sees when `n_tokens` are there.

    Up to `longest` tokens all are seen. Positions are learned for absolute places, so every slide means computing
    the context anew; sliding by half a block at a time makes that rare.
    """
    if n_tokens <= longest:
        return 0
    stride = max(1, longest // 2)
    return -(-(n_tokens - longest) // stride) * stride


Randomness = torch.Generator | Sequence[torch.Generator] | None
"""A source on the CPU, or one for each row; rows with the same one are drawn together."""


def next_token(
    logits: Tensor, temperature: float, top_k: int, generator: Randomness = None
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest; 0 means all.
        generator: source of randomness.

    Returns:
        Token ids (B,), on the device of the logits.

    Raises:
        UserError: logits that are not finite, from weights that training has ruined.
    """
    if temperature == 0:
        likeliest = logits.argmax(dim=-1)  # of a row with nan in it, the place of the nan
        _demand_finite(logits.gather(-1, likeliest[:, None]))
        return likeliest
    if 0 < top_k < logits.size(-1):
        kept, ids = logits.topk(top_k, dim=-1)  # (B, k)
    else:
        kept, ids = logits, None
    # Drawn on the CPU, so that one seed gives one text on every device; relative to the largest logit, so that the
    # smallest temperature does not overflow.
    kept = kept.cpu().double()
    probabilities = ((kept - kept.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    _demand_finite(probabilities)
    if generator is None or isinstance(generator, torch.Generator):
        drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)  # (B, 1)
    else:
        drawn = torch.empty(len(logits), 1, dtype=torch.long)
        for each in dict.fromkeys(generator):
            rows = [row for row, its in enumerate(generator) if its is each]
            drawn[rows] = torch.multinomial(probabilities[rows], num_samples=1, generator=each)
    return (
        drawn.to(logits.device) if ids is None else ids.gather(1, drawn.to(ids.device))
    ).squeeze(1)


def _demand_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise UserError(
            "the model's logits are not finite, so no token can be drawn: its training has diverged; lower lr"
        )


def skip_draws(generator: torch.Generator, n: int, rows: int, choices: int) -> None:
    """Bring a generator where `n` tokens for each of `rows` bring it, each drawn among `choices`: it does not matter which were drawn."""
    alike = torch.ones(rows, choices, dtype=torch.double)
    for _ in range(n):
        torch.multinomial(alike, num_samples=1, generator=generator)


@torch.no_grad()
def generate(
    model: GPT2,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: Randomness = None,
    use_cache: bool = True,
    context: int | None = None,
) -> list[Tensor]:
    """Continue each prompt by `max_new_tokens` tokens.

    Args:
        prompts: token ids, each (t,) with t ≥ 1, of any lengths. They share one batch.
        use_cache: False computes the whole context for each token: the plain path, for comparison.
        context: tokens that the model sees at most; block_size if None. A model trained on windows of `seq_len` tokens has
            learned no position after those: give it `seq_len`.

    Returns:
        Prompt and continuation, each (t + max_new_tokens,), on the CPU.

    Raises:
        ValueError: a prompt without tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    was_training = model.training
    model.eval()
    try:
        return _continue(
            model,
            prompts,
            max_new_tokens,
            temperature,
            top_k,
            generator,
            use_cache,
            min(context or model.config.block_size, model.config.block_size),
        )
    finally:
        model.train(was_training)


def _continue(
    model: GPT2,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    generator: Randomness,
    use_cache: bool,
    context: int,
) -> list[Tensor]:
    B, ends = len(prompts), [len(prompt) for prompt in prompts]
    ids = torch.zeros(
        B, max(ends) + max_new_tokens, dtype=torch.long
    )  # a row's text, and padding behind it
    for row, prompt in enumerate(prompts):
        ids[row, : ends[row]] = torch.as_tensor(prompt)
    ids = ids.to(model.device)
    rows, next_place = (
        torch.arange(B, device=ids.device),
        torch.tensor(ends, device=ids.device),
    )  # (B,) each
    cache, starts = None, [-1] * B
    for _ in range(max_new_tokens):
        before, starts = starts, [context_start(end, context) for end in ends]
        if use_cache:
            moved = [
                row for row in range(B) if starts[row] != before[row]
            ]  # all at first, then where a context slides
            if moved:
                cache = _filled(cache, model, ids, moved, starts, ends, min(context, ids.size(1)))
            h = model.hidden(ids[rows, next_place - 1, None], cache)[:, 0]  # (B, C)
        else:
            seen = _contexts(ids, range(B), starts, ends)  # (B, T)
            h = model.hidden(seen)[
                rows, next_place - 1 - torch.tensor(starts, device=ids.device)
            ]  # (B, C)
        logits = linear(
            h, model.transformer.wte.weight.t()
        )  # (B, V): only the last position of each row is needed
        ids[rows, next_place] = next_token(logits, temperature, top_k, generator)
        next_place += 1
        ends = [end + 1 for end in ends]
    return [row[:end] for row, end in zip(ids.cpu(), ends)]


def _contexts(ids: Tensor, rows: Sequence[int], starts: list[int], ends: list[int]) -> Tensor:
    """The tokens from `starts` to `ends` of these rows, (len(rows), T) with T that of the longest.

    What stands behind the end of a shorter one is padding: no token before it ever sees it.
    """
    first = torch.tensor([starts[row] for row in rows], device=ids.device)
    places = first[:, None] + torch.arange(
        max(ends[row] - starts[row] for row in rows), device=ids.device
    )
    return ids[list(rows)].gather(1, places.clamp(max=ids.size(1) - 1))


def _filled(
    cache: KVCache | None,
    model: GPT2,
    ids: Tensor,
    rows: list[int],
    starts: list[int],
    ends: list[int],
    capacity: int,
) -> KVCache:
    """A cache that holds the context of each row but for its last token: computed for these rows, as it was for the others."""
    seen = _contexts(ids, rows, starts, [end - 1 for end in ends])  # (len(rows), T)
    whole = len(rows) == len(ids)
    anew = KVCache(model.config.n_layer, capacity if whole else seen.size(1))
    if seen.size(1):
        model.hidden(seen, anew)
    if whole:
        cache = anew
    else:
        cache.take(rows, anew)
    cache.keep([end - 1 - start for start, end in zip(starts, ends)])
    return cache
