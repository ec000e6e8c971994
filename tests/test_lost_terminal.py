"""A terminal that closes stops a run like SIGTERM; a display that nobody can see any more ends none."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import PROJECT, rows_of
from run_command import TRAINING, clone, flags

from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.stop_request import StopRequest

needs_hangup = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
ENDLESS = {
    "steps": 5000,
    "target_loss": 1e-9,
    "eval_every": 5000,
    "save_every": 5000,
    "sample_every": 0,
}


def start(name, given, cwd=PROJECT, **streams):
    words = [sys.executable, "-m", "gpt2_nb_utils", name, *flags(given)]
    return subprocess.Popen(words, cwd=cwd, **streams)


def wait_for_rows(directory, process, terminal, n=3):
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 300
    while not directory.metrics.exists() or len(rows_of(directory)) < n:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
        with contextlib.suppress(OSError):  # nothing new
            os.read(terminal, 100_000)


def assert_saved(directory):
    summary = directory.read_summary()
    assert summary["status"] == "interrupted" and summary["step"] >= 2
    assert read_checkpoint(directory.last)["state"]["step"] == summary["step"]


# A progress line


class Gone:
    """A stream whose other end is gone, or that is closed."""

    def __init__(self, error, terminal):
        self.error, self.terminal, self.asked = error, terminal, 0

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.asked += 1
        raise self.error

    def flush(self):
        raise self.error

    def fileno(self):
        raise ValueError("no file")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "pipe"), OSError(5, "pty"), ValueError("closed")]
)
def test_a_line_that_nobody_can_see_is_drawn_no_more(monkeypatch, error, terminal):
    stream = Gone(error, terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(3, "work")
    progress._interval = 0
    for done in range(1, 4):
        progress.update(done)
    progress.close("done")
    assert stream.asked == 1


def test_a_program_without_stderr_has_no_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    progress = Progress(2, "work")
    progress.update(1)
    progress.close()
    assert capsys.readouterr().out == ""


def test_a_pipe_that_closes_leaves_the_exit_status_alone():
    code = """if True:
        import sys
        from gpt2_nb_utils.progress import Progress
        progress = Progress(2, "work")
        progress.close("first")
        sys.stdin.read()
        progress.close("second")
        print("work done", file=sys.stderr)"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "first" in process.stderr.readline()
    process.stderr.close()
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_line_in_a_log_says_what_was_done(capsys):
    progress = Progress(1200, "training", done=400)
    progress.update(1200, "by hand", loss="3.2")
    progress.close("steps done")
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"training  1,200/1,200  loss 3\.2  by hand  took \d:\d\d  steps done\n", said
    )


# Signals


@needs_hangup
def test_a_second_hangup_does_not_leave_at_once_and_a_second_interrupt_does():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop and stop.signal_number == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@needs_hangup
def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


# Whole runs


@pytest.mark.slow
@needs_hangup
@pytest.mark.parametrize("name", ["train", "run"])
def test_a_closed_terminal_saves_and_stops(settings, tmp_path, monkeypatch, name):
    import fcntl
    import pty
    import termios

    project = clone(tmp_path / "clone", TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    given = settings(**ENDLESS)
    directory = RunDirectory(given["out_dir"])
    ours, its = pty.openpty()
    process = start(
        name,
        given,
        project,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    wait_for_rows(directory, process, ours)
    os.close(ours)  # the system sends SIGHUP, and whatever is written now fails
    assert process.wait(120) == 128 + signal.SIGHUP
    assert_saved(directory)
    assert name == "train" or (directory.report / "index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
def test_a_training_goes_on_to_its_end_where_nobody_reads_what_it_says(settings, stream):
    given = settings(steps=30)
    names = ["stdout", "stderr"] if stream == "both" else [stream]
    process = start("train", given, **dict.fromkeys(names, subprocess.PIPE))
    for name in names:
        getattr(process, name).close()
    assert process.wait(120) == 0
    assert RunDirectory(given["out_dir"]).read_summary()["status"] == "steps_done"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams")
def test_a_training_goes_on_to_its_end_without_streams(settings):
    given = settings()
    words = [sys.executable, "-m", "gpt2_nb_utils", "train", *flags(given)]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], cwd=PROJECT)
    assert done.returncode == 0
    assert RunDirectory(given["out_dir"]).read_summary()["status"] == "steps_done"
