"""Training: the numbers of a step, the stop rule, resuming, precision, and what a run writes."""

import html
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import rows_of
from run_command import command, flags

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.report.report import build_report
from gpt2_nb_utils.results import overview
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training import optimizer as rules
from gpt2_nb_utils.training import precision
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import load_model, read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.corpus_loss import training_loss
from gpt2_nb_utils.training.events import State, history, read_events, rendered
from gpt2_nb_utils.training.optimizer import (
    Muon,
    build_optimizer,
    fits,
    learning_rate_factor,
    orthogonalise,
    restore_optimizer,
    set_learning_rate,
)
from gpt2_nb_utils.training.precision import Precision, check_device
from gpt2_nb_utils.training.recorder import Recorder
from gpt2_nb_utils.training.records import TrainingLoss
from gpt2_nb_utils.training.step import Learner, training_step
from gpt2_nb_utils.training.train import train

CPU = Precision(torch.device("cpu"), "fp32")


def run(settings: dict) -> tuple[dict, RunDirectory]:
    return train(RunConfig.resolve(settings)), RunDirectory(settings["out_dir"])


def small_model() -> GPT2:
    return GPT2(GPT2Config(block_size=16, n_layer=1, n_head=2, n_embd=16), seed=3)


# The target


@pytest.mark.slow
def test_tiny_learns_its_corpus_by_heart_from_random_weights(tmp_path, text_file):
    summary, directory = run(
        {
            "preset": "tiny",
            "input_file": str(text_file),
            "out_dir": str(tmp_path / "tiny"),
            "device": "cpu",
        }
    )
    assert summary["status"] == "target_reached" and summary["target_reached"]
    assert summary["train_loss_windows"] == "all" and summary["train_loss"] < 0.099999
    first = history(read_events(directory.events)).rows[0]
    assert (
        first.step == 0 and abs(first.train_loss - math.log(50257)) < 0.1
    )  # it did start from nothing
    # Independent of all the training code: the plain formula, in float64, over every prediction, on what was saved.
    model = load_model(directory.best).double()
    ids = torch.from_numpy(encode(text_file.read_text(encoding="utf-8")))[
        : summary["corpus"]["tokens"]
    ]
    total, T = 0.0, summary["config"]["seq_len"]
    with torch.no_grad():
        for start in range(0, len(ids) - 1, T):
            targets = ids[start + 1 : start + T + 1]
            logits = model(ids[None, start : start + len(targets)])[0]
            total += sum(
                (logits[t].exp().sum().log() - logits[t, target]).item()
                for t, target in enumerate(targets)
            )
    assert total / (len(ids) - 1) == pytest.approx(summary["train_loss"], abs=1e-5)


def test_a_lucky_batch_does_not_end_a_run(settings, monkeypatch):
    monkeypatch.setattr(loop, "training_loss", lambda *_, **__: TrainingLoss(0.2, "all", 511, 8))
    monkeypatch.setattr(loop, "training_step", lucky(loop.training_step))
    summary, _ = run(settings(steps=4))
    assert summary["status"] == "steps_done" and not summary["target_reached"]
    assert summary["best_batch_loss"] < 0.099999


def test_an_estimate_below_the_target_does_not_end_a_run_but_calls_for_the_whole_corpus(
    settings, monkeypatch
):
    asked = []

    def measured(model, windows, precision, n_windows=0, *_):
        asked.append(n_windows)
        return (
            TrainingLoss(0.05, n_windows, 64, n_windows)
            if n_windows
            else TrainingLoss(0.3, "all", 511, 8)
        )

    monkeypatch.setattr(loop, "training_loss", measured)
    summary, _ = run(settings(steps=3, eval_windows=2))
    assert asked == [2, 0, 2, 0] and summary["status"] == "steps_done"
    assert (summary["train_loss"], summary["train_loss_windows"]) == (0.3, "all")


def test_a_smoothed_batch_loss_near_the_target_calls_for_a_measurement_before_eval_every(
    settings, monkeypatch
):
    monkeypatch.setattr(loop, "training_loss", lambda *_, **__: TrainingLoss(0.09, "all", 511, 8))
    monkeypatch.setattr(loop, "training_step", lucky(loop.training_step))
    summary, _ = run(settings(steps=50, eval_every=50))
    assert summary["status"] == "target_reached" and summary["step"] == 1


def lucky(step):
    from dataclasses import replace

    return lambda *args: replace(step(*args), loss=0.01)


# One step


def test_gradients_of_micro_batches_add_up_to_those_of_the_whole_batch():
    ids = torch.from_numpy(
        encode(
            "What light through yonder window breaks? It is the east, and Juliet is the sun. Arise!"
        )
    )
    windows = TokenDataset(ids, 8)
    indices = list(
        range(len(windows))
    )  # the last window is shorter: its targets must not weigh more
    gradients = []
    for size in (len(indices), 1):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        batches = [windows.batch(indices[i : i + size]) for i in range(0, len(indices), size)]
        result = training_step(Learner(model, optimizer, CPU.scaler(), CPU, 0), batches)
        assert result.n_targets == windows.n_targets
        gradients.append(
            (result.loss, result.grad_norm, [p.grad.clone() for p in model.parameters()])
        )
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert gradients[0][1] == pytest.approx(gradients[1][1], rel=1e-5)
    for whole, parts in zip(gradients[0][2], gradients[1][2]):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip_grad", [0.5, 0.0])
