"""The CPU's kernels: the same numbers as the plain formulas to fp32's rounding, wherever they take part."""

import copy

import pytest
import torch
import torch.nn.functional as F
from shaken_model import shaken

from gpt2_nb_utils.model import cpu_kernels
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config, linear, padded_linear
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX

SIZES = GPT2Config(
    block_size=48, n_layer=2, n_head=4, n_embd=384, vocab_size=5003
)  # its largest weights are worth the call
needs_onednn = pytest.mark.skipif(
    not cpu_kernels._HAS_ONEDNN, reason="torch was built without oneDNN"
)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the weights that oneDNN multiplied with."""
    made, product = [], cpu_kernels._onednn

    def counted(x, weight, bias=None):
        made.append(tuple(weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(cpu_kernels, "_onednn", counted)
    return made


def ids(seed: int) -> torch.Tensor:
    return torch.randint(
        SIZES.vocab_size, (12, 48), generator=torch.Generator().manual_seed(seed)
    )  # 576 rows: two chunks of the head


def loss_and_gradients(model: GPT2, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model.loss(x, y)
    loss.backward()
    return [loss.detach().double(), *(parameter.grad.double() for parameter in model.parameters())]


@needs_onednn
def test_loss_and_gradients_are_as_near_to_float64_as_plain(monkeypatch, calls):
    model, x, y = GPT2(SIZES, seed=3), ids(1), ids(2)
    y[3, 5:30] = IGNORE_INDEX
    ours = loss_and_gradients(model, x, y)
    C = SIZES.n_embd
    assert {(3 * C, C), (4 * C, C), (C, 4 * C), (C, 3 * C), (SIZES.vocab_size, C)} <= set(
        calls
    )  # forward and backward
    calls.clear()
    monkeypatch.setattr(cpu_kernels, "ENABLED", False)
    exact = loss_and_gradients(copy.deepcopy(model).double(), x, y)
    plain, names = loss_and_gradients(model, x, y), ["loss", *dict(model.named_parameters())]
    assert not calls
    for name, mine, theirs, truth in zip(names, ours, plain, exact):
        error, usual = ((each - truth).norm() / truth.norm() for each in (mine, theirs))
        assert error < 2 * usual + 1e-6, name


def test_in_float64_loss_and_gradients_are_the_plain_ones(monkeypatch, calls):
    model, x, y = shaken(SIZES, amount=0.15).double(), ids(1), ids(2)
    y[3, 5:30] = IGNORE_INDEX
    ours = loss_and_gradients(model, x, y)
    assert not calls  # oneDNN knows no float64; the fused loss does
    monkeypatch.setattr(cpu_kernels, "ENABLED", False)
    plain, names = loss_and_gradients(model, x, y), ["loss", *dict(model.named_parameters())]
    for name, mine, theirs in zip(names, ours, plain):
        assert (mine - theirs).norm() <= 1e-12 * theirs.norm(), name


def test_a_second_backward_pass_of_one_loss_is_refused():
    model = shaken(SIZES, amount=0.15)
    loss = model.loss(ids(1), ids(2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


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
    out = linear(x, weight.t(), bias)
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
        torch.testing.assert_close(linear(x, weight.t(), bias), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3


@needs_onednn
def test_a_text_is_continued_with_the_same_tokens_either_way(monkeypatch, calls):
    model, prompts = GPT2(SIZES, seed=5), [ids(7)[0, :5], ids(7)[1, :9]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # no two tokens are about equally likely
    ours = generate(model, prompts, 60, temperature=0)  # beyond block_size: the context slides
    assert (SIZES.vocab_size, SIZES.n_embd) in calls
    monkeypatch.setattr(cpu_kernels, "ENABLED", False)
    assert [row.tolist() for row in ours] == [
        row.tolist() for row in generate(model, prompts, 60, temperature=0)
    ]


def test_products_of_every_size_and_format_are_the_plain_ones():
    x, weight = torch.randn(65, 512), torch.randn(512, 512)
    # Some are faster in oneDNN, some are not: few rows, few columns, weights stored (in, out).
    for rows, each in [(x[:2], weight[:100]), (x[:1], weight.t()), (x[:1], weight), (x, weight)]:
        torch.testing.assert_close(linear(rows, each), F.linear(rows, each), rtol=1e-4, atol=1e-3)
    half = x.bfloat16(), weight.bfloat16()
    assert torch.equal(linear(*half), F.linear(*half))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_release_of_torch_without_the_operator_is_noticed(monkeypatch):
    monkeypatch.setattr(
        cpu_kernels, "_onednn", lambda *_: torch.ops.mkldnn.an_operator_of_another_release()
    )
    assert not cpu_kernels._works()


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
            logits = padded_linear(hidden, weight)
        torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5)
        d_out = torch.randn(logits.shape, generator=generator)
        for mine, theirs in zip(
            torch.autograd.grad(logits, (hidden, weight), d_out),
            torch.autograd.grad(plain, (hidden, weight), d_out),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    assert seen == [(50304, 16), (128, 16)]
