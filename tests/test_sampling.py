"""Sampling: the KV cache against the plain path and against transformers, and the distribution that is drawn from."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from shaken_model import shaken

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import context_start, generate, next_token
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.samples import draw_samples

SIZES = GPT2Config(block_size=32, n_layer=2, n_head=4, n_embd=32, vocab_size=101)


@pytest.fixture(scope="module")
def model() -> GPT2:
    """A model with opinions: at its initial weights all tokens would be nearly equally likely."""
    return shaken(SIZES, seed=6, embedding=0.05)


def prompt(length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(SIZES.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def both_ways(model: GPT2, prompts, n: int, **how) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return tuple(
        generate(
            model, prompts, n, generator=torch.Generator().manual_seed(9), use_cache=cached, **how
        )
        for cached in (True, False)
    )


@pytest.mark.parametrize(
    "how", [dict(temperature=0), dict(temperature=1.0), dict(temperature=0.7, top_k=5)]
)
@pytest.mark.parametrize("n_prompt, n_new", [(1, 20), (6, 26), (6, 90), (32, 40), (50, 30)])
def test_the_cache_changes_no_token_also_past_block_size(model, how, n_prompt, n_new):
    cached, plain = both_ways(model, [prompt(n_prompt)], n_new, **how)
    assert cached[0].tolist() == plain[0].tolist()
    assert len(cached[0]) == n_prompt + n_new
    assert cached[0][:n_prompt].tolist() == prompt(n_prompt).tolist()
    assert len(set(cached[0][n_prompt:].tolist())) > 3  # one token for ever would prove little


@pytest.mark.parametrize("cached", [True, False])
def test_positions_that_training_never_reached_are_not_used(model, cached):
    """A model trained on windows of 8 tokens has random position embeddings from 8 on."""
    untrained = copy.deepcopy(model)
    with torch.no_grad():
        untrained.transformer.wpe.weight[8:] = float("nan")
    text = generate(untrained, [prompt(5)], 40, temperature=0, use_cache=cached, context=8)[0]
    assert text.tolist() == generate(model, [prompt(5)], 40, temperature=0, context=8)[0].tolist()
    assert text.tolist() != generate(model, [prompt(5)], 40, temperature=0)[0].tolist()


def test_a_runs_samples_see_no_more_than_its_windows(model, monkeypatch):
    config = RunConfig.resolve(
        {"preset": "tiny", "seq_len": 16, "block_size": 64, "max_new_tokens": 30}
    )
    trained = GPT2(GPT2Config(block_size=64, n_layer=1, n_head=2, n_embd=16))
    longest = []
    embed = GPT2.embed
    monkeypatch.setattr(
        GPT2,
        "embed",
        lambda self, x, positions=None: (
            longest.append(x.size(1) if positions is None else int(positions.max()) + 1)
            or embed(self, x, positions)
        ),
    )
    draw_samples(
        trained, config, ["First Citizen:", "Before we proceed any further, hear me speak."], step=0
    )
    assert max(longest) == 16


@pytest.mark.parametrize("temperature, top_k", [(0.8, 40), (1.0, 0), (0.0, 40)])
def test_a_runs_samples_are_drawn_in_one_batch_as_if_one_length_came_after_the_other(
    monkeypatch, temperature, top_k
):
    model = GPT2(GPT2Config(block_size=32, n_layer=2, n_head=2, n_embd=16), seed=6).eval()
    prompts = [
        "First Citizen:",
        "O",
        "Speak, speak.",
        "First Citizen:",
        "Before we proceed any further",
    ]
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "device": "cpu",
            "seq_len": 16,
            "max_new_tokens": 30,
            "num_prompts": len(prompts),
            "temperature": temperature,
            "top_k": top_k,
        }
    )
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 3)
    ids = [torch.from_numpy(encode(prompt)) for prompt in prompts]
    texts = {}
    for length in sorted({len(row) for row in ids}):
        members = [number for number, row in enumerate(ids) if len(row) == length]
        drawn = generate(
            model,
            [ids[number] for number in members],
            30,
            temperature,
            top_k,
            generator,
            context=16,
        )
        texts.update(zip(members, (decode(row.numpy()) for row in drawn)))
    batches, hidden = [], model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda x, cache=None: batches.append(len(x)) or hidden(x, cache)
    )
    assert [sample.text for sample in draw_samples(model, config, prompts, step=3)] == [
        texts[n] for n in range(len(prompts))
    ]
    assert batches.count(len(prompts)) >= 30  # a pass for each token of all, not of each length


@pytest.mark.parametrize("how", [dict(temperature=0), dict(temperature=0.9, top_k=20)])
def test_prompts_of_different_lengths_come_back_in_order_the_same_with_and_without_cache(
    model, how
):
    prompts = [prompt(7, 1), prompt(3, 2), prompt(7, 3), prompt(40, 4), prompt(1, 5)]
    cached, plain = both_ways(model, prompts, 35, **how)
    for given, a, b in zip(prompts, cached, plain):
        assert a[: len(given)].tolist() == given.tolist()
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("context", [None, 8, 1])
def test_greedy_text_of_a_prompt_does_not_depend_on_its_neighbours_also_past_the_context(
    model, cached, context
):
    """The contexts of these prompts slide at different tokens; one is longer than block_size, one a single token."""
    prompts = [prompt(length, seed) for seed, length in enumerate((7, 3, 7, 40, 1, 31))]
    together = generate(model, prompts, 60, temperature=0, use_cache=cached, context=context)
    assert len({tuple(text[-60:].tolist()) for text in together}) > 1
    for given, text in zip(prompts, together):
        alone = generate(model, [given], 60, temperature=0, use_cache=False, context=context)[0]
        assert text.tolist() == alone.tolist()


def test_prompts_of_different_lengths_share_each_forward_pass(model, monkeypatch):
    shapes = []
    embed = GPT2.embed
    monkeypatch.setattr(
        GPT2,
        "embed",
        lambda self, x, positions=None: shapes.append(tuple(x.shape)) or embed(self, x, positions),
    )
    generate(model, [prompt(7, 1), prompt(3, 2), prompt(12, 3)], 10, temperature=0)
    assert (
        shapes == [(3, 11)] + [(3, 1)] * 10
    )  # the prompts but for their last tokens, then a token of each at a time


def test_only_the_rows_whose_context_slides_are_computed_anew(model, monkeypatch):
    shapes = []
    embed = GPT2.embed
    monkeypatch.setattr(
        GPT2,
        "embed",
        lambda self, x, positions=None: shapes.append(tuple(x.shape)) or embed(self, x, positions),
    )
    generate(model, [prompt(7, 1), prompt(4, 2)], 10, temperature=0, context=8)
    # Each row slides by 4 when it has 9 tokens, and again when it has 13.
    assert [shape for shape in shapes if shape != (2, 1)] == [(2, 6)] + [(1, 4)] * 4


def test_greedy_tokens_are_those_of_transformers(model):
    config = transformers.GPT2Config(
        vocab_size=SIZES.vocab_size,
        n_positions=SIZES.block_size,
        n_embd=SIZES.n_embd,
        n_layer=SIZES.n_layer,
        n_head=SIZES.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    other = transformers.GPT2LMHeadModel(config).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    other.tie_weights()
    for seed in range(5):
        x = prompt(6, seed)[None]
        theirs = other.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=26, do_sample=False, pad_token_id=0
        )
        assert generate(model, [x[0]], 26, temperature=0)[0].tolist() == theirs[0].tolist()


def test_past_block_size_the_context_is_a_suffix_that_fits_and_moves_half_a_block_at_a_time():
    starts = [context_start(n, 32) for n in range(1, 200)]
    assert starts[:32] == [0] * 32
    assert all(16 <= n - start <= 32 for n, start in enumerate(starts, start=1) if n > 32)
    assert sorted(set(starts)) == list(range(0, max(starts) + 1, 16))
    assert [context_start(n, 1) for n in range(1, 5)] == [0, 1, 2, 3]


def test_one_seed_gives_one_text_and_the_global_random_state_stays(model):
    def draw(seed: int) -> list[int]:
        return generate(model, [prompt(4)], 30, generator=torch.Generator().manual_seed(seed))[
            0
        ].tolist()

    before = torch.random.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_new_tokens_give_the_prompt_back(model):
    assert generate(model, [prompt(4)], 0)[0].tolist() == prompt(4).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_given_back_and_its_weights_take_no_gradient(model, training):
    model.train(training)
    generate(model, [prompt(4)], 3)
    assert model.training is training
    assert all(block.training is training for block in model.transformer.h)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="a prompt needs at least one token"):
        generate(model, [prompt(4), prompt(0)], 3)


# -- one draw --------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([1.5, -0.5, 0.0, 2.0, 0.7, -2.0, 1.0, 0.3])


def frequencies(draws: int, temperature: float, top_k: int) -> torch.Tensor:
    """How often each token is drawn, (V,)."""
    tokens = next_token(
        LOGITS.expand(draws, -1), temperature, top_k, torch.Generator().manual_seed(1)
    )
    assert tokens.shape == (draws,)
    return torch.bincount(tokens, minlength=len(LOGITS))


@pytest.mark.parametrize(
    "temperature, top_k", [(1.0, 0), (0.5, 0), (2.0, 0), (1.0, 4), (0.7, 3), (1.0, 100)]
)
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature, top_k):
    draws = 40_000
    weights = [math.exp(value / temperature) for value in LOGITS.tolist()]
    kept = sorted(range(len(weights)), key=lambda i: -weights[i])[: top_k or len(weights)]
    expected = {i: draws * weights[i] / sum(weights[j] for j in kept) for i in kept}
    counts = frequencies(draws, temperature, top_k)
    assert all(counts[i] == 0 for i in range(len(weights)) if i not in kept)
    chi_square = sum((counts[i].item() - n) ** 2 / n for i, n in expected.items())
    # mean k - 1, variance 2 (k - 1); five standard deviations and a little for the long tail
    freedom = len(kept) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_top_k_of_one_and_a_temperature_near_zero_are_greedy():
    assert frequencies(500, 1.0, 1).tolist() == [0, 0, 0, 500, 0, 0, 0, 0]
    assert frequencies(500, 0.01, 0).tolist() == [0, 0, 0, 500, 0, 0, 0, 0]
    assert frequencies(500, 0.0, 0).tolist() == [0, 0, 0, 500, 0, 0, 0, 0]


def test_a_temperature_so_small_that_the_quotient_overflows_is_greedy():
    assert frequencies(500, 1e-45, 0).tolist() == [0, 0, 0, 500, 0, 0, 0, 0]
    assert frequencies(500, 1e-300, 3).tolist() == [0, 0, 0, 500, 0, 0, 0, 0]


def test_top_k_of_one_is_greedy_over_a_whole_text(model):
    assert (
        generate(model, [prompt(5)], 40, temperature=1.0, top_k=1)[0].tolist()
        == generate(model, [prompt(5)], 40, temperature=0)[0].tolist()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_token_is_chosen_by_logits_that_are_not_finite(temperature, value):
    logits = torch.stack([LOGITS, LOGITS])
    logits[1, 5] = value
    with pytest.raises(UserError, match="logits are not finite, so no token can be drawn"):
        next_token(logits, temperature, 0)


def test_each_row_of_a_batch_is_drawn_from_its_own_logits():
    logits = torch.full((3, 6), -math.inf)
    logits[0, 4] = logits[1, 0] = logits[2, 5] = 1.0
    assert next_token(logits, 1.0, 0).tolist() == [4, 0, 5]
    assert next_token(logits, 1.0, 2).tolist() == [4, 0, 5]
    assert next_token(logits, 0, 0).tolist() == [4, 0, 5]