def test_clipping_bounds_the_norm_and_zero_means_none(clip_grad):
    model = small_model()
    x, y = torch.randint(0, 50257, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = training_step(Learner(model, optimizer, CPU.scaler(), CPU, clip_grad), [(x, y)])
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert result.grad_norm > 0.5
    assert norm == pytest.approx(clip_grad or result.grad_norm, rel=1e-4)


def test_only_matrices_decay():
    model = small_model()
    optimizer = build_optimizer(model, RunConfig.resolve({"preset": "tiny", "weight_decay": 0.3}))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        vector = name.endswith(".bias") or ".ln_" in name
        assert decay[id(parameter)] == (0.0 if vector else 0.3), name
    assert len(decay) == len(list(model.parameters()))


def test_an_update_is_the_one_of_the_adamw_paper():
    model = small_model()
    config = RunConfig.resolve(
        {"preset": "tiny", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9, "lr": 0.01}
    )
    optimizer = build_optimizer(model, config)
    weight = model.transformer.h[0].mlp.c_fc.weight
    theta, m, v = weight.detach().double(), 0.0, 0.0
    for t in (1, 2, 3):
        model.zero_grad()
        model.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()
        g = weight.grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        theta = theta - 0.01 * (m / (1 - 0.8**t) / ((v / (1 - 0.9**t)).sqrt() + 1e-8) + 0.1 * theta)
        optimizer.step()
    torch.testing.assert_close(weight.double(), theta, rtol=1e-5, atol=1e-7)


# Muon


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.double())


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24), (3, 24, 96)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_orthogonalising_equalises_singular_values_and_keeps_their_vectors(shape, scale):
    matrices = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices[..., 0, :] *= 30  # one direction dominates, as in a gradient
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    for before, after in zip(matrices.reshape(-1, *shape[-2:]), result.reshape(-1, *shape[-2:])):
        assert singular_values(before).max() > 5 * singular_values(before).median()
        assert 0.6 < singular_values(after).min() and singular_values(after).max() < 1.3
        u, _, vh = torch.linalg.svd(before.double(), full_matrices=False)
        seen_along = (
            u.mT @ after.double() @ vh.mT
        )  # diagonal where the singular vectors stayed the same
        torch.testing.assert_close(seen_along, torch.diag(seen_along.diagonal()), rtol=0, atol=1e-3)


