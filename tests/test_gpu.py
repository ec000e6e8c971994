"""What only a CUDA device can show: its products, the loss scale, copies and memory. Skipped without one."""

import gc

import pytest
import torch
import torch.nn.functional as F

from gpt2_nb_utils.bench.sides import Products
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config, padded_linear
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.training.checkpoints import Saver, read_checkpoint
from gpt2_nb_utils.training.optimizer import build_optimizer, orthogonalise
from gpt2_nb_utils.training.precision import Precision, check_device
from gpt2_nb_utils.training.step import Learner, training_step
from gpt2_nb_utils.training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
SMALL = GPT2Config(block_size=64, n_layer=2, n_head=2, n_embd=64)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Distance of a from b, relative to b."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / b.norm()).item()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(50257, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [2048, 77])
def test_the_padded_product_of_the_head_is_the_plain_one(rows):
    hidden = torch.randn(rows, 768, device=CUDA, dtype=torch.float16)
    weight = 0.02 * torch.randn(50257, 768, device=CUDA, dtype=torch.float16)
    product = padded_linear(hidden, weight)
    assert product.shape == (rows, 50257) and product.isfinite().all()
    assert relative(product, hidden.float() @ weight.float().t()) < 2e-3


@pytest.mark.parametrize(
    "dtype, within", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_the_loss_of_the_head_and_its_gradients_are_those_of_float64(dtype, within):
    hidden, weight = torch.randn(512, 768, device=CUDA), 0.02 * torch.randn(50257, 768, device=CUDA)
    targets = ids(512).to(CUDA)
    targets[::7] = -100
    model = GPT2(GPT2Config(block_size=8, n_layer=1)).to(CUDA)
    h, w = hidden.clone().requires_grad_(), model.transformer.wte.weight
    w.data.copy_(weight)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        total = model.loss_of(h[None], targets[None], "sum")
    total.backward()
    exact_h, exact_w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.cross_entropy(exact_h @ exact_w.t(), targets, reduction="sum")
    exact.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=within)
    assert relative(h.grad, exact_h.grad) < 5 * within
    assert relative(w.grad, exact_w.grad) < 5 * within


@pytest.mark.parametrize("amp, within", [("fp32", 1e-6), ("fp16", 1e-4), ("bf16", 1e-4)])
def test_the_loss_of_gpt2_124m_is_that_of_the_cpu(amp, within):
    model, (x, y) = GPT2(GPT2Config(), seed=1337).eval(), ids(2, 2, 128)
    with torch.no_grad():
        expected = model.loss(x, y).item()
        with Precision(CUDA, amp).autocast():
            loss = model.to(CUDA).loss(x.to(CUDA), y.to(CUDA)).item()
    assert loss == pytest.approx(expected, rel=within)


@pytest.mark.parametrize("shape", [(4, 768, 768), (4, 768, 3072), (4, 3072, 768)])
def test_newton_schulz_in_bf16_is_close_to_fp32(shape):
    matrices = torch.randn(shape, device=CUDA) * torch.logspace(0, -3, shape[-1], device=CUDA)
    coarse = orthogonalise(matrices, torch.bfloat16)
    assert coarse.isfinite().all() and relative(coarse, orthogonalise(matrices)) < 0.15
    assert torch.linalg.svdvals(coarse[0].float()).max() < 1.4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_overflow_halves_the_scale_and_holds_all_weights_back(optimizer):
    config = RunConfig.resolve(
        {"preset": "tiny", "device": "cuda", "amp": "fp16", "optimizer": optimizer}
    )
    precision, model = Precision.of(config), GPT2(SMALL, seed=1).to(CUDA)
    optimizer, scaler = build_optimizer(model, config, precision.muon_dtype), precision.scaler()
    learner = Learner(model, optimizer, scaler, precision, clip_grad=1.0)
    x, y = ids(2, 4, 32)

    def step(loss_factor: float = 1.0):
        learner.loss_sum = lambda x, y: model.loss(x, y, "sum") * loss_factor
        return training_step(learner, [(x, y)])

    while step().skipped:  # the first scale may be too large
        pass
    before, scale = [p.detach().clone() for p in model.parameters()], scaler.get_scale()
    assert step(float("inf")).skipped and scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    # A resume: everything through the CPU.
    state = learner.state()
    optimizer, scaler = build_optimizer(model, config, precision.muon_dtype), precision.scaler()
    learner = Learner(model, optimizer, scaler, precision, clip_grad=1.0)
    learner.restore(state)
    assert scaler.get_scale() == scale / 2 and not step().skipped


def test_a_checkpoint_is_of_the_moment_in_which_it_was_saved(tmp_path):
    weights, big = torch.zeros(50257, 768, device=CUDA), torch.randn(8192, 8192, device=CUDA)
    path = tmp_path / "last.pt"
    with Saver([path]) as saver:
        for step in (1, 2, 3):
            for _ in range(10):
                big = (big @ big).clamp_(-1, 1)  # the device is busy when the copy is asked for
            weights.fill_(step)
            saver.save(path, {"model": {"w": weights}, "step": step})
            weights.fill_(99)
    saved = read_checkpoint(path)
    assert saved["step"] == 3 and (saved["model"]["w"] == 3).all()


def test_sampling_writes_what_the_cpu_writes():
    model, prompts = GPT2(SMALL, seed=1).eval(), [ids(3), ids(12)]
    expected = generate(model, prompts, 16, temperature=0)
    model.to(CUDA)
    for use_cache in (True, False):
        found = generate(model, prompts, 16, temperature=0, use_cache=use_cache)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_products_are_timed_at_the_padded_width_of_the_head():
    config = RunConfig.resolve({"preset": "tiny", "device": "cuda", "amp": "fp16"})
    widths = {left.shape[-1] for left, _, _ in Products(config)._products}
    assert 50_304 in widths and 50_257 not in widths


def test_the_device_computes_and_bf16_is_asked_of_the_right_card():
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    precision = Precision(last, "fp16")
    assert check_device(precision) == ""
    native = torch.cuda.get_device_capability(last) >= (8, 0)
    assert precision.muon_dtype == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("first, then", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_run_can_be_resumed_on_another_device(settings, first, then):
    given = settings(amp="auto", steps=3)
    train(RunConfig.resolve({**given, "device": first}))
    resumed = train(RunConfig.resolve({**given, "device": then, "steps": 6, "resume": "auto"}))
    assert (resumed["status"], resumed["step"]) == ("steps_done", 6)


def test_a_batch_too_large_is_one_line_and_its_memory_is_given_back(settings):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(1.2 * 2**30 / total)
    try:
        train(
            RunConfig.resolve(
                settings(
                    device="cuda",
                    n_layer=12,
                    n_head=12,
                    n_embd=768,
                    eval_windows=1,
                    sample_every=0,
                )
            )
        )
    except UserError as error:
        kept = error  # as a notebook does
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "does not fit in memory" in str(kept)
    assert torch.cuda.memory_allocated() - before < 100 * 2**20
