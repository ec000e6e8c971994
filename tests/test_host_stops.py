"""What a host sends to stop a run is one request, at every moment before the first checkpoint; a person may be impatient."""

import os
import signal
import subprocess
import sys

import pytest
from run_command import clone
from test_events import assert_same_records, run

from gpt2_nb_utils.results.facts import read_facts
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import open_run
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
MOMENTS = [("training_loss", 1), ("training_step", 1), ("training_step", 2)]
"""The function that is called, and how often by then."""
ONE_REQUEST = [
    (INT,),  # Ctrl-C, a stop button
    (TERM,),  # docker, Slurm
    (HUP,),
    (HUP, HUP),  # a closing terminal and the shell in it
    (INT, TERM),  # Jupyter and papermill stop a kernel
    (TERM, INT),  # a service manager stops `run`, which interrupts its kernel
    (TERM, HUP),  # systemd
    (HUP, TERM, HUP),  # a logout that ends the session
]
IMPATIENT = [(INT, INT), (TERM, TERM), (HUP, INT), (INT, TERM, INT), (TERM, INT, INT)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {}


@pytest.fixture
def stop_at(monkeypatch):
    """Sends signals at a moment of a training, and once only."""

    def prepare(numbers, name, call, module=loop):
        function, calls = getattr(module, name), []

        def watched(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    return prepare


def assert_continues(given, directory, undisturbed):
    """The same command ends as if nothing had been."""
    run({**given, "resume": "auto"})
    if "run" not in undisturbed:
        undisturbed["run"] = run({**given, "out_dir": given["out_dir"] + " undisturbed"})
    assert_same_records(directory, undisturbed["run"])


def in_words(numbers):
    return " ".join(signal.Signals(number).name.removeprefix("SIG") for number in numbers)


@pytest.mark.parametrize("name, call", MOMENTS)
@pytest.mark.parametrize("numbers", ONE_REQUEST, ids=in_words)
def test_what_a_host_sends_is_one_request(settings, stop_at, undisturbed, numbers, name, call):
    given = settings(save_every=5)
    stop_at(numbers, name, call)
    try:
        directory = run(given)
    except KeyboardInterrupt:  # pytest would end
        pytest.fail("left at once")
    summary = directory.read_summary()
    assert summary["status"] == "interrupted" and "reason" not in summary
    assert summary["step"] == read_checkpoint(directory.last)["state"]["step"]
    assert_continues(given, directory, undisturbed)


@pytest.mark.parametrize("name, call", MOMENTS)
@pytest.mark.parametrize("numbers", IMPATIENT, ids=in_words)
def test_who_leaves_at_once_can_start_again(settings, stop_at, undisturbed, numbers, name, call):
    given = settings(save_every=5)
    stop_at(numbers, name, call)
    with pytest.raises(KeyboardInterrupt):
        run(given)
    directory = RunDirectory(given["out_dir"])
    summary = directory.read_summary()
    assert summary["status"] == "interrupted" and not directory.last.exists()
    if summary["step"]:
        assert summary["reason"] == "nothing is saved"
        assert "step 1 of 6; nothing is saved" in read_facts(directory).status
    assert_continues(given, directory, undisturbed)


def test_a_status_names_the_step_that_is_saved(settings, stop_at):
    given = settings(save_every=2)
    stop_at((INT, INT), "training_step", 4)
    with pytest.raises(KeyboardInterrupt):
        run(given)
    directory = RunDirectory(given["out_dir"])
    summary, saved = directory.read_summary(), read_checkpoint(directory.last)["state"]["step"]
    assert summary["step"] == 3 and summary["reason"] == f"saved up to step {saved}"
    assert f"interrupted: saved up to step {saved} (at step 3)" in directory.log.read_text()


@pytest.mark.parametrize("name", ["encode", "write_tokens"])
def test_ctrl_c_before_the_first_step_lets_others_in(settings, stop_at, undisturbed, name):
    """In a notebook, the process lives on, and IPython keeps what was raised."""
    given = settings(save_every=5)
    stop_at((INT,), name, 1, open_run)
    with pytest.raises(KeyboardInterrupt) as kept:
        run(given)
    assert_continues(given, RunDirectory(given["out_dir"]), undisturbed)
    assert kept.value is not None


@pytest.mark.slow
def test_papermill_that_loses_patience_saves_the_step(settings, tmp_path, monkeypatch):
    given = settings(steps=50, save_every=50, eval_every=50, sample_every=0)
    slow = f"""if True:
        import signal, time
        from gpt2_nb_utils.config import RunConfig
        from gpt2_nb_utils.training import train as loop
        step, done = loop.training_step, []

        def slow(*args):
            result = step(*args)
            done.append(1)
            if len(done) == 3:
                signal.pause()  # until SIGINT comes
                time.sleep(3)  # SIGTERM comes after 2.5 s
            return result

        loop.training_step = slow
        loop.train(RunConfig.resolve({given!r}))"""
    project = clone(tmp_path / "clone", nb_03=[slow])
    monkeypatch.setenv("PYTHONPATH", str(project))
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "03_training.ipynb", str(tmp_path / "out.ipynb")]
        + ["--execution-timeout", "40"],
        cwd=project / "notebooks",
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "CellTimeoutError" in done.stderr, done.stderr[-2000:]
    directory = RunDirectory(given["out_dir"])
    assert directory.read_summary()["status"] == "interrupted"
    assert read_checkpoint(directory.last)["state"]["step"] == 3
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 4})
    assert directory.read_summary()["step"] == 4
