"""Runs that are killed or asked to stop at any moment end as if nobody had touched them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import rows_of
from run_command import TRAINING, clone, command, flags

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.train import train

PROJECT = Path(__file__).parents[1]


def run(settings: dict, **more) -> RunDirectory:
    train(RunConfig.resolve(settings), **more)
    return RunDirectory(settings["out_dir"])


def cells_of(directory: RunDirectory) -> list[list[str]]:
    """The metrics without what the clock says."""
    return [
        line.split(",")[:8] for line in directory.metrics.read_text(encoding="utf-8").splitlines()
    ]


def assert_same_end(directory: RunDirectory, reference: RunDirectory) -> None:
    assert cells_of(directory) == cells_of(reference)
    assert directory.samples.read_bytes() == reference.samples.read_bytes()
    for name in ("best", "last"):
        ours, theirs = (
            read_checkpoint(getattr(each, name))["model"] for each in (directory, reference)
        )
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the soak forks its processes")
def test_runs_killed_at_random_moments_and_while_writing_each_checkpoint_end_bit_for_bit_as_if_left_alone():
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak_kills", "--kills", "6", "--seed", "4"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("6 kills with seed 4")
        and "runs ended as the ones left alone" in done.stdout
    )
    for name in ("best.pt", "last.pt"):
        assert f"while {name} was written" in done.stdout


def test_a_run_killed_between_the_best_model_and_the_last_checkpoint_reaches_its_target_again(
    settings, tmp_path
):
    given = settings(
        lr=0.03,
        steps=60,
        target_loss=9.5,
        eval_every=2,
        eval_windows=0,
        save_every=100,
        sample_every=2,
    )
    whole = run({**given, "out_dir": str(tmp_path / "whole")})
    assert whole.read_summary()["status"] == "target_reached"
    directory = run({**given, "steps": 2})
    end = {"resume": "auto", "steps": 60}
    shutil.copytree(directory.path, tmp_path / "further")
    further = run({**end, "out_dir": str(tmp_path / "further")})
    shutil.copy(further.best, directory.best)  # which is written first; then came the kill
    run({**end, "out_dir": given["out_dir"]})
    assert_same_end(directory, whole)
    assert directory.read_summary()["status"] == "target_reached"


def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_does_not_take_the_old_best_model_for_its_own(
    settings, tmp_path, capsys
):
    run(settings(out_dir=str(tmp_path / "other"), lr=0.03))
    given = settings(steps=3)
    directory = run(given)
    directory.last.unlink()
    shutil.copy(
        tmp_path / "other" / "checkpoints" / "best.pt", directory.best
    )  # a lower loss than this one will reach
    lines = directory.events.read_text(encoding="utf-8").splitlines(keepends=True)
    directory.events.write_text("".join(lines[:-1]), encoding="utf-8")  # killed: it has no end
    old = directory.best.read_bytes()
    run({"out_dir": given["out_dir"], "resume": "auto"})
    aside = directory.best.with_name("set_aside_best.pt")
    assert f"best.pt is kept as {aside}" in capsys.readouterr().err
    assert aside.read_bytes() == old
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 4})
    assert_same_end(
        directory, run({**given, "out_dir": str(tmp_path / "whole"), "steps": 4, "sample_every": 3})
    )


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_saves_the_step_and_leaves_out_nothing_that_the_resumed_run_would_have_written(
    settings, tmp_path, number
):
    whole = run(settings(out_dir=str(tmp_path / "whole")))
    given = settings()
    directory = run(
        given, on_row=lambda row: row.step == 3 and os.kill(os.getpid(), number)
    )  # a step with samples to draw
    assert (
        directory.read_summary()["status"] == "interrupted"
        and read_checkpoint(directory.last)["state"]["step"] == 3
    )
    run({"out_dir": given["out_dir"], "resume": "auto"})
    assert [sample.step for sample in history(read_events(directory.events)).samples] == [3] * 3 + [
        6
    ] * 4  # and the greedy one at the end
    assert_same_end(directory, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_the_exit_status_tells_the_signal_and_a_second_one_leaves_at_once(
    settings, capfd, number, status, times
):
    code = f"""if True:
        import os, signal, sys
        from gpt2_nb_utils.__main__ import main
        from gpt2_nb_utils.training import train as loop
        step, done = loop.training_step, []

        def stopped(*args):
            result = step(*args)
            done.append(1)
            for _ in range({times} if len(done) == 3 else 0):
                os.kill(os.getpid(), {int(number)})
            return result

        loop.training_step = stopped
        sys.exit(main(sys.argv[1:]))"""
    given = settings(steps=1000, eval_every=1000, save_every=1000, sample_every=0)
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
    directory = RunDirectory(given["out_dir"])
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert directory.read_summary()["status"] == "interrupted"
    if times == 1:
        assert (
            directory.read_summary()["step"]
            == read_checkpoint(directory.last)["state"]["step"]
            == 3
        )
    else:
        assert not directory.last.exists()  # nothing was waited for


# The notebooks


@pytest.mark.slow
def test_after_its_kernel_is_killed_a_run_goes_on_at_the_notebook_that_broke_off(
    tmp_path, settings, monkeypatch
):
    given = settings(steps=4000, eval_every=1000, save_every=1, sample_every=0, target_loss=1e-9)
    project = clone(
        tmp_path / "clone",
        TRAINING,
        nb_01=["print('once')"],
        nb_02=["print('once')"],
        nb_04=["print('the end')"],
    )
    monkeypatch.setenv("PYTHONPATH", str(project))
    directory = RunDirectory(given["out_dir"])
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_nb_utils", "run", *flags(given)],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not directory.last.exists() or len(rows_of(directory)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (kernel,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "ipykernel_launcher" in " ".join(child.cmdline())
    ]
    kernel.kill()
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(
        "error: 03_training.ipynb.*[Kk]ernel died.*--resume auto goes on from the last checkpoint",
        complained,
    )
    first = [
        (directory.notebooks / f"{name}.ipynb").read_bytes()
        for name in ("01_tokenization", "02_model")
    ]
    assert not (directory.notebooks / "04_results.ipynb").exists()
    step = read_checkpoint(directory.last)["state"]["step"]
    done = command(
        "run", f"--out_dir={directory}", "--resume=auto", f"--steps={step + 2}", cwd=project
    )
    assert done.returncode == 0, done.stderr
    summary = directory.read_summary()
    assert (summary["status"], summary["step"]) == ("steps_done", step + 2)
    assert [
        (directory.notebooks / f"{name}.ipynb").read_bytes()
        for name in ("01_tokenization", "02_model")
    ] == first
    assert "the end" in (directory.notebooks / "04_results.ipynb").read_text(encoding="utf-8")
    assert [row.step for row in history(read_events(directory.events)).rows] == list(
        range(step + 3)
    )


# Two at once


@pytest.mark.slow
def test_nobody_else_gets_into_the_directory_of_a_run_between_its_trainings_but_its_own_processes_do(
    settings,
):
    given = settings(steps=1)
    directory = RunDirectory(given["out_dir"])
    code = "import sys; from gpt2_nb_utils.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def another(**more) -> subprocess.CompletedProcess:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name != "GPT2_NB_UTILS_RUN" or more.get("own")
        }
        words = [f"--{name}={value}" for name, value in {**given, "resume": "auto"}.items()]
        return subprocess.run(
            [sys.executable, "-c", code, "train", *words],
            capture_output=True,
            text=True,
            env=environment,
        )

    claim = directory.claim()
    with directory.held_by_run():  # as the command `run` does, before its first kernel starts
        claim.release()
        refused = another()
        assert refused.returncode == 2 and "another process is training there" in refused.stderr
        around = os.environ.pop("GPT2_NB_UTILS_RUN")
        with pytest.raises(
            UserError, match="already holds a run|another process is training there"
        ):
            directory.claim(overwrite=True)
        os.environ["GPT2_NB_UTILS_RUN"] = around
        assert another(own=True).returncode == 0
    assert "GPT2_NB_UTILS_RUN" not in os.environ
    directory.claim(resume=True).release()
