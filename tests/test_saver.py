"""Checkpoints in the background: what is in them, how often they are written, and what a kill or a full disk leaves."""

import collections
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import checkpoints
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import Saver, read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.train import train


@pytest.fixture
def files(tmp_path):
    """best.pt and last.pt of an empty folder."""
    return tmp_path / "best.pt", tmp_path / "last.pt"


@pytest.fixture
def written(monkeypatch):
    """What the saver writes, in order: (name, step). Writing waits while the attribute `gate` is cleared."""

    class Written(list):
        gate, begun = threading.Event(), threading.Event()

    log = Written()
    log.gate.set()

    def save(path, content, abandoned, previous):
        log.begun.set()
        assert log.gate.wait(timeout=60)
        log.append((path.name, content["step"]))
        save_checkpoint(path, content, abandoned, previous)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    return log


def at(step: int) -> dict:
    return {"model": {"w": torch.full((3,), float(step))}, "step": step}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- what is written, and when ---------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_there_was_when_it_was_saved_whatever_training_does_meanwhile(
    files, written
):
    weights, average = torch.arange(6.0).view(2, 3), torch.tensor([1, 2], dtype=torch.uint8)
    content = {
        "model": collections.OrderedDict(w=weights),
        "optimizer": [{"state": {0: {"mean": average}}, "betas": (0.9, 0.95)}],
        "state": {"step": 7},
        "step": 7,
    }
    expected = {
        "format": 2,
        "model": {"w": weights.clone()},
        "optimizer": [{"state": {0: {"mean": average.clone()}}, "betas": (0.9, 0.95)}],
        "state": {"step": 7},
        "step": 7,
    }
    written.gate.clear()
    with Saver(files) as saver:
        saver.save(files[1], content)  # returns although nothing can be written yet
        weights.add_(1)
        average.zero_()
        content["state"]["step"] = 8
        written.gate.set()
    torch.testing.assert_close(read_checkpoint(files[1]), expected, rtol=0, atol=0)


def test_a_checkpoint_that_is_not_due_waits_the_newest_takes_its_place_and_the_end_writes_it(
    files, written
):
    with Saver(files, share=1e-9) as saver:
        for step in (1, 2, 3):
            saver.save(files[1], at(step))
            saver.save(files[0], at(step))
            if step == 1:
                wait_until(lambda: len(written) == 1)
    assert written[0][1] == 1 and written[1:] == [
        ("best.pt", 3),
        ("last.pt", 3),
    ]  # the first is due at once
    assert read_checkpoint(files[1])["step"] == read_checkpoint(files[0])["step"] == 3


def test_at_the_end_of_a_run_nothing_waits_for_its_share_while_the_rest_is_done(files, written):
    with Saver(files, share=1e-9) as saver:
        saver.save(files[1], at(1))
        wait_until(lambda: len(written) == 1)
        saver.save(files[0], at(2))
        saver.save(files[1], at(2), now=True)
        wait_until(lambda: len(written) == 3)  # nobody flushes, and the context is not left
        assert written[1:] == [("best.pt", 2), ("last.pt", 2)]


def test_of_two_that_wait_best_is_written_first_whichever_was_saved_first(files, written):
    with Saver(files, share=1e-9) as saver:
        saver.save(files[0], at(1))
        wait_until(lambda: written)
        saver.save(files[1], at(2))
        saver.save(files[0], at(3))
        saver.save(files[1], at(4))
    assert written == [("best.pt", 1), ("best.pt", 3), ("last.pt", 4)]


def test_writing_takes_no_more_than_its_share_of_the_time(files, monkeypatch):
    spent = []

    def slow(path, content, abandoned, previous):
        begun = time.monotonic()
        time.sleep(0.1)
        spent.append(time.monotonic() - begun)

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    with Saver(files, share=0.2) as saver:
        begun = time.monotonic()
        while len(spent) < 4 and time.monotonic() - begun < 120:
            saver.save(files[1], at(1))
            time.sleep(0.01)
        in_time, elapsed, n_writes = sum(spent), time.monotonic() - begun, len(spent)
    assert in_time <= 0.2 * elapsed + 2 * max(
        spent
    )  # a write that takes longer than the one before may overdraw
    assert n_writes >= 4  # but it does write


