"""Memory that runs out, in earnest: the allocator itself refuses."""

import subprocess
import sys

import pytest
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import loop, recorder
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.loop import train
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory, step_fits


@pytest.mark.parametrize("module, name, calls, words", [
    (loop, "training_step", 5, "a step with batch_size 4, seq_len 64 and grad_accum 1 does not fit in memory: .*--batch_size 2 --grad_accum 2 .*"
                               "lower --seq_len.*last good checkpoint is kept"),
    (loop, "training_loss", 3, "measuring the training loss .*seq_len 64.* does not fit in memory: .*smaller model"),
    (recorder, "draw_samples", 2, "sampling 8 tokens for 3 prompts at once does not fit in memory: lower --num_prompts"),
])
def test_what_does_not_fit_ends_the_run_with_a_line_and_keeps_the_last_good_checkpoint(settings, monkeypatch, module, name, calls, words):
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_a_real_step_in_too_little_memory_is_one_line_with_status_2(settings):
    code = """if True:
        import resource, sys
        from gpt2_nb_utils.__main__ import main
        from gpt2_nb_utils.training import loop
        step = loop.training_step

        def in_little_memory(*args):
            in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**24, in_use + 2**24))
            return step(*args)

        loop.training_step = in_little_memory
        sys.exit(main(sys.argv[1:]))"""
    given = settings(n_embd=256, n_layer=1, eval_windows=1, sample_every=0)  # gradients of 51 MB for the token embedding alone
    done = subprocess.run([sys.executable, "-c", code, "train", *(f"--{name}={value}" for name, value in given.items())],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: a step with batch_size 4, seq_len 64 and grad_accum 1 does not fit in memory" in done.stderr
    assert RunDirectory(given["out_dir"]).read_summary()["status"] == "failed"


@pytest.mark.parametrize("batch_size, grad_accum, advice", [
    (8, 3, "--batch_size 4 --grad_accum 6 (the same step in less memory) or a lower --seq_len"),
    (9, 2, "--batch_size 1 --grad_accum 18 (the same step"), (1, 5, "start anew with a lower --seq_len"),
])
def test_the_advice_is_a_step_over_as_many_windows_in_smaller_batches(batch_size, grad_accum, advice):
    config = RunConfig.resolve({"preset": "tiny", "batch_size": batch_size, "grad_accum": grad_accum})
    with pytest.raises(UserError) as caught, step_fits(config):
        raise MemoryError
    assert advice in str(caught.value)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), step_fits(RunConfig.resolve({"preset": "tiny"})):
        raise RuntimeError("shapes do not match")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(ValueError("out of memory"))