def test_the_gram_iteration_is_the_plain_one():
    a, b, c = rules.QUINTIC
    wide = torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = wide / wide.norm()
    for _ in range(rules.ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(
        orthogonalise(wide.float()).double(), x, rtol=1e-4, atol=1e-4
    )  # m x 4m: by the Gram matrix
    narrower = wide[:, :24]
    x = narrower / narrower.norm()
    for _ in range(rules.ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(
        orthogonalise(narrower.float()).double(), x, rtol=1e-4, atol=1e-4
    )  # plain


def test_the_iteration_in_bf16_is_close_to_that_in_fp32():
    for shape in ((3, 32, 32), (2, 32, 128), (2, 128, 32)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        exact, coarse = orthogonalise(matrices), orthogonalise(matrices, torch.bfloat16)
        assert coarse.dtype == torch.bfloat16 and coarse.shape == matrices.shape
        assert (coarse.float() - exact).norm() < 0.03 * exact.norm()


def test_an_update_is_that_of_torchs_own_muon():
    """Theirs takes weights (out, in), ours (in, out) as GPT-2 stores them; theirs computes in bf16."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 48, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())
    settings = dict(lr=0.02, weight_decay=0.1, momentum=0.9)
    our_optimizer = Muon([ours], dtype=torch.bfloat16, **settings)
    their_optimizer = torch.optim.Muon([theirs], nesterov=True, adjust_lr_fn="original", **settings)
    for _ in range(4):
        gradient = torch.randn(16, 48, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.T.clone()
        our_optimizer.step()
        their_optimizer.step()
    moved = (ours - start).norm()
    assert moved > 0.1
    assert (ours.detach() - theirs.detach().T).norm() < 0.05 * moved  # bf16 rounds in another order


def test_queries_keys_and_values_are_three_matrices():
    model = small_model()
    config = RunConfig.resolve(
        {"preset": "tiny", "optimizer": "muon", "lr": 0.02, "weight_decay": 0.0, "momentum": 0.0}
    )
    weight = model.transformer.h[0].attn.c_attn.weight
    before = weight.detach().clone()
    optimizer = build_optimizer(model, config)
    model.loss(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]])).backward()
    gradient = weight.grad.clone()
    optimizer.step()
    for name, moved, part in zip(
        "qkv", (weight.detach() - before).chunk(3, dim=1), gradient.chunk(3, dim=1)
    ):
        torch.testing.assert_close(
            moved, -0.02 * orthogonalise(part), rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("position_lr", [0.0, 0.001])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_kind_of_parameter_has_its_own_rate(optimizer, position_lr):
    model = small_model()
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "optimizer": optimizer,
            "lr": 0.03,
            "embedding_lr": 0.008,
            "position_lr": position_lr,
            "vector_lr": 0.002,
        }
    )
    built = build_optimizer(model, config)
    assert fits(built.state_dict(), config)
    other = config.model_copy(update={"position_lr": 0.0 if position_lr else 0.001})
    assert not fits(built.state_dict(), other)
    set_learning_rate(built, 0.5)
    rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        peak = (
            position_lr or 0.008
            if name.endswith("wpe.weight")
            else 0.008
            if name.endswith("wte.weight")
            else 0.002
            if parameter.dim() < 2
            else 0.03
        )
        assert rates[id(parameter)] == pytest.approx(peak / 2), name
    if optimizer == "muon":
        with_muon = {id(p) for group in built.parts[0].param_groups for p in group["params"]}
        assert with_muon == {
            id(p)
            for name, p in model.named_parameters()
            if p.dim() == 2 and name.startswith("transformer.h.")
        }


def test_rates_that_are_not_given_are_those_of_the_matrices():
    built = build_optimizer(small_model(), RunConfig.resolve({"preset": "tiny", "lr": 0.01}))
    assert {group["peak_lr"] for group in built.param_groups} == {0.01}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_optimizer_keeps_its_averages_and_takes_the_new_settings(optimizer):
    model = small_model()
    settings = {"preset": "tiny", "optimizer": optimizer, "lr": 0.01}
    first = build_optimizer(model, RunConfig.resolve(settings))
    model.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()
    first.step()
    second = build_optimizer(
        model, RunConfig.resolve({**settings, "lr": 0.002, "weight_decay": 0.3})
    )
    restore_optimizer(second, first.state_dict())
    assert {group["peak_lr"] for group in second.param_groups} == {0.002}
    assert {group["weight_decay"] for group in second.param_groups} == {0.0, 0.3}
    averages = {
        id(p): state for part in getattr(first, "parts", [first]) for p, state in part.state.items()
    }
    restored = {
        id(p): state
        for part in getattr(second, "parts", [second])
        for p, state in part.state.items()
    }
    assert averages.keys() == restored.keys() == {id(p) for p in model.parameters()}
    for key, state in averages.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(restored[key][name])), name


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1] + [1 - k / 9 for k in range(1, 9)]),
        ("cosine", [0.5, 1] + [(1 + math.cos(math.pi * k / 9)) / 2 for k in range(1, 9)]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_the_learning_rate_of_each_step(schedule, expected):
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "steps": 10,
            "warmup_steps": 2,
            "lr_schedule": schedule,
            "decay_share": 0.4,
        }
    )
    assert [learning_rate_factor(step, config) for step in range(10)] == pytest.approx(expected)


def test_min_lr_ratio_is_where_the_rate_ends():
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "steps": 1000,
            "warmup_steps": 0,
            "lr_schedule": "linear",
            "min_lr_ratio": 0.1,
        }
    )
    assert learning_rate_factor(999, config) == pytest.approx(0.1, abs=2e-3)


# The training loss


def test_the_training_loss_counts_every_prediction_once_and_an_estimate_says_so():
    model = small_model()
    ids = torch.randint(0, 50257, (103,), generator=torch.Generator().manual_seed(1))
    windows = TokenDataset(ids, 16)
    whole = training_loss(model, windows, CPU)
    logits = [
        model(ids[None, s : min(s + 16, 102)])[0].double().log_softmax(-1)
        for s in range(0, 102, 16)
    ]
    expected = -torch.cat(logits)[torch.arange(102), ids[1:]].mean().item()
    assert whole.loss == pytest.approx(expected, abs=1e-6)
    assert (whole.n_targets, whole.n_windows, whole.windows) == (102, 7, "all")
    part = training_loss(model, windows, CPU, n_windows=3)
    assert (part.n_windows, part.windows, part.whole) == (3, 3, False)


def test_a_whole_measurement_outranks_every_estimate():
    state = State(step=1)

    def measure(loss, windows):
        before = state.best_train_loss
        state.take({"event": "measured", "step": 1, "train_loss": loss, "windows": windows})
        return state.best_train_loss != before

    assert measure(0.05, 1) and not state.reached(0.1)
    assert measure(0.30, "all")
    assert not measure(0.04, 1)
    assert state.best_train_loss == 0.30 and not state.reached(0.1)
    assert measure(0.09, "all") and state.reached(0.1)


# fp16


@pytest.mark.slow
def test_fp16_with_a_grad_scaler_trains_on_the_cpu(settings):
    summary, directory = run(settings(amp="fp16", steps=8, lr=1e-2))
    rows = history(read_events(directory.events)).rows
    assert summary["amp"] == "fp16" and all(row.loss_scale >= 1 for row in rows)
    exact, _ = run(settings(amp="fp32", steps=8, lr=1e-2, out_dir=str(directory.path) + "-fp32"))
    assert summary["loss"] == pytest.approx(exact["loss"], rel=0.02) and summary["loss"] < 10.5


def test_an_overflow_halves_the_scale_and_leaves_the_weights():
    model = small_model()
    x, y = torch.randint(0, 50257, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = training_step(
        Learner(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            scaler,
            Precision(torch.device("cpu"), "fp16"),
            1.0,
        ),
        [(x, y)],
    )
    assert result.skipped and not math.isfinite(result.grad_norm)
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_gradients_that_are_not_finite_leave_the_weights_in_fp32_too():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = y = torch.tensor([[1, 2, 3]])
    result = training_step(
        Learner(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            CPU.scaler(),
            CPU,
            1.0,
            loss_sum=lambda x, y: model.loss(x, y, "sum") * float("nan"),
        ),
        [(x, y)],
    )
    assert result.skipped and all(
        torch.equal(before[name], p) for name, p in model.named_parameters()
    )


CPU_QUERIES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
"""torch's own questions about the processor."""


@pytest.mark.parametrize(
    "units, amp, reason",
    [
        ((True, True), "bf16", "this processor has AMX"),
        ((False, True), "bf16", "this processor has AVX512-BF16"),
        ((False, False), "fp32", "this processor has no bf16 units"),
        ((None, None), "fp32", "this processor has no bf16 units"),  # an older torch
    ],
)
def test_amp_auto_on_a_cpu_depends_on_its_bf16_units(monkeypatch, units, amp, reason):
    for query, answer in zip(CPU_QUERIES, units):
        if answer is None:
            monkeypatch.delattr(torch.cpu, query, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, query, lambda answer=answer: answer, raising=False)
    chosen = Precision.of(RunConfig.resolve({"device": "cpu"}))
    assert (chosen.amp, chosen.description) == (amp, f"{amp}: {reason}")
    given = Precision.of(RunConfig.resolve({"device": "cpu", "amp": "fp16"}))
    assert given.description == "fp16"
    assert bool(check_device(Precision(CPU.device, "bf16"))) == (amp == "fp32")
    assert check_device(chosen) == ""


def test_bf16_without_units_is_a_warning_with_the_measured_cost(settings, monkeypatch, capsys):
    for query in CPU_QUERIES:
        monkeypatch.setattr(torch.cpu, query, lambda: False, raising=False)
    monkeypatch.setattr(precision, "_slowdown", lambda: 7.25)  # seconds on a slow processor
    summary, _ = run(settings(amp="bf16", steps=1, sample_every=0))
    assert summary["amp"] == "bf16"
    warning = "amp bf16: this processor has no bf16 units, and a product of the model takes 7.2 ×"
    assert warning in capsys.readouterr().err


def test_a_missing_gpu_is_said():
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device cuda:7.*--device cpu"):
            Precision.of(RunConfig.resolve({"preset": "tiny", "device": "cuda:7"}))


NVIDIA_DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles a driver for Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU of this machine is used")
def test_an_unused_gpu_is_said_at_the_start_in_the_log_and_in_the_report(settings, tmp_path):
    (tmp_path / "driver.c").write_text(NVIDIA_DRIVER)
    driver = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run([*driver, str(tmp_path / "driver.c")], check=True)
    given = settings(device="auto", steps=1, out_dir=str(tmp_path / "auto"))
    for device in ("auto", "cpu", "cuda"):
        words = flags({**given, "device": device, "out_dir": str(tmp_path / device)})
        done = command("train", *words, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
        assert done.returncode == (2 if device == "cuda" else 0), done.stderr
        lines = [line for line in done.stderr.splitlines() if "NVIDIA GPU" in line]
        assert len(lines) == (device != "cpu"), done.stderr
    assert not (tmp_path / "cuda").exists() and lines[0].startswith(
        "error: device cuda: this machine"
    )
    directory = RunDirectory(tmp_path / "auto")
    (noted,) = (
        event["text"] for event in read_events(directory.events) if event["event"] == "note"
    )
    assert noted == lines[0].removeprefix("error: device cuda: ")
    assert "CUDA 12.2 at most" in noted and "is a build without CUDA" in noted
    assert noted in directory.log.read_text(encoding="utf-8")
    assert noted in overview.caveats(read_record(directory.path))
    assert html.escape(noted, quote=False) in build_report(directory).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "driver, built_for, words",
    [
        (0, None, ""),
        (
            13000,
            None,
            r"without CUDA: pip install --upgrade torch==[\d.]+ --index-url https://.*, or",
        ),
        (12020, None, "CUDA 12.2 at most and torch .*: update the driver .*, then pip install"),
        (12020, "13.0", "CUDA 12.2 at most: update the driver to one for CUDA 13.0 [^,]*, or take"),
        (12080, "12.6", r"torch cannot initialise CUDA: see what python -c .*torch.cuda.init\(\)"),
    ],
)
def test_why_a_gpu_is_not_used_and_the_fix(monkeypatch, driver, built_for, words):
    monkeypatch.setattr(precision, "_cuda_of_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    said = precision.unused_gpu()
    assert re.search(words, said) and bool(said) == bool(words)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.unused_gpu() == ""


def test_an_apple_gpu_is_refused_with_the_reason(settings):
    with pytest.raises(UserError, match="device 'mps': torch before 2.14 .*193487.*: take cpu"):
        run(settings(device="mps"))


@pytest.mark.parametrize(
    "error, fix",
    [
        ("CUDA error: no kernel image is available for execution", "install a build of torch"),
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", "close the programs"),
        ("CUDA error: unknown error", r"\(CUDA error: unknown error\): take --device cpu"),
    ],
)
def test_a_device_that_does_not_compute_is_one_line(settings, monkeypatch, error, fix):
    def refuses(*size, device):
        raise RuntimeError(error)

    monkeypatch.setattr(torch, "ones", refuses)
    given = settings()
    with pytest.raises(UserError, match=rf"device cpu .* cannot be used with torch .*{fix}"):
        run(given)
    assert not Path(given["out_dir"]).exists()


@pytest.mark.slow
def test_compile_without_a_compiler_is_one_line_and_nothing_is_written(settings):
    given = settings(compile=True)
    done = subprocess.run(
        [sys.executable, "-m", "gpt2_nb_utils", "train"]
        + [f"--{name}={value}" for name, value in given.items()],
        env={**os.environ, "CXX": "/nonexistent/g++"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr
    assert "compile does not work on this machine" in done.stderr
    assert "install a C++ compiler, or leave out --compile" in done.stderr
    assert not Path(given["out_dir"]).exists()


@pytest.mark.slow
def test_a_run_begun_without_a_grad_scaler_can_go_on_with_one(settings):
    _, directory = run(settings(amp="fp16", steps=2))
    content = read_checkpoint(directory.last)
    assert content["scaler"]
    content["scaler"] = {}  # as a run in fp32 or bf16 leaves it
    save_checkpoint(directory.last, content)
    summary, _ = run(settings(amp="fp16", steps=4, resume="auto"))
    assert (summary["status"], summary["step"]) == ("steps_done", 4)


@pytest.mark.slow
def test_a_run_that_diverges_stops_after_a_bound_and_keeps_its_last_good_checkpoint(settings):
    _, directory = run(settings(steps=3))
    good = directory.last.read_bytes()
    with pytest.raises(UserError, match="20 steps in a row.*lower lr"):
        run(
            settings(
                steps=100,
                lr=1e30,
                save_every=1,
                clip_grad=0,
                sample_every=0,
                eval_every=1000,
                resume="auto",
            )
        )
    assert directory.read_summary()["status"] == "failed"
    log = directory.log.read_text(encoding="utf-8")
    assert "failed" in log and "not saved" in log
    assert (
        directory.last.read_bytes() == good
    )  # neither the ruined weights nor those of the skipped steps replaced it


def test_a_run_too_short_to_hit_the_bound_does_not_end_as_if_all_were_well(settings):
    with pytest.raises(UserError, match="the loss is nan at the last step, 8: lower lr"):
        run(settings(steps=8, lr=1e30, save_every=1, clip_grad=0, sample_every=0, eval_every=1000))
    assert RunDirectory(settings()["out_dir"]).read_summary()["status"] == "failed"


def test_a_checkpoint_with_another_layout_of_the_optimizer_is_said_before_anything_is_written(
    settings,
):
    _, directory = run(settings(steps=2))
    content = read_checkpoint(directory.last)
    content["optimizer"]["param_groups"] = content["optimizer"]["param_groups"][
        :2
    ]  # as before embeddings had their own
    save_checkpoint(directory.last, content)
    before = directory.summary.read_bytes()
    with pytest.raises(UserError, match="last.pt lacks what this program writes"):
        run(settings(steps=4, resume="auto"))
    assert directory.summary.read_bytes() == before


def test_an_overflow_in_the_part_of_one_optimizer_holds_both_back():
    model = small_model()
    optimizer = build_optimizer(
        model, RunConfig.resolve({"preset": "tiny", "optimizer": "muon", "lr": 0.01})
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = y = torch.tensor([[1, 2, 3]])
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"):
        handle = dict(model.named_parameters())[name].register_hook(
            lambda gradient: gradient * float("inf")
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        scale = scaler.get_scale()
        result = training_step(Learner(model, optimizer, scaler, CPU, 1.0), [(x, y)])
        handle.remove()
        assert result.skipped and scaler.get_scale() == scale / 2
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


# What a run writes


def test_a_run_directory_holds_what_the_contract_says(settings):
    summary, directory = run(settings())
    on_disk = json.loads(directory.summary.read_text(encoding="utf-8"))
    assert on_disk == summary
    for key in (
        "preset command seed device amp torch n_params config corpus status step epoch tokens_seen seconds wall_seconds tok_per_s "
        "loss best_batch_loss best_batch_step train_loss train_loss_windows best_train_loss best_train_loss_step target_loss "
        "target_reached"
    ).split():
        assert key in summary, key
    assert set(summary["corpus"]) == {
        "source",
        "path",
        "sha256",
        "chars",
        "tokens",
        "is_course_input",
    }
    assert summary["status"] == "steps_done" and summary["step"] == 6
    assert (
        summary["corpus"]["tokens"] == 512 and summary["corpus"]["is_course_input"] is False
    )  # an excerpt never counts
    assert json.loads(directory.config.read_text(encoding="utf-8"))["steps"] == 6
    assert "torch" in json.loads(directory.environment.read_text(encoding="utf-8"))["packages"]
    lines = directory.metrics.read_text(encoding="utf-8").splitlines()
    assert (
        lines[0] == "step,epoch,tokens,loss,train_loss,lr,grad_norm,loss_scale,tok_per_s,elapsed_s"
    )
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(7))
    log = directory.log.read_text(encoding="utf-8")
    for part in (
        "device cpu",
        "arguments ",
        "batch_size=4",
        "tokens 512",
        "tokens per step 256",
        "step 1  loss ",
        "tok/s ",
        "lr ",
    ):
        assert part in log, part
    samples = history(read_events(directory.events)).samples
    assert [(s.step, s.prompt_index) for s in samples] == [
        *((step, number) for step in (3, 6) for number in (1, 2, 3)),
        (6, 4),
    ]
    assert [s.final for s in samples] == [False] * 6 + [True] and samples[-1].prompt == samples[
        0
    ].prompt
    assert (
        all(sample.text.startswith(sample.prompt) for sample in samples)
        and samples[0].prompt == "First Citizen:"
    )


@pytest.mark.slow
def test_recall_is_counted_at_every_measurement_of_the_training_loss(settings):
    _, directory = run(
        settings(
            steps=400,
            eval_every=200,
            eval_windows=3,
            log_every=200,
            save_every=400,
            sample_every=0,
            n_embd=16,
            lr_schedule="cosine",
            target_loss=1e-6,
        )
    )
    rows = history(read_events(directory.events)).recall
    # 511 targets are 8 windows, the last of 63 tokens, of which an opening needs 63.
    assert [(row.step, row.recalled.openings) for row in rows] == [(0, 3), (200, 3), (400, 3)]
    assert rows[0].recalled.verbatim == 0 and rows[0].recalled.right < 1
    assert (
        rows[-1].recalled.share == 1
        and rows[-1].recalled.right == rows[-1].recalled.continued == 32
    )


def test_tokens_are_counted_and_not_the_padding_of_the_last_window(settings):
    summary, _ = run(
        settings(max_tokens=100, batch_size=2, steps=3)
    )  # 99 targets: windows of 64 and 35
    assert summary["tokens_seen"] == 3 * 99 and summary["epoch"] == 3.0


def test_the_log_is_one_line_each_whatever_the_text(settings):
    _, directory = run(settings())
    record = Recorder(directory, read_events(directory.events), directory.claim(resume=True))
    before = directory.log.read_text(encoding="utf-8")
    record.append("note", text="hostile\nname \x1b[2J")
    (line,) = directory.log.read_text(encoding="utf-8").removeprefix(before).splitlines()
    assert "\x1b" not in line and "\\n" in line
    record.end("steps_done")


def test_records_are_what_their_events_render(settings):
    _, directory = run(settings())
    for name, text in rendered(read_events(directory.events)).items():
        assert (directory.path / name).read_text(encoding="utf-8") == text, name


# Resume


def files_of(directory: RunDirectory) -> dict:
    rows = [
        line.split(",")[:8] for line in directory.metrics.read_text(encoding="utf-8").splitlines()
    ]  # without the speeds
    return {
        "rows": rows,
        "samples": directory.samples.read_text(encoding="utf-8"),
        "recall": directory.recall.read_text(encoding="utf-8"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_a_resumed_run_continues_bit_for_bit(settings, tmp_path, amp):
    _, whole = run(settings(out_dir=str(tmp_path / "whole"), amp=amp))
    run(settings(out_dir=str(tmp_path / "parts"), amp=amp, steps=3))
    _, parts = run({"out_dir": str(tmp_path / "parts"), "steps": 6, "resume": "auto"})
    a, b = read_checkpoint(whole.last), read_checkpoint(parts.last)
    for name, tensor in a["model"].items():
        assert torch.equal(tensor, b["model"][name]), name
    for index, state in a["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, b["optimizer"]["state"][index][name]), name
    assert a["scaler"] == b["scaler"] and a["state"]["tokens_seen"] == b["state"]["tokens_seen"]
    assert files_of(whole) == files_of(parts)


def test_work_after_the_checkpoint_is_dropped_from_the_logs_and_done_again(settings):
    _, directory = run(settings(steps=6))
    expected = files_of(directory)
    run(settings(steps=3, overwrite=True))
    checkpoint_of_step_3 = directory.last.read_bytes()
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    directory.last.write_bytes(checkpoint_of_step_3)  # as if killed at step 6 before its checkpoint
    for table in (directory.metrics, directory.recall):
        with table.open("a", encoding="utf-8") as file:
            file.write("7,0.5")  # a row cut short
    run({"out_dir": str(directory.path), "resume": "auto"})
    assert [files_of(directory)[name] for name in ("samples", "recall")] == [
        expected[name] for name in ("samples", "recall")
    ]
    assert [row[:6] for row in files_of(directory)["rows"]] == [row[:6] for row in expected["rows"]]


@pytest.mark.slow
def test_sigint_finishes_the_step_saves_and_a_resumed_run_goes_on(settings, tmp_path):
    given = settings(steps=100_000, eval_every=100_000, save_every=100_000, sample_every=0)
    command = [
        sys.executable,
        "-m",
        "gpt2_nb_utils",
        "train",
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    directory = RunDirectory(given["out_dir"])
    deadline = time.monotonic() + 120
    while len(rows_of(directory)) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert directory.read_summary()["status"] == "interrupted"
    step = read_checkpoint(directory.last)["state"]["step"]
    assert 3 <= step < 100_000
    summary, _ = run({"out_dir": given["out_dir"], "resume": "auto", "steps": step + 2})
    assert summary["step"] == step + 2 and summary["status"] == "steps_done"
    assert [row.step for row in history(read_events(directory.events)).rows] == list(
        range(step + 3)
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_layer": 3}, "n_layer 3 differs from 2"),
        ({"seed": 8}, "seed 8 differs from 1337"),
        ({"batch_size": 2}, "batch_size 2 differs"),
    ],
)
def test_a_resumed_run_keeps_what_its_weights_depend_on(settings, change, words):
    run(settings(steps=3))
    with pytest.raises(UserError, match=words):
        run(settings(resume="auto", **change))


def test_a_resumed_run_refuses_another_text(settings, tmp_path):
    run(settings(steps=3))
    other = tmp_path / "other.txt"
    other.write_text("Another text, quite another text. " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="another text"):
        run(settings(resume="auto", input_file=str(other)))


# The run directory is never lost


def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_was(settings):
    _, directory = run(settings(steps=2))
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run.*--resume auto.*--overwrite"):
        run(settings(steps=2))
    assert {
        path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()
    } == before
    summary, _ = run(settings(steps=1, overwrite=True))
    assert summary["step"] == 1


def test_a_folder_of_other_files_is_refused_even_with_overwrite(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds files but no run"):
        run(settings(overwrite=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_overwriting_leaves_files_that_no_run_made(settings):
    _, directory = run(settings(steps=1))
    (directory.path / "notes.txt").write_text("mine", encoding="utf-8")
    run(settings(steps=1, overwrite=True))
    assert (directory.path / "notes.txt").read_text(encoding="utf-8") == "mine"


# Checkpoints


def test_a_failed_write_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"w": torch.ones(3)}})
    monkeypatch.setattr(
        os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(
        UserError, match="cannot be written.*No space left.*previous checkpoint is whole"
    ):
        save_checkpoint(path, {"model": {"w": torch.zeros(3)}})
    assert torch.equal(read_checkpoint(path)["model"]["w"], torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self):
        return os.mkdir, (Evil.trap,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    Evil.trap = str(tmp_path / "owned")
    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not Path(Evil.trap).exists()


def test_damaged_foreign_newer_and_missing_checkpoints_are_told_apart(settings, tmp_path):
    _, directory = run(settings(steps=1))
    good = directory.last.read_bytes()
    (tmp_path / "cut.pt").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.pt").write_text("not a checkpoint", encoding="utf-8")
    torch.save({"weights": torch.ones(1)}, tmp_path / "foreign.pt")
    torch.save({"format": 99, "model": {}}, tmp_path / "newer.pt")
    for name, words in {
        "cut.pt": "damaged",
        "text.pt": "no.* checkpoint",
        "foreign.pt": "not a checkpoint of this program",
        "newer.pt": "format 99",
        "none.pt": "no such checkpoint",
    }.items():
        with pytest.raises(UserError, match=words):
            read_checkpoint(tmp_path / name)


# Nothing is lost by a resume that cannot work


def content_of(directory: RunDirectory) -> dict:
    return {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda directory: {"resume": str(directory.best)},
            "best.pt holds weights only.*name a last.pt",
        ),
        (
            lambda directory: {"resume": "auto", "preset": "sanity"},
            "preset sanity differs from tiny",
        ),
        (
            lambda directory: {"resume": "auto", "steps": 2},
            "steps 2 is below step 3, which the run has reached",
        ),
        (
            lambda directory: directory.last.unlink() or {"resume": "auto"},
            "last.pt is missing.*restore it",
        ),
    ],
)
def test_a_resume_that_cannot_work_leaves_the_run_as_it_was(settings, change, words):
    _, directory = run(settings(steps=3))
    given = {"out_dir": str(directory.path), **change(directory)}
    before = content_of(directory)
    with pytest.raises(UserError, match=words):
        run(given)
    assert content_of(directory) == before


def test_metrics_that_somebody_edited_do_not_stop_a_resume(settings):
    _, directory = run(settings(steps=3))
    with directory.metrics.open("a", encoding="utf-8") as file:
        file.write("x,1,2,3,4,5,6,7,8,9\n")
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 4})
    assert [row.step for row in history(read_events(directory.events)).rows] == [0, 1, 2, 3, 4]


def test_a_named_checkpoint_goes_on_in_its_own_directory_or_in_a_new_one_but_never_over_another_run(
    settings, tmp_path
):
    _, first = run(settings(steps=3, out_dir=str(tmp_path / "first")))
    _, second = run(settings(steps=3, out_dir=str(tmp_path / "second"), seed=7))
    before = content_of(second)
    with pytest.raises(UserError, match="second already holds a run"):
        run({"resume": str(first.last), "out_dir": str(second.path), "steps": 5})
    assert content_of(second) == before
    branched, third = run(
        {"resume": str(first.last), "out_dir": str(tmp_path / "third"), "steps": 5}
    )
    assert branched["step"] == 5 and branched["seed"] == 1337 and third.best.exists()
    assert read_checkpoint(first.last)["state"]["step"] == 3
    own = train(RunConfig.resolve({"resume": str(first.last), "steps": 5}))
    assert own["config"]["out_dir"] == str(first.path) and own["step"] == 5
    for name, tensor in read_checkpoint(first.last)["model"].items():
        assert torch.equal(tensor, read_checkpoint(third.last)["model"][name])


@pytest.mark.slow
def test_a_second_process_in_the_same_directory_is_refused_and_a_lock_left_behind_is_not_in_the_way(
    settings,
):
    given = settings(
        steps=100_000, eval_every=100_000, save_every=100_000, sample_every=0, target_loss=1e-9
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gpt2_nb_utils",
            "train",
            *(f"--{name}={value}" for name, value in given.items()),
        ],
        stderr=subprocess.DEVNULL,
    )
    directory = RunDirectory(given["out_dir"])
    try:
        deadline = time.monotonic() + 120
        while len(rows_of(directory)) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        for more in ({"resume": "auto", "steps": 3}, {"overwrite": True, "steps": 3}):
            with pytest.raises(UserError, match="another process is training there"):
                run(given | more)
    finally:
        process.kill()
        process.wait()
    summary, _ = run(given | {"overwrite": True, "steps": 1})
    assert summary["status"] == "steps_done"


WITHOUT_FLOCK = """
import errno, fcntl, sys
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
from gpt2_nb_utils.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has locks of its own")
def test_a_lock_left_by_a_kill_where_the_system_has_none(settings):
    given = settings(steps=100_000, save_every=1, target_loss=1e-9, sample_every=0)
    words = [sys.executable, "-W", "ignore", "-c", WITHOUT_FLOCK, "train", *flags(given)]
    directory = RunDirectory(given["out_dir"])
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not directory.last.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    lock = directory.path / ".lock"
    pid, _, *more = lock.read_text(encoding="utf-8").splitlines()
    assert int(pid) == process.pid

    def again() -> subprocess.CompletedProcess:
        resumed = flags({**given, "resume": "auto", "steps": 100_000, "target_loss": 50})
        return subprocess.run([*words[:6], *resumed], capture_output=True, text=True)

    # On another machine nobody can tell whether that process still runs.
    lock.write_text("\n".join([pid, "colab-7", *more, ""]), encoding="utf-8")
    os.utime(lock, (time.time() - 8000,) * 2)
    done = again()
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"(process {pid} on machine colab-7, for 2 h 13 min; if it is" in done.stderr
    assert f"delete {lock})" in done.stderr
    lock.unlink()
    assert again().returncode == 0


@pytest.mark.slow
def test_each_command_that_went_on_with_a_run_is_recorded(settings):
    def command(*words):
        subprocess.run(
            [sys.executable, "-m", "gpt2_nb_utils", "train", *words],
            check=True,
            capture_output=True,
        )

    given = settings(steps=2)
    command(*(f"--{name}={value}" for name, value in given.items()))
    command(f"--out_dir={given['out_dir']}", "--resume=auto", "--steps=4")
    summary = RunDirectory(given["out_dir"]).read_summary()
    assert "--steps=2" in summary["command"]
    assert summary["command"].startswith(
        f"{Path(sys.executable).name} -m gpt2_nb_utils train"
    )  # not where it is kept
    (resumed,) = summary["resumed_with"]
    assert resumed["step"] == 2 and resumed["command"].endswith("--resume=auto --steps=4")


# best.pt and the summary speak of the same model


def test_best_pt_is_the_model_whose_loss_the_summary_calls_best_even_when_training_only_hurts(
    settings,
):
    summary, directory = run(settings(steps=6, eval_every=2, lr=5.0, clip_grad=0))
    recorded = read_checkpoint(directory.best)["state"]
    assert summary["train_loss"] > 10.9  # it did hurt
    assert (summary["best_train_loss"], summary["best_train_loss_step"]) == (
        recorded["train_loss"],
        recorded["step"],
    )


def test_a_best_model_that_is_younger_than_the_last_checkpoint_is_kept_in_the_books(settings):
    _, directory = run(settings(steps=3))
    last = directory.last.read_bytes()
    summary, _ = run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    assert summary["best_train_loss_step"] == 6
    directory.last.write_bytes(last)  # as if killed after best.pt of step 6 and before its last.pt
    summary, _ = run({"out_dir": str(directory.path), "resume": "auto", "steps": 4, "lr": 0.0})
    assert summary["best_train_loss_step"] == read_checkpoint(directory.best)["state"]["step"] == 6


def test_an_estimate_cannot_hide_a_target_that_the_batches_say_is_near(settings, monkeypatch):
    monkeypatch.setattr(
        loop,
        "training_loss",
        lambda model, windows, precision, n_windows=0, *_: (
            TrainingLoss(0.5, n_windows, 64, n_windows)
            if n_windows
            else TrainingLoss(0.09, "all", 511, 8)
        ),
    )
    monkeypatch.setattr(loop, "training_step", lucky(loop.training_step))
    summary, _ = run(settings(steps=3, eval_windows=2))
    assert summary["status"] == "target_reached" and summary["train_loss_windows"] == "all"


def test_sample_openings_come_from_the_tokens_that_the_model_sees(settings, text_file):
    _, directory = run(settings(steps=1, max_tokens=200, num_prompts=4))
    seen = text_file.read_text(encoding="utf-8")[: 200 * 8]
    for sample in history(read_events(directory.events)).samples[1:]:
        assert seen.index(sample.prompt) < 200 * 5


def test_a_text_shorter_than_max_tokens_is_no_excerpt(settings, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A short text, to be sure. " * 10, encoding="utf-8")
    summary, directory = run(settings(steps=1, input_file=str(path), max_tokens=5000))
    assert summary["config"]["max_tokens"] == 0 and "whole text" in directory.log.read_text(
        encoding="utf-8"
    )