def test_a_copy_is_made_in_the_memory_of_the_one_before(files, monkeypatch):
    places = []
    monkeypatch.setattr(
        checkpoints,
        "save_checkpoint",
        lambda path, content, abandoned, previous: places.append(
            [content["model"]["w"].data_ptr(), content["optimizer"][0]["mean"].data_ptr()]
        ),
    )
    with Saver(files) as saver:
        for _ in range(4):
            saver.save(
                files[1],
                {"model": {"w": torch.ones(1000)}, "optimizer": [{"mean": torch.ones(1000)}]},
            )
            saver.flush()
    assert len(places) == 4 and places == [places[0]] * 4


def test_a_file_that_is_being_written_is_written_whole_before_a_newer_copy_is_made(files, written):
    written.gate.clear()
    with Saver(files, share=1.0) as saver:
        saver.save(files[1], at(1))
        assert written.begun.wait(timeout=60)
        threading.Timer(0.3, written.gate.set).start()
        saver.save(files[1], at(2))
        assert written.gate.is_set()
    assert written == [("last.pt", 1), ("last.pt", 2)]


def test_without_memory_for_a_copy_training_waits_for_the_file(files, written, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "_copy", lambda content, before: torch.empty(1 << 50)
    )  # 4 PB: refused for certain
    weights = torch.ones(2)
    with Saver(files, share=1e-9) as saver:
        saver.save(files[1], {"model": {"w": weights}, "step": 1})
        assert written == [("last.pt", 1)]
        weights.zero_()
        saver.save(files[0], at(2))
        assert written == [("last.pt", 1), ("best.pt", 2)]
    assert read_checkpoint(files[1])["model"]["w"].tolist() == [1, 1]


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_write_that_fails_is_one_line_in_the_training_and_what_builds_on_it_is_not_written(files):
    resource = pytest.importorskip("resource")
    save_checkpoint(files[0], at(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        UserError, match="best.pt cannot be written .*File too large.*previous checkpoint is whole"
    ):
        with Saver(files) as saver:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a disk that is full
            try:
                saver.save(files[0], {"model": {"w": torch.ones(1_000_000)}})
                wait_until(lambda: saver._failure)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            saver.save(files[1], at(2))
    assert read_checkpoint(files[0])["step"] == 1
    assert [path.name for path in files[0].parent.iterdir()] == ["best.pt"]


def test_what_waits_is_written_when_training_fails(settings):
    def fail(row):
        if row.step == 5:
            raise ZeroDivisionError

    given = settings(save_every=1, eval_every=2)
    with pytest.raises(ZeroDivisionError):
        train(RunConfig.resolve(given), on_row=fail)
    directory = RunDirectory(given["out_dir"])
    assert directory.read_summary()["status"] == "failed"
    assert (
        read_checkpoint(directory.best)["state"]["step"],
        read_checkpoint(directory.last)["state"]["step"],
    ) == (4, 4)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_stop_while_samples_are_drawn_is_saved_at_the_step_where_it_came(settings, monkeypatch):
    given, draw = settings(steps=6, sample_every=2, save_every=6), loop.draw_samples

    def stopped(model, config, prompts, step, final):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return draw(model, config, prompts, step, final)

    monkeypatch.setattr(loop, "draw_samples", stopped)
    assert train(RunConfig.resolve(given))["status"] == "interrupted"
    assert read_checkpoint(RunDirectory(given["out_dir"]).last)["state"]["step"] == 4


def test_samples_of_a_step_that_is_saved_are_all_there_or_are_drawn_again(settings, monkeypatch):
    given, real = settings(steps=6, sample_every=6, save_every=6), Path.open

    def on_a_full_disk(path, mode="r", *args, **more):
        if path.name == "samples.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *args, **more)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(UserError, match="No space left on device|free disk space"):
        train(RunConfig.resolve(given))
    monkeypatch.undo()
    directory = RunDirectory(given["out_dir"])
    assert read_checkpoint(directory.last)["state"]["step"] == 6
    assert (
        train(RunConfig.resolve({"out_dir": given["out_dir"], "resume": "auto"}))["status"]
        == "steps_done"
    )
    assert [sample.final for sample in history(read_events(directory.events)).samples] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_line_and_status_2(settings):
    given = settings(steps=2000, sample_every=0, target_loss=1e-9, eval_every=1, save_every=2000)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))\n"
        "from gpt2_nb_utils.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    pytest.importorskip("resource")
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
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "error: " in done.stderr
        and "best.pt cannot be written ([Errno 27] File too large)" in done.stderr
    )
    directory = RunDirectory(given["out_dir"])
    assert directory.read_summary()["status"] == "failed"
    assert directory.read_summary()["step"] < 2000  # said when it happened, not at the end
    assert list(directory.last.parent.iterdir()) == []


