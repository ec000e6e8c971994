"""Freed memory that stays with the process, counted by the pages that the kernel hands out."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
if "keep" in sys.argv:
    from gpt2_nb_utils.large_blocks import keep_large_blocks
    assert keep_large_blocks()
import torch

def use():
    torch.zeros(64 * 2**18)  # 64 MiB

def faults_of(work):
    work()
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

def in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

print(faults_of(use), faults_of(in_a_thread))
"""


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not platform.libc_ver()[0],
    reason="only glibc can be told to keep memory",
)


def test_large_blocks_are_not_fetched_from_the_system_again_and_again_in_any_thread():
    def faults(*words) -> list[int]:
        plain = {
            name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"
        }  # set by a test before this one
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, *words], env=plain, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    fetched = min(faults())
    assert fetched > 4 * 30  # mapped anew each time, in pages of 2 MiB at the largest
    assert max(faults("keep")) < fetched / 10


def test_three_gibibytes_that_are_freed_stay():
    code = """
import ctypes
from gpt2_nb_utils.large_blocks import keep_large_blocks
assert keep_large_blocks()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [c.malloc(2**29) for _ in range(6)]  # never touched: it takes no memory
for block in blocks:
    c.free(block)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) > 3 * 2**20, done.stderr  # in kB


@pytest.mark.slow
def test_a_training_step_of_train_takes_its_memory_from_the_step_before(text_file, tmp_path):
    script = """
import resource, sys
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.training.train import train
config = RunConfig.resolve({"preset": "tiny", "input_file": sys.argv[1], "out_dir": sys.argv[2], "device": "cpu", "max_tokens": 512,
                            "n_layer": 1, "n_head": 1, "n_embd": 192, "batch_size": 2, "steps": 8, "log_every": 1,
                            "eval_every": 100, "eval_windows": 2, "save_every": 100, "sample_every": 0})
train(config, on_row=lambda row: print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(text_file), str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    counts = [
        int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("faults")
    ]
    assert len(counts) == 9, done.stderr[-2000:]
    in_a_step = [
        after - before for before, after in zip(counts[3:-1], counts[4:])
    ]  # the last one saves
    pages = 50257 * 192 * 4 // 4096  # of one gradient of the token embedding
    assert sorted(in_a_step)[len(in_a_step) // 2] < pages / 4


def test_freed_memory_that_stays_unused_is_given_back_before_it_adds_up():
    code = """
import ctypes
from gpt2_nb_utils.large_blocks import FreedMemory, _resident, keep_large_blocks
assert keep_large_blocks()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
freed = FreedMemory()
assert not freed.give_back()  # where it begins
blocks = []
for _ in range(20):
    blocks.append(c.malloc(2**26))
    ctypes.memset(blocks[-1], 1, 2**26)
    c.malloc(64)  # stays, between two large ones
for block in blocks:
    c.free(block)
print(_resident() >> 20)
assert freed.give_back() and not freed.give_back()
print(_resident() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 20 * 64 and after < before - 19 * 64
