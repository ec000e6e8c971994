"""The network against independent references: transformers' GPT-2, float64 formulas, and statistics of its weights."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from matplotlib.figure import Figure
from shaken_model import shaken

from gpt2_nb_utils.figures import model as figures
from gpt2_nb_utils.model import measurements
from gpt2_nb_utils.model.cpu_kernels import fused_linear_cross_entropy
from gpt2_nb_utils.model.gpt2 import (
    GPT2,
    IGNORE_INDEX,
    Attention,
    GPT2Config,
    causal_mask,
    expected_std,
)
from gpt2_nb_utils.model.parts import parameter_count, parameter_parts, parameter_shapes
from gpt2_nb_utils.model.sampling import KVCache

SMALL = GPT2Config(block_size=24, n_layer=3, n_head=4, n_embd=32, vocab_size=101)
PUBLISHED_PARAMETERS = 124_439_808


def reference(model: GPT2) -> transformers.GPT2LMHeadModel:
    """transformers' GPT-2 with the weights and the precision of `model`, without dropout."""
    sizes = model.config
    config = transformers.GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.block_size,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    other = transformers.GPT2LMHeadModel(config).to(model.transformer.wte.weight.dtype)
    other.load_state_dict(model.state_dict(), strict=False)
    other.tie_weights()
    return other.eval()


