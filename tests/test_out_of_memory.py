"""Memory that runs out, in earnest: the allocator itself refuses."""

import subprocess
import sys
import weakref

import pytest
import torch
from run_command import flags

from gpt2_nb_utils import machine
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import out_of_memory
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory, refuse_what_cannot_fit, step_fits
from gpt2_nb_utils.training.train import train


@pytest.mark.parametrize(
    "module, name, calls, words",
    [
        (
            loop,
            "training_step",
            5,
            "a step with batch_size 4, seq_len 64 and grad_accum 1 does not fit in memory: .*--batch_size 2 --grad_accum 2 .*"
            "lower --seq_len.*last good checkpoint is kept",
        ),
        (
            loop,
            "training_loss",
            3,
            "measuring the training loss .*seq_len 64.* does not fit in memory: .*smaller model",
        ),
        (
            loop,
            "draw_samples",
            2,
            "sampling 8 tokens for 3 prompts at once does not fit in memory: lower --num_prompts",
        ),
    ],
)
def test_what_does_not_fit_ends_the_run_with_a_line_and_keeps_the_last_good_checkpoint(
    settings, monkeypatch, module, name, calls, words
):
    real, done = getattr(module, name), []

    def refused(*args, **more):
        done.append(name)
        if len(done) == calls:
            torch.empty(1 << 50)  # 4 PB
        return real(*args, **more)

    monkeypatch.setattr(module, name, refused)
    given = settings(save_every=1)
    with pytest.raises(UserError, match=words) as caught:
        train(RunConfig.resolve(given))
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    directory = RunDirectory(given["out_dir"])
    summary = directory.read_summary()
    last = read_checkpoint(directory.last)["state"]["step"]
    assert summary["status"] == "failed" and summary["step"] - last <= 1 and last >= 4
    assert "failed: " in directory.log.read_text(encoding="utf-8")
    monkeypatch.undo()
    assert train(RunConfig.resolve({"out_dir": given["out_dir"], "resume": "auto"}))["step"] == 6


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits the address space as Linux does"
)
def test_a_real_step_in_too_little_memory_is_one_line_with_status_2(settings):
    code = """if True:
        import resource, sys
        from gpt2_nb_utils.__main__ import main
        from gpt2_nb_utils.training import train as loop
        step = loop.training_step

        def in_little_memory(*args):
            in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**24, in_use + 2**24))
            return step(*args)

        loop.training_step = in_little_memory
        sys.exit(main(sys.argv[1:]))"""
    given = settings(
        n_embd=256, n_layer=1, eval_windows=1, sample_every=0
    )  # gradients of 51 MB for the token embedding alone
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "train",
            *(f"--{name}={value}" for name, value in given.items()),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        "error: a step with batch_size 4, seq_len 64 and grad_accum 1 does not fit in memory"
        in done.stderr
    )
    assert RunDirectory(given["out_dir"]).read_summary()["status"] == "failed"


@pytest.mark.parametrize(
    "batch_size, grad_accum, processes, advice",
    [
        (
            8,
            3,
            1,
            "--batch_size 4 --grad_accum 6 (the same step in less memory) or a lower --seq_len",
        ),
        (9, 2, 1, "--batch_size 1 --grad_accum 18 (the same step"),
        (1, 5, 1, "start a new run with a lower --seq_len"),
        (6, 1, 2, "--batch_size 2 --grad_accum 3 (the same step"),
        (8, 1, 2, "--batch_size 4 --grad_accum 2 (the same step"),
        (2, 3, 2, "start a new run with a lower --seq_len"),
    ],
)
def test_the_advice_is_a_step_over_as_many_windows_in_smaller_batches_that_can_be_shared_out(
    batch_size, grad_accum, processes, advice
):
    config = RunConfig.resolve(
        {"preset": "tiny", "batch_size": batch_size, "grad_accum": grad_accum}
    )
    with pytest.raises(UserError) as caught, step_fits(config, processes):
        raise MemoryError
    assert advice in str(caught.value)


