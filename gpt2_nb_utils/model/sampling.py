"""Continue token sequences with a model: temperature, top-k, KV cache.

It sees token ids only, never text.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.kv_cache import KVCache


def context_start(n_tokens: int, longest: int) -> int:
    """Index of the first token that the model still sees when `n_tokens` are there.

    Up to `longest` tokens all are seen. Positions are learned for absolute places, so every slide means computing
    the context anew; sliding by half a block at a time makes that rare.
    """
    if n_tokens <= longest:
        return 0
    stride = max(1, longest // 2)
    return -(-(n_tokens - longest) // stride) * stride


def next_token(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest; 0 means all.
        generator: source of randomness, on the CPU.

    Returns:
        Token ids (B,), on the device of the logits.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if 0 < top_k < logits.size(-1):
        kept, ids = logits.topk(top_k, dim=-1)  # (B, k)
    else:
        kept, ids = logits, None
    # Drawn on the CPU, so that one seed gives one text on every device; relative to the largest logit, so that the
    # smallest temperature does not overflow.
    kept = kept.cpu().double()
    probabilities = ((kept - kept.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)  # (B, 1)
    return (drawn.to(logits.device) if ids is None else ids.gather(1, drawn.to(ids.device))).squeeze(1)


@torch.no_grad()
def generate(
    model: GPT2,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    context: int | None = None,
) -> list[Tensor]:
    """Continue each prompt by `max_new_tokens` tokens.

    Args:
        prompts: token ids, each (t,) with t ≥ 1. Prompts of one length share a batch.
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
    results: dict[int, Tensor] = {}
    try:
        for length in sorted({len(prompt) for prompt in prompts}):
            members = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.stack([torch.as_tensor(prompts[index]) for index in members]).to(model.device)  # (B, t)
            ids = _continue(model, ids, max_new_tokens, temperature, top_k, generator, use_cache,
                            min(context or model.config.block_size, model.config.block_size)).cpu()
            results.update(zip(members, ids))
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(prompts))]


def _continue(model: GPT2, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int,
              generator: torch.Generator | None, use_cache: bool, context: int) -> Tensor:
    cache, cache_from = None, -1
    for _ in range(max_new_tokens):
        start = context_start(ids.size(1), context)
        if not use_cache:
            h = model.hidden(ids[:, start:])
        else:
            if start != cache_from:  # the first token, or the context has slid: fill the cache anew
                cache, cache_from = KVCache(model.config.n_layer, context), start
            h = model.hidden(ids[:, start + len(cache):], cache)
        logits = h[:, -1] @ model.transformer.wte.weight.t()  # (B, V): only the last position is needed
        ids = torch.cat([ids, next_token(logits, temperature, top_k, generator).unsqueeze(1)], dim=1)
    return ids