def ids(batch: int, length: int, config: GPT2Config = SMALL, seed: int = 5) -> torch.Tensor:
    return torch.randint(
        config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def pair() -> tuple[GPT2, transformers.GPT2LMHeadModel]:
    model = shaken(SMALL, amount=0.15)
    return model, reference(model)


def test_weights_go_into_transformers_with_only_the_tied_head_missing(pair):
    model, other = pair
    result = other.load_state_dict(model.state_dict(), strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    assert result.unexpected_keys == []
    assert other.lm_head.weight is other.transformer.wte.weight


def test_parameter_names_and_shapes_are_those_of_transformers(pair):
    model, other = pair
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert (
        ours
        == {name: tuple(p.shape) for name, p in other.named_parameters()}
        == parameter_shapes(SMALL)
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_logits_are_those_of_transformers(dtype, tolerance):
    model = shaken(SMALL, amount=0.15).to(dtype)
    x = ids(3, SMALL.block_size)
    with torch.no_grad():
        ours, theirs = model(x), reference(model)(x).logits
    assert theirs.std() > 0.5  # logits that are all alike would agree for no reason
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_loss_and_the_gradient_of_every_parameter_are_those_of_transformers(dtype, tolerance):
    model = shaken(SMALL, amount=0.15).to(dtype)
    other = reference(model)
    x, y = (
        ids(3, SMALL.block_size),
        ids(3, SMALL.block_size, seed=6),
    )  # 72 targets: more than one chunk of the head
    ours = model.loss(x, y)
    theirs = F.cross_entropy(other(x).logits.flatten(0, 1), y.flatten())
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    ours.backward()
    theirs.backward()
    expected = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert expected[name].grad.abs().max() > 1e-4, name
        torch.testing.assert_close(
            parameter.grad,
            expected[name].grad,
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_loss_of_a_token_sequence_is_the_one_transformers_computes_from_labels(pair):
    model, other = pair
    tokens = ids(2, 17)
    with torch.no_grad():
        theirs = other(tokens, labels=tokens).loss  # shifts the labels itself
    torch.testing.assert_close(
        model.loss(tokens[:, :-1], tokens[:, 1:]).detach(), theirs, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("confidence", [0.1, 10.0])
def test_the_heads_gradients_in_bf16_are_right_to_bf16_even_where_the_target_is_nearly_certain(
    confidence,
):
    """Softmax minus truth is a small difference of numbers near 1: formed in bf16, nothing of it would be left."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 32, generator=generator)
    targets = torch.randint(0, 500, (150,), generator=generator)
    targets[::7] = IGNORE_INDEX
    hidden = (
        torch.randn(150, 32, generator=generator) + confidence * 0.1 * weight[targets.clamp(min=0)]
    )

    def gradients(compute, dtype):
        h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        loss = compute(h, w)
        loss.backward()
        return loss.item(), h.grad.double(), w.grad.double()

    exact = gradients(
        lambda h, w: F.cross_entropy(h @ w.T, targets, ignore_index=IGNORE_INDEX, reduction="sum"),
        torch.float64,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(
            lambda h, w: fused_linear_cross_entropy(h, w, targets, IGNORE_INDEX, "sum"),
            torch.float32,
        )
    assert ours[0] == pytest.approx(exact[0], rel=0.02)
    for gradient, truth in zip(ours[1:], exact[1:]):
        assert (gradient - truth).norm() < 0.02 * truth.norm()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_without_gradients_are_those_of_the_plain_formula(reduction):
    model = shaken(SMALL, amount=0.15)
    x, y = ids(7, 22), ids(7, 22, seed=6)  # 154 rows: more than are taken at once
    y[2, 3:9] = IGNORE_INDEX
    with torch.no_grad():
        plain = F.cross_entropy(
            model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORE_INDEX, reduction=reduction
        )
        torch.testing.assert_close(
            model.loss(x, y, reduction).flatten(), plain.flatten(), atol=1e-5, rtol=1e-5
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(
                model.loss(x, y, reduction).flatten(), plain.flatten(), atol=0.02, rtol=0.02
            )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_ignored", [0, 1, 40, 71])
def test_loss_and_gradients_leave_out_ignored_targets_in_whichever_chunk_they_stand(
    reduction, n_ignored
):
    model = shaken(SMALL, amount=0.15).double()
    x, y = ids(3, 24), ids(3, 24, seed=6)
    y.view(-1)[torch.randperm(72, generator=torch.Generator().manual_seed(2))[:n_ignored]] = (
        IGNORE_INDEX
    )
    scale = 1024.0  # as a GradScaler does
    (scale * model.loss(x, y, reduction=reduction)).backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = F.cross_entropy(
        model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORE_INDEX, reduction=reduction
    )
    (scale * loss).backward()
    torch.testing.assert_close(model.loss(x, y, reduction=reduction), loss, atol=1e-10, rtol=1e-10)
    for (name, parameter), gradient in zip(model.named_parameters(), ours):
        torch.testing.assert_close(
            gradient,
            parameter.grad,
            atol=1e-8,
            rtol=1e-10,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_attention_maps_are_those_of_transformers(pair):
    model, other = pair
    x = ids(2, 11)
    with torch.no_grad():
        theirs = other(x, output_attentions=True).attentions
    ours = model.attention_maps(x)
    assert len(ours) == len(theirs) == SMALL.n_layer
    for layer, (a, b) in enumerate(zip(ours, theirs)):
        assert a.shape == (2, SMALL.n_head, 11, 11)
        torch.testing.assert_close(
            a, b, atol=1e-5, rtol=1e-5, msg=lambda text, layer=layer: f"layer {layer}: {text}"
        )
        torch.testing.assert_close(a.sum(dim=-1), torch.ones(2, SMALL.n_head, 11))


def test_published_gpt2_has_124439808_parameters():
    with torch.device("meta"):
        ours = GPT2(GPT2Config())
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    assert ours.n_params == sum(p.numel() for p in theirs.parameters()) == PUBLISHED_PARAMETERS
    assert parameter_count(GPT2Config()) == PUBLISHED_PARAMETERS
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }


@pytest.mark.parametrize("config", [SMALL, GPT2Config(8, 1, 1, 6, 11), GPT2Config(64, 2, 2, 8)])
def test_parts_add_up_to_the_model_and_their_arithmetic_to_their_counts(config):
    parts = parameter_parts(config)
    assert sum(count for *_, count in parts) == parameter_count(config) == GPT2(config).n_params
    for name, arithmetic, count in parts:
        assert eval(arithmetic.replace("×", "*").replace(",", "")) == count, name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_the_float64_cross_entropy_without_the_ignored_targets(reduction, training):
    model, x, y = shaken(SMALL, amount=0.15), ids(3, 9), ids(3, 9, seed=6)
    y[0, 4:] = IGNORE_INDEX
    y[2, 0] = IGNORE_INDEX
    with torch.set_grad_enabled(training):  # with gradients, head and loss are computed together
        logits = model(x).detach().numpy().astype(np.float64)
        loss = model.loss(x, y, reduction=reduction).detach().numpy()
    expected = np.zeros((3, 9))
    for b, t in zip(*np.nonzero(y.numpy() != IGNORE_INDEX)):
        z = logits[b, t]
        expected[b, t] = math.log(sum(math.exp(value) for value in z)) - z[y[b, t]]
    n_counted = 27 - 5 - 1
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / n_counted}[
        reduction
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changed", [0, 1, 9, 15])
def test_a_changed_token_leaves_all_earlier_logits_alone_and_moves_its_own(changed):
    model, x = shaken(SMALL, amount=0.15), ids(2, 16)
    other = x.clone()
    other[:, changed] = (x[:, changed] + 1) % SMALL.vocab_size
    with torch.no_grad():
        difference = (model(x) - model(other)).abs().amax(dim=2)  # (B, T)
    assert changed == 0 or difference[:, :changed].max() < 1e-5
    assert difference[:, changed:].min() > 1e-3


def test_the_mask_of_later_queries_lets_each_see_itself_and_all_before():
    assert causal_mask(2, 5).tolist() == [[True, True, True, True, False], [True] * 5]
    assert causal_mask(3, 3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_attention_is_the_published_formula_for_one_head():
    config = GPT2Config(block_size=3, n_layer=1, n_head=1, n_embd=2, vocab_size=4)
    attention = Attention(config)
    x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    W = [
        np.array(w)
        for w in ([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [4.0, 0.0]])
    ]
    with torch.no_grad():
        attention.c_attn.weight.copy_(torch.tensor(np.concatenate(W, axis=1)))
        attention.c_proj.weight.copy_(torch.eye(2))
        attention.c_attn.bias.zero_()
        attention.c_proj.bias.zero_()
        ours = attention(torch.tensor(x[None], dtype=torch.float32))[0].numpy()
    q, k, v = (x @ w for w in W)
    for t in range(3):
        weights = np.exp(q[t] @ k[: t + 1].T / math.sqrt(2))
        np.testing.assert_allclose(ours[t], weights @ v[: t + 1] / weights.sum(), rtol=1e-6)


# -- initial weights -------------------------------------------------------------------------------------------------


def test_every_initial_parameter_has_the_standard_deviation_of_gpt2():
    config = GPT2Config(block_size=128, n_layer=6, n_head=4, n_embd=128, vocab_size=2000)
    seen = set()
    for name, parameter in GPT2(config, seed=11).named_parameters():
        kind = name.split(".", 3)[-1] if ".h." in name else name.removeprefix("transformer.")
        seen.add(kind)
        if name.endswith(".bias"):
            expected, mean = 0.0, 0.0
        elif ".ln_" in name:
            expected, mean = 0.0, 1.0
        elif kind in ("attn.c_proj.weight", "mlp.c_proj.weight"):
            expected, mean = (
                0.02 / math.sqrt(12),
                0.0,
            )  # 6 blocks add to the residual stream twice each
        else:
            expected, mean = 0.02, 0.0
        n = parameter.numel()
        # five standard errors of a sample's standard deviation and of its mean
        assert parameter.std(correction=0).item() == pytest.approx(
            expected, abs=5 * expected / math.sqrt(2 * n)
        ), name
        assert parameter.mean().item() == pytest.approx(mean, abs=5 * expected / math.sqrt(n)), name
        assert expected_std(name, config.n_layer) == pytest.approx(expected), name
        if expected:  # normal, not uniform: 4.6 % lie beyond two standard deviations
            beyond = ((parameter - mean).abs() > 2 * expected).float().mean().item()
            assert beyond == pytest.approx(0.0455, abs=5 * math.sqrt(0.0455 / n)), name
    assert len(seen) == 2 + 12 + 2


def test_the_matrices_of_two_layers_differ():
    model = GPT2(SMALL)
    first, second = model.transformer.h[0], model.transformer.h[1]
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters()):
        assert name.endswith("bias") or name.startswith("ln_") or not torch.equal(a, b), name


def test_one_seed_gives_one_set_of_weights():
    a, b, c = GPT2(SMALL, seed=7), GPT2(SMALL, seed=7), GPT2(SMALL, seed=8)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), c.parameters()):
        assert torch.equal(p, q), name
        assert expected_std(name, SMALL.n_layer) == 0 or not torch.equal(p, r), name


def test_building_a_model_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    GPT2(SMALL, seed=7)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_initial_loss_is_near_that_of_a_blind_guess():
    config = GPT2Config(block_size=64, n_layer=2, n_head=4, n_embd=64)
    x, y = ids(8, 64, config), ids(8, 64, config, seed=6)
    with torch.no_grad():
        loss = GPT2(config).loss(x, y).item()
    sigma = 0.02 * math.sqrt(64)  # standard deviation of a logit
    assert loss == pytest.approx(math.log(50257) + sigma**2 / 2, abs=5 * sigma / math.sqrt(8 * 64))


# -- errors ----------------------------------------------------------------------------------------------------------


def test_more_tokens_than_block_size_are_refused_also_across_a_cache():
    model = shaken(SMALL, amount=0.15)
    with pytest.raises(ValueError, match="25 tokens exceed block_size 24"):
        model(ids(1, 25))
    cache = KVCache(SMALL.n_layer, 24)
    with torch.no_grad():
        model(ids(1, 20), cache)
        with pytest.raises(ValueError, match="25 tokens exceed the cache's capacity 24"):
            model(ids(1, 5), cache)
    with torch.no_grad(), pytest.raises(ValueError, match="25 tokens exceed block_size 24"):
        model(ids(1, 25), KVCache(SMALL.n_layer, 30))


def test_a_cache_that_is_full_refuses_more():
    cache = KVCache(n_layer=1, capacity=4)
    cache.begin(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="5 tokens exceed the cache's capacity 4"):
        cache.begin(torch.zeros(1, 2))
    assert len(cache) == 3


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12], [1, 11]])
def test_logits_through_a_cache_are_those_without_whatever_the_pieces(cuts):
    model, x = shaken(SMALL, amount=0.15), ids(2, 12)
    cache, logits = KVCache(SMALL.n_layer, SMALL.block_size), []
    with torch.no_grad():
        for piece in x.split(cuts, dim=1):
            logits.append(model(piece, cache))
        expected = model(x)
    assert len(cache) == 12
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_logits_through_a_cache_whose_rows_hold_unequally_much_are_those_of_each_row_alone():
    model, x = shaken(SMALL, amount=0.15), ids(3, 12)
    cache = KVCache(SMALL.n_layer, SMALL.block_size)
    with torch.no_grad():
        model(x[:, :7], cache)
        cache.lengths = [7, 2, 0]  # what stood behind is written over
        two, one = model(x[:, 7:9], cache), model(x[:, 9:10], cache)
        assert cache.lengths == [10, 5, 3] and len(cache) == 10
        for row, kept in enumerate((7, 2, 0)):
            alone = model(torch.cat([x[row, :kept], x[row, 7:10]])[None])[0, kept:]
            torch.testing.assert_close(torch.cat([two[row], one[row]]), alone, atol=1e-5, rtol=1e-5)


def test_a_pass_about_some_rows_leaves_the_others_as_they_are():
    model, x = shaken(SMALL, amount=0.15), ids(3, 8)
    cache = KVCache(SMALL.n_layer, 12)
    with torch.no_grad():
        model(x[:, :5], cache)
        cache.lengths, cache.rows = [0, 5, 0], [2, 0]  # these two begin again
        again = model(x[[2, 0], 5:8], cache)
        assert cache.lengths == [3, 5, 3]
        torch.testing.assert_close(again, model(x[[2, 0], 5:8]), atol=1e-5, rtol=1e-5)
        cache.lengths, cache.rows = [3, 5, 2], None
        last = model(x[:, :1], cache)[:, 0]
        for row, before in enumerate((x[0, 5:8], x[1, :5], x[2, 5:7])):
            alone = model(torch.cat([before, x[row, :1]])[None])[0, -1]
            torch.testing.assert_close(last[row], alone, atol=1e-5, rtol=1e-5)


# -- what notebook 02 shows ------------------------------------------------------------------------------------------


def test_traced_shapes_cover_the_way_from_ids_to_logits_and_change_nothing():
    model, x = shaken(SMALL, amount=0.15), ids(2, 7)
    with torch.no_grad():
        before = model(x)
        rows = measurements.trace_shapes(model, x)
        assert torch.equal(model(x), before)
    shapes = {part: (letters, shape) for part, letters, shape in rows}
    assert rows[0] == ("token ids", "(B, T)", (2, 7))
    assert rows[-1] == ("logits", "(B, T, V)", (2, 7, 101))
    assert shapes["queries, keys and values side by side"] == ("(B, T, 3C)", (2, 7, 96))
    assert shapes["attention weights"] == ("(B, H, T, T)", (2, 4, 7, 7))
    assert shapes["MLP, up"] == ("(B, T, 4C)", (2, 7, 128))
    size = {"B": 2, "T": 7, "C": 32, "H": 4, "D": 8, "V": 101}
    for part, letters, shape in rows:
        factors = re.findall(r"(\d?)([A-Z])", letters)
        assert shape == tuple(int(times or 1) * size[letter] for times, letter in factors), part


def test_residual_stds_are_those_of_the_stream_and_of_a_model_with_unscaled_projections():
    model, x = GPT2(SMALL), ids(2, 9)
    unscaled = copy.deepcopy(model)
    with torch.no_grad():
        h = model.embed(x)
        expected = [h.std().item()]
        for block in model.transformer.h:
            h = h + block.attn(block.ln_1(h))
            expected.append(h.std().item())
            h = h + block.mlp(block.ln_2(h))
            expected.append(h.std().item())
        for name, parameter in unscaled.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.mul_(math.sqrt(2 * SMALL.n_layer))
    assert measurements.residual_stds(model, x) == pytest.approx(expected, rel=1e-5)
    assert measurements.residual_stds(model, x, scaled=False) == pytest.approx(
        measurements.residual_stds(unscaled, x), rel=1e-5
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_figures_take_any_text_as_token():
    pieces = ["$x^$", "<script>", "\\frac{", "\n", " a"]
    maps = shaken(SMALL, amount=0.15).attention_maps(ids(1, 5))
    for figure in (figures.mask_figure(pieces), figures.map_grid(maps, [0], [0, 1], pieces)):
        assert isinstance(figure, Figure)
        figure.canvas.draw()  # a token read as a formula would fail here
