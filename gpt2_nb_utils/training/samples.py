"""Periodic generations of a run: which prompts, and what the model makes of them."""

from __future__ import annotations

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate, skip_draws
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.records import Sample

_OPENING_TOKENS = 12


def sample_prompts(config: RunConfig, text: str) -> list[str]:
    """The prompts of every sampling: the config's own, then openings of passages spread evenly over
    the corpus.

    Args:
        config: `prompt` and `num_prompts` are used.
        text: the corpus.
    """
    prompts = [config.prompt]
    for number in range(1, config.num_prompts):
        place = len(text) * number // config.num_prompts
        passage = text.find("\n\n", place)
        start = passage + 2 if 0 <= passage < len(text) - 2 else place
        opening = decode(encode(text[start : start + 20 * _OPENING_TOKENS])[:_OPENING_TOKENS])
        # A token can end within a letter; the replacement character stands for the half that is
        # there.
        prompts.append(opening.rstrip("\ufffd ") or config.prompt)
    return prompts


def draw_samples(
    model: GPT2, config: RunConfig, prompts: list[str], step: int, final: bool = False
) -> list[Sample]:
    """Continue each prompt; the same model, config and step give the same text.

    Args:
        step: updates that the model has had; it is part of the seed, so that each sampling draws
            others.
        final: continue the first prompt once more, with the most likely token each time: nothing is
            drawn, so any program with these weights writes the same.

    Returns:
        One sample per prompt, and the greedy one last; its text starts with the prompt.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    ids = [torch.from_numpy(encode(prompt)) for prompt in prompts]
    drawn = generate(
        model,
        ids,
        config.max_new_tokens,
        config.temperature,
        config.top_k,
        _generators(generator, ids, model, config),
        context=config.seq_len,
    )
    settings = {"prompts": len(prompts), "temperature": config.temperature, "top_k": config.top_k}
    samples = [
        Sample(
            step=step,
            prompt_index=number,
            prompt=prompt,
            text=decode(row.numpy()),
            settings=settings,
        )
        for number, (prompt, row) in enumerate(zip(prompts, drawn), start=1)
    ]
    if final and config.temperature > 0:  # otherwise they all are
        (greedy,) = generate(
            model, ids[:1], config.max_new_tokens, temperature=0, context=config.seq_len
        )
        samples.append(
            Sample(
                step,
                len(prompts) + 1,
                prompts[0],
                decode(greedy.numpy()),
                {"temperature": 0, "top_k": 0},
            )
        )
    return samples


def _generators(
    generator: torch.Generator, ids: list[torch.Tensor], model: GPT2, config: RunConfig
) -> list[torch.Generator]:
    """A generator for each prompt: the numbers that it gets when prompts of one length are drawn
    after those of another.

    Runs have always drawn them in that order, shortest first; so their records can be drawn again,
    all in one batch.
    """
    V = model.config.vocab_size
    of_length: dict[int, torch.Generator] = {}
    for length in sorted({len(row) for row in ids}):
        of_length[length] = generator.clone_state()
        if config.temperature > 0:
            skip_draws(
                generator,
                config.max_new_tokens,
                sum(len(row) == length for row in ids),
                min(config.top_k or V, V),
            )
    return [of_length[len(row)] for row in ids]