def test_other_errors_pass_as_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes"),
        step_fits(RunConfig.resolve({"preset": "tiny"})),
    ):
        raise RuntimeError("shapes do not match")
    assert is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    )
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_a_step_keeps_for_its_backward_pass_is_at_least_what_is_counted():
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "n_layer": 4,
            "n_embd": 64,
            "n_head": 2,
            "seq_len": 64,
            "block_size": 64,
            "batch_size": 16,
            "amp": "bf16",
        }
    )
    model, kept = GPT2(GPT2Config.of(config), seed=1), {}

    def keep(tensor):
        if not any(tensor.data_ptr() == parameter.data_ptr() for parameter in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(config.batch_size, config.seq_len, dtype=torch.long)
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        h = model.hidden(x)
    counted = out_of_memory._ACTIVATIONS * x.numel() * config.n_embd * config.n_layer
    assert counted < sum(kept.values()) < 3 * counted and h.requires_grad


@pytest.mark.parametrize(
    "limit, processes, local_processes, fits",
    [
        ("max", 1, 1, True),
        ("2000000000", 1, 1, True),
        ("500000000", 1, 1, False),
        ("500000000", 4, 1, True),
        ("500000000", 4, 4, False),
    ],
)
def test_a_container_s_limit_counts_and_processes_of_one_machine_share_it(
    tmp_path, monkeypatch, limit, processes, local_processes, fits
):
    (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(
        machine, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "missing"))
    )
    config = RunConfig.resolve(
        {
            "preset": "tiny",
            "n_layer": 4,
            "n_embd": 64,
            "n_head": 2,
            "seq_len": 64,
            "block_size": 64,
            "batch_size": 2048,
        }
    )
    if fits:
        refuse_what_cannot_fit(config, 1_000_000, torch.device("cpu"), processes, local_processes)
    else:
        with pytest.raises(
            UserError,
            match="a step with batch_size 2048, seq_len 64 and grad_accum .* takes more than .* GB of memory",
        ):
            refuse_what_cannot_fit(
                config, 1_000_000, torch.device("cpu"), processes, local_processes
            )
        refuse_what_cannot_fit(config, 1_000_000, torch.device("cpu"), training=False)


@pytest.mark.parametrize(
    "limit, words",
    [
        (1_000_000, "input_file .*long.txt takes more than 0.0 GB of memory, and there are 0.0"),
        (14_000_000, "a model with .* takes more than .* and there are 0.0 beside the text: lower"),
        (10**9, None),
    ],
)
def test_the_text_counts(settings, tmp_path, monkeypatch, limit, words):
    (tmp_path / "long.txt").write_text("Speak, speak.\n" * 30_000, encoding="utf-8")  # 0.4 MB
    (tmp_path / "memory.max").write_text(str(limit))
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "memory.max"),))
    given = settings(input_file=str(tmp_path / "long.txt"), steps=1, sample_every=0, n_embd=24)
    if words is None:
        assert train(RunConfig.resolve(given))["step"] == 1
        return
    with pytest.raises(UserError, match=words):
        train(RunConfig.resolve(given))
    assert not RunDirectory(given["out_dir"]).path.exists()


IN_LITTLE_MEMORY = """
import resource, sys
import gpt2_nb_utils.training.train
from gpt2_nb_utils.__main__ import main
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
limit = 1024 * size + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("share", [1.5, 3.5])
def test_a_text_in_too_little_memory_is_one_line(settings, tmp_path, share):
    path = tmp_path / "long.txt"
    path.write_text("Before we proceed any further, hear me speak.\n" * 1_000_000)  # 46 MB
    given = flags(settings(input_file=str(path), steps=1, sample_every=0))
    room = str(int(share * path.stat().st_size))
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, room, "train", *given],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "error: the text does not fit in memory: close other programs, or give a shorter one\n"
    )


def test_a_run_that_fails_gives_its_memory_back_while_the_error_is_kept(settings, monkeypatch):
    seen = []

    def refused(learner, micro_batches):
        seen.extend(map(weakref.ref, learner.model.parameters()))
        torch.empty(1 << 50)  # 4 PB

    monkeypatch.setattr(loop, "training_step", refused)
    try:
        train(RunConfig.resolve(settings()))
    except UserError as error:
        kept = error  # as a notebook does
    assert "does not fit in memory" in str(kept) and kept.__traceback__ is not None
    assert seen and not [reference for reference in seen if reference() is not None]


@pytest.mark.parametrize("reserved, fits", [(0, False), (3 * 10**9, True)])
def test_of_a_gpu_what_is_free_counts(monkeypatch, reserved, fits):
    device = torch.device("cuda", 1)
    figures = {"mem_get_info": (10**9, 80 * 10**9), "memory_reserved": reserved}
    for name, figure in {**figures, "memory_allocated": 0}.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda of, figure=figure: figure if of == device else 0
        )
    config = RunConfig.resolve({"preset": "tiny"})
    if fits:
        refuse_what_cannot_fit(config, 124_000_000, device)
    else:
        with pytest.raises(UserError, match="takes more than 1.5 GB of memory.* free on cuda:1"):
            refuse_what_cannot_fit(config, 124_000_000, device)
