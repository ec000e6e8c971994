"""Products that another library does: the same numbers as the plain formula to fp32's rounding, wherever it takes part."""

import copy

import pytest
import torch
import torch.nn.functional as F

from gpt2_nb_utils.model import head_loss, linear
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX

SIZES = GPT2Config(
    block_size=48, n_layer=2, n_head=4, n_embd=384, vocab_size=5003
)  # its largest weights are worth the call
needs_onednn = pytest.mark.skipif(not linear._HAS_ONEDNN, reason="torch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the weights that oneDNN multiplied with."""
    made, product = [], linear.onednn_product

    def counted(x, weight, bias=None):
        made.append(tuple(weight.shape))
        return product(x, weight, bias)

    for module in (linear, head_loss):
        monkeypatch.setattr(module, "onednn_product", counted)
    return made


def ids(seed: int) -> torch.Tensor:
    return torch.randint(
        SIZES.vocab_size, (12, 48), generator=torch.Generator().manual_seed(seed)
    )  # 576 rows: two chunks of the head


@needs_onednn
def test_loss_and_the_gradient_of_every_parameter_are_those_of_float64_as_near_as_with_plain_products(
    monkeypatch, calls
):
    model, x, y = GPT2(SIZES, seed=3), ids(1), ids(2)
    y[3, 5:30] = IGNORE_INDEX

    def gradients(model):
        model.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        return [
            loss.detach().double(),
            *(parameter.grad.double() for parameter in model.parameters()),
        ]

    exact = gradients(copy.deepcopy(model).double())
    assert not calls  # float64 goes the plain way
    ours = gradients(model)
    C = SIZES.n_embd
    assert {(3 * C, C), (4 * C, C), (C, 4 * C), (C, 3 * C), (SIZES.vocab_size, C)} <= set(
        calls
    )  # forward and backward
    assert (C, C) not in calls  # too small
    monkeypatch.setattr(linear, "_HAS_ONEDNN", False)
    plain, names = gradients(model), ["loss", *dict(model.named_parameters())]
    for name, mine, theirs, truth in zip(names, ours, plain, exact):
        error, usual = ((each - truth).norm() / truth.norm() for each in (mine, theirs))
        assert error < 2 * usual + 1e-6, name


@needs_onednn
@pytest.mark.parametrize("shape", [(3, 7, 384), (2, 384), (2, 1, 384)])
@pytest.mark.parametrize("bias", ["whole", "every other", "one for all", ""])
def test_a_linear_layer_takes_any_number_of_leading_dimensions(calls, shape, bias):
    generator = torch.Generator().manual_seed(1)
    x, weight = (
        torch.randn(shape, generator=generator, requires_grad=True),
        torch.randn(384, 1152, generator=generator, requires_grad=True),
    )
    values = torch.randn(2304, generator=generator)
    bias = {
        "whole": values[:1152],
        "every other": values[::2],
        "one for all": values[:1].expand(1152),
        "": None,
    }[bias]
    bias = bias if bias is None else bias.requires_grad_()
    leaves = [each for each in (x, weight, bias) if each is not None]
    out = linear.linear(x, weight, bias)
    plain = F.linear(x, weight.t(), bias)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-4)
    d_out = torch.randn(out.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(out, leaves, d_out), torch.autograd.grad(plain, leaves, d_out)
    ):
        assert (
            mine.is_contiguous()
        )  # AdamW and what sends gradients to other processes would copy it otherwise
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(linear.linear(x, weight, bias), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3


@needs_onednn
def test_a_text_is_continued_with_the_same_tokens_either_way(monkeypatch, calls):
    model, prompts = GPT2(SIZES, seed=5), [ids(7)[0, :5], ids(7)[1, :9]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # no two tokens are about equally likely
    ours = generate(model, prompts, 60, temperature=0)  # beyond block_size: the context slides
    assert (SIZES.vocab_size, SIZES.n_embd) in calls
    monkeypatch.setattr(linear, "_HAS_ONEDNN", False)
    assert [row.tolist() for row in ours] == [
        row.tolist() for row in generate(model, prompts, 60, temperature=0)
    ]


def test_half_precision_small_layers_a_single_row_and_a_build_without_it_go_the_plain_way(
    monkeypatch, calls
):
    x, weight = torch.randn(2, 512), torch.randn(512, 512)
    monkeypatch.setattr(linear, "_SMALLEST", 2**18 + 1)
    linear.linear(x, weight)
    monkeypatch.setattr(linear, "_SMALLEST", 2**18)
    linear.linear(x.bfloat16(), weight.bfloat16())
    linear.linear(x[:1], weight)
    linear.linear(torch.randn(65, 512), weight)
    with torch.autocast("cpu", torch.bfloat16):
        linear.linear(x, weight)
    assert not calls
    linear.linear(x[:1], weight.t())  # stored (out, in), as the head is
    assert len(calls) == 1
    monkeypatch.setattr(
        linear, "onednn_product", lambda *_: torch.ops.mkldnn.an_operator_of_another_release()
    )
    assert not linear._works()


def test_the_vocabulary_is_padded_inside_the_product_only(monkeypatch):
    seen, product = [], F.linear

    def watched(hidden, weight):
        seen.append(tuple(weight.shape))
        return product(hidden, weight)

    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 16, generator=generator, requires_grad=True)
    for n in (50257, 128):
        weight = torch.randn(n, 16, generator=generator, requires_grad=True)
        plain = product(hidden, weight)
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", watched)
            logits = head_loss.padded_product(hidden, weight)
        torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5)
        d_out = torch.randn(logits.shape, generator=generator)
        for mine, theirs in zip(
            torch.autograd.grad(logits, (hidden, weight), d_out),
            torch.autograd.grad(plain, (hidden, weight), d_out),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    assert seen == [(50304, 16), (128, 16)]