# -- stops and kills -------------------------------------------------------------------------------------------------

SLOW = """
import functools, sys, time
from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.training import checkpoints
from gpt2_nb_utils.training import train as loop
write = checkpoints._Stream.write
checkpoints._Stream.write = lambda self, data: time.sleep(0.002) or write(self, data)
loop.Saver = functools.partial(loop.Saver, share=1.0)
sys.exit(main(sys.argv[1:]))
"""
"""The command line, with checkpoints that take a second or more, one after the other: whenever it ends, one is half written."""


def start_slow(given: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW,
            "train",
            *(f"--{name}={value}" for name, value in given.items()),
        ],
        stderr=subprocess.DEVNULL,
    )


def half_written(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_run_killed_in_the_midst_of_writing_goes_on_bit_for_bit(settings, tmp_path, name):
    given = settings(
        steps=100_000, eval_every=2, save_every=1, sample_every=0, target_loss=1e-9, lr=1e-3
    )
    directory = RunDirectory(given["out_dir"])
    process = start_slow(given)
    try:
        wait_until(
            lambda: (
                process.poll() is not None
                or directory.last.exists()
                and directory.best.exists()
                and half_written(getattr(directory, name))
            )
        )
    finally:
        process.kill()
        process.wait()
    assert half_written(getattr(directory, name))
    last, best = read_checkpoint(directory.last)["state"], read_checkpoint(directory.best)["state"]
    assert best["step"] >= (
        last["best_train_loss_step"] or 0
    )  # the best that last.pt speaks of is there
    steps = max(last["step"], best["step"]) + 3
    train(RunConfig.resolve({"out_dir": given["out_dir"], "resume": "auto", "steps": steps}))
    whole = RunDirectory(tmp_path / "whole")
    train(RunConfig.resolve({**given, "out_dir": str(whole), "steps": steps, "save_every": 1000}))
    for file in ("best", "last"):
        ours, theirs = (
            read_checkpoint(getattr(directory, file)),
            read_checkpoint(getattr(whole, file)),
        )
        assert all(
            torch.equal(tensor, theirs["model"][key]) for key, tensor in ours["model"].items()
        )
        assert ours["state"]["best_train_loss_step"] == theirs["state"]["best_train_loss_step"]
    rows = [
        [(row.step, row.loss, row.train_loss) for row in history(read_events(run.events)).rows]
        for run in (directory, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == steps + 1
    assert half_written(directory.best) == half_written(directory.last) == []


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once_with_whole_files_and_none_half_written(settings):
    given = settings(steps=100_000, eval_every=100_000, save_every=1, sample_every=0)
    directory = RunDirectory(given["out_dir"])
    process = start_slow(given)
    wait_until(
        lambda: (
            process.poll() is not None or directory.last.exists() and half_written(directory.last)
        )
    )
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert half_written(directory.last) == []
    assert directory.read_summary()["status"] == "interrupted"
    assert 1 <= read_checkpoint(directory.last)["state"]["step"] <= directory.read_summary()["step"]


def test_ctrl_c_drops_what_is_being_written_and_what_waits(files, monkeypatch):
    save_checkpoint(files[1], at(1))
    write = checkpoints._Stream.write
    monkeypatch.setattr(
        checkpoints._Stream, "write", lambda self, data: time.sleep(0.05) or write(self, data)
    )
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with Saver(files) as saver:
            saver.save(
                files[1], {"model": {str(i): torch.ones(10) for i in range(1000)}, "step": 2}
            )  # minutes
            wait_until(lambda: half_written(files[1]))
            saver.save(files[0], at(2))
            raise KeyboardInterrupt
    assert time.monotonic() - begun < 30
    assert read_checkpoint(files[1])["step"] == 1 and os.listdir(files[1].parent) == ["last.pt"]
