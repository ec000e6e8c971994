"""Periodic generations of a run: which prompts, and what the model makes of them."""

from __future__ import annotations

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.samples_file import Sample

_OPENING_TOKENS = 12


def sample_prompts(config: RunConfig, text: str) -> list[str]:
    """The prompts of every sampling: the config's own, then openings of passages spread evenly over the corpus.

    Args:
        config: `prompt` and `num_prompts` are used.
        text: the corpus.
    """
    prompts = [config.prompt]
    for number in range(1, config.num_prompts):
        place = len(text) * number // config.num_prompts
        passage = text.find("\n\n", place)
        start = passage + 2 if 0 <= passage < len(text) - 2 else place
        opening = decode(encode(text[start:start + 20 * _OPENING_TOKENS])[:_OPENING_TOKENS])
        # A token can end within a letter; the replacement character stands for the half that is there.
        prompts.append(opening.rstrip("\ufffd ") or config.prompt)
    return prompts


def draw_samples(model: GPT2, config: RunConfig, prompts: list[str], step: int, final: bool = False) -> list[Sample]:
    """Continue each prompt; the same model, config and step give the same text.

    Args:
        step: updates that the model has had; it is part of the seed, so that each sampling draws anew.
        final: continue the first prompt once more, always with the likeliest token: nothing is drawn, so any program
            with these weights writes the same.

    Returns:
        One sample per prompt, and the greedy one last; its text starts with the prompt.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    ids = [torch.from_numpy(encode(prompt)) for prompt in prompts]
    texts: dict[int, str] = {}
    # Prompts of one length at a time, shortest first: so every run has drawn them, and its records can be drawn again.
    for length in sorted({len(row) for row in ids}):
        members = [number for number, row in enumerate(ids) if len(row) == length]
        drawn = generate(model, [ids[number] for number in members], config.max_new_tokens, config.temperature, config.top_k,
                         generator, context=config.seq_len)
        texts.update(zip(members, (decode(row.numpy()) for row in drawn)))
    settings = {"prompts": len(prompts), "temperature": config.temperature, "top_k": config.top_k}
    samples = [Sample(step=step, prompt_index=number, prompt=prompt, text=texts[number - 1], settings=settings)
               for number, prompt in enumerate(prompts, start=1)]
    if final and config.temperature > 0:  # otherwise they all are
        (likeliest,) = generate(model, ids[:1], config.max_new_tokens, temperature=0, context=config.seq_len)
        samples.append(Sample(step, len(prompts) + 1, prompts[0], decode(likeliest.numpy()), {"temperature": 0, "top_k": 0}))
    return samples
