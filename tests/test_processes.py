"""Several processes that train one model, started as a user starts them: the same losses, one writer, one line when one dies."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import rows_of

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.distributed import DistContext
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.train import train


def torchrun(given: dict, *program: str) -> list[str]:
    """The command that trains with two processes, by the package's own command or by another program."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",  # which finds a free port
        *(program or ("-m", "gpt2_nb_utils")),
        "train",
        *(f"--{name}={value}" for name, value in given.items()),
    ]


def train_with_two(given: dict, *program: str) -> subprocess.CompletedProcess:
    return subprocess.run(torchrun(given, *program), capture_output=True, text=True, timeout=300)


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def files_of(directory: RunDirectory) -> set[str]:
    return {
        str(path.relative_to(directory.path))
        for path in directory.path.rglob("*")
        if path.is_file()
    }


def assert_same_losses(directory: RunDirectory, reference: RunDirectory) -> None:
    rows, expected = (
        history(read_events(directory.events)).rows,
        history(read_events(reference.events)).rows,
    )
    assert [(row.step, row.tokens) for row in rows] == [(row.step, row.tokens) for row in expected]
    for name, tolerance in {
        "loss": 1e-4,
        "train_loss": 1e-4,
        "lr": 0,
        "grad_norm": 1e-3,
        "loss_scale": 0,
    }.items():
        figures, wanted = ([getattr(row, name) for row in run] for run in (rows, expected))
        assert [figure is None for figure in figures] == [figure is None for figure in wanted], name
        assert [figure or 0 for figure in figures] == pytest.approx(
            [figure or 0 for figure in wanted], rel=tolerance
        ), name


# The same training


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_one_goes_on_with_their_run(settings, tmp_path):
    # 459 targets: the last of the 8 windows has 11, and two micro-batches are the whole text, so each step meets it.
    given = settings(max_tokens=460, grad_accum=2, eval_windows=3)
    train(RunConfig.resolve({**given, "out_dir": str(tmp_path / "one")}))
    one, two = RunDirectory(tmp_path / "one"), RunDirectory(given["out_dir"])

    done = train_with_two({**given, "steps": 3})
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("steps done at step 3") == 1 and done.stderr.count(" took ") == 1
    )  # one of them speaks
    assert files_of(two) == files_of(one)
    assert [
        (sample.step, sample.prompt_index) for sample in history(read_events(two.events)).samples
    ] == [(3, n) for n in (1, 2, 3, 4)]
    log = two.log.read_text(encoding="utf-8")
    assert log.count("step 1  loss ") == log.count("new run in ") == 1 and "2 processes" in log
    summary = two.read_summary()
    assert summary["processes"] == two.read_json(two.environment)["processes"] == 2
    assert (
        " -m torch.distributed.run --nproc_per_node=2" in summary["command"]
        and " train " in summary["command"]
    )

    resumed = train(RunConfig.resolve({"out_dir": given["out_dir"], "resume": "auto", "steps": 6}))
    assert resumed["processes"] == 1 and resumed["status"] == "steps_done"
    assert_same_losses(two, one)


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one_with_muon_and_a_grad_scaler(settings, tmp_path):
    given = settings(
        max_tokens=200,
        optimizer="muon",
        lr=0.02,
        embedding_lr=0.01,
        vector_lr=0.01,
        amp="fp16",
        steps=4,
        eval_every=2,
        eval_windows=0,
        save_every=2,
        sample_every=0,
    )
    train(RunConfig.resolve({**given, "out_dir": str(tmp_path / "one")}))
    train(RunConfig.resolve({**given, "steps": 2}))
    done = train_with_two({"out_dir": given["out_dir"], "resume": "auto", "steps": 4})
    assert done.returncode == 0, done.stderr
    assert_same_losses(RunDirectory(given["out_dir"]), RunDirectory(tmp_path / "one"))


@pytest.mark.slow
def test_processes_ask_for_huge_pages_before_they_exchange_anything(
    settings, tmp_path, monkeypatch
):
    monkeypatch.delenv(
        "THP_MEM_ALLOC_ENABLE", raising=False
    )  # a test in this process may have set it
    code = """
connect = distributed.dist.init_process_group
def connected(*args):
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    connect(*args)
distributed.dist.init_process_group = connected
"""
    done = train_with_two(settings(steps=1), injected(tmp_path, code))
    assert done.returncode == 0, done.stderr


# What cannot work is said before anything is written


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_is_refused_in_one_line_and_nothing_is_written(settings):
    given = settings(batch_size=3)
    done = train_with_two(given)
    (line,) = errors(done.stderr)
    assert (
        "batch_size 3 cannot be shared evenly by 2 processes" in line and "--batch_size 4" in line
    )
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr, done.stderr
    assert not os.path.exists(given["out_dir"])


@pytest.mark.parametrize(
    "device, words",
    [
        ("cuda:1", "device cuda:1 is one GPU, for 99 processes: take --device cuda"),
        ("cuda", "device cuda: 99 processes on a machine with .*--nproc_per_node.*--device cpu"),
    ],
)
def test_processes_do_not_share_a_gpu(device, words):
    with pytest.raises(UserError, match=words):
        Precision.of(
            RunConfig.resolve({"preset": "tiny", "device": device}),
            DistContext(rank=1, world_size=99, local_rank=1, local_world_size=99),
        )


SEVERAL = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}
"""What torchrun tells the first of two processes."""


def test_a_command_of_one_process_says_so_under_torchrun(monkeypatch, capsys):
    for name, value in SEVERAL.items():
        monkeypatch.setenv(name, value)
    assert main(["run"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: run works in one process, and torchrun started 2"
    )


# How one of several processes ends: its output is whole, its exit status its own, and the interpreter's end is left out


def python(*words: str, **more: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={**environment, **more}
    )


def test_help_is_written_whole():
    alone, several = (
        python("-m", "gpt2_nb_utils", "train", "--help"),
        python("-m", "gpt2_nb_utils", "train", "--help", **SEVERAL),
    )
    assert several.returncode == alone.returncode == 0
    assert several.stdout == alone.stdout != ""


END_WITH = """
import atexit, os, sys
from gpt2_nb_utils import dist_env
atexit.register(os.write, os.dup(1), b"the end of the interpreter")
print("written")
dist_env.exit_with(lambda: {})
"""


@pytest.mark.parametrize(
    "result, status, complaint",
    [("0", 0, ""), ("130", 130, ""), ("sys.exit(2)", 2, ""), ("1 / 0", 1, "ZeroDivisionError")],
)
def test_one_of_several_ends_with_its_status_and_not_with_its_interpreter(
    result, status, complaint
):
    several, alone = (
        python("-c", END_WITH.format(result), **SEVERAL),
        python("-c", END_WITH.format(result)),
    )
    assert several.returncode == alone.returncode == status
    assert complaint in several.stderr and complaint in alone.stderr
    assert several.stdout == "written\n"
    assert "the end of the interpreter" in alone.stdout


@pytest.mark.parametrize(
    "result",
    ["(sys.stderr.close(), 1 / 0)", "(os.dup2(os.open('/dev/full', os.O_WRONLY), 1), 0)[1]"],
)
def test_one_of_several_ends_so_even_where_nothing_can_be_written(result):
    several = python("-c", END_WITH.format(result), **SEVERAL)
    assert several.returncode == 1 and "the end of the interpreter" not in several.stdout


# When a process dies, fails or is asked to stop


INJECTED = """
import os, sys
from gpt2_nb_utils import dist_env
from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training import distributed
from gpt2_nb_utils.training import open_run as start
from gpt2_nb_utils.training import train as loop

{}
dist_env.exit_with(main)
"""


def injected(tmp_path, code: str) -> str:
    """A program that is the package's command, but for `code`."""
    path = tmp_path / "injected.py"
    path.write_text(INJECTED.format(code), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_refusal_keeps_its_exit_status_while_a_thread_asks_for_the_interpreter(
    settings, tmp_path
):
    # Gloo's do so at times, to drop the tensors of the last exchange; this one does nothing else.
    code = """
import contextlib, datetime, threading
connect = distributed.dist.init_process_group
def in_calls():
    store = distributed.dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    while True:
        with contextlib.suppress(RuntimeError):
            store.wait(["what nobody writes"], datetime.timedelta(seconds=0.005))
def connected(*args):
    connect(*args)
    threading.Thread(target=in_calls, daemon=True).start()
distributed.dist.init_process_group = connected
"""
    done = train_with_two(settings(batch_size=3), injected(tmp_path, code))
    assert "exitcode  : 2" in done.stderr and "Signal 6" not in done.stderr, done.stderr


@pytest.fixture
def start():
    """Starts a run of two processes and waits for so many rows of metrics; a test that fails leaves none of them behind."""
    family = []

    def begin(given: dict, n_rows: int, *program: str) -> subprocess.Popen:
        process = subprocess.Popen(
            torchrun(given, *program), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        family.append(psutil.Process(process.pid))
        deadline = time.monotonic() + 240
        while len(rows_of(RunDirectory(given["out_dir"]))) < n_rows:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family.extend(family[0].children())
        return process

    yield begin
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def child_of(process: subprocess.Popen, rank: int) -> psutil.Process:
    (child,) = [
        child
        for child in psutil.Process(process.pid).children()
        if child.environ()["RANK"] == str(rank)
    ]
    return child


def kill(process: subprocess.Popen, rank: int) -> tuple[int, str]:
    """Kill a process of torchrun's; torchrun's exit status, and what all of them had to say."""
    child_of(process, rank).kill()
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def assert_left_whole(returncode: int, stderr: str, given: dict, reason: str) -> RunDirectory:
    (line,) = errors(stderr)
    assert reason in line and returncode != 0
    directory = RunDirectory(given["out_dir"])
    assert read_checkpoint(directory.last)["state"]["step"] >= 1
    directory.claim(resume=True).release()  # nobody is at work there any more
    return directory


def assert_failed(returncode: int, stderr: str, given: dict, reason: str) -> None:
    directory = assert_left_whole(returncode, stderr, given, reason)
    assert directory.read_summary()["status"] == "failed"
    assert directory.log.read_text(encoding="utf-8").count(f"failed: {reason}") == 1


def endless(settings, **more) -> dict:
    return settings(
        **{"steps": 100_000, "eval_every": 100_000, "save_every": 1, "sample_every": 0, **more}
    )


DIED = "one of the 2 processes died (killed, or out of memory; torchrun's report names its rank)"


@pytest.mark.slow
def test_when_rank_0_is_killed_another_says_so_and_the_run_can_be_resumed(settings, start):
    given = endless(settings)
    returncode, stderr = kill(start(given, 4), rank=0)
    directory = assert_left_whole(returncode, stderr, given, DIED)
    assert re.search(r"rank *: 0 .*\n *exitcode *: -9", stderr), stderr
    # Whoever could have written how it ended is gone, as when a run of one process is killed.
    assert directory.read_summary()["status"] == "running"
    step = read_checkpoint(directory.last)["state"]["step"]
    resumed = train(
        RunConfig.resolve({"out_dir": given["out_dir"], "resume": "auto", "steps": step + 1})
    )
    assert (resumed["status"], resumed["step"]) == ("steps_done", step + 1)


@pytest.mark.slow
def test_when_a_rank_is_killed_while_rank_0_is_busy_the_run_ends_all_the_same(
    settings, tmp_path, start
):
    code = """
import time
draw = loop.draw_samples
loop.draw_samples = lambda *args, **more: (time.sleep(6), draw(*args, **more))[1]
"""
    given = endless(settings, sample_every=2)
    process = start(
        given, 3, injected(tmp_path, code)
    )  # the row of step 2: rank 0 samples now, rank 1 waits
    assert_failed(*kill(process, rank=1), given, DIED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank, said", [(0, "no room for this batch"), (1, "rank 1 of 2: no room for this batch")]
)
def test_what_goes_wrong_on_one_rank_is_said_once_and_recorded(settings, tmp_path, rank, said):
    code = """
step = loop.training_step
def failing(*args):
    if os.environ["RANK"] == "{rank}" and os.path.exists({last!r}):
        raise UserError("no room for this batch")
    return step(*args)
loop.training_step = failing
"""
    given = endless(settings)
    done = train_with_two(
        given,
        injected(tmp_path, code.format(rank=rank, last=str(RunDirectory(given["out_dir"]).last))),
    )
    assert_failed(done.returncode, done.stderr, given, said)


@pytest.mark.slow
def test_a_traceback_is_of_the_rank_that_failed(settings, tmp_path):
    code = """
step = loop.training_step
def failing(*args):
    return 1 / 0 if os.environ["RANK"] == "1" else step(*args)
loop.training_step = failing
"""
    given = endless(settings)
    done = train_with_two(given, injected(tmp_path, code))
    assert not errors(done.stderr) and "ZeroDivisionError" in done.stderr, done.stderr
    assert done.stderr.count("\nZeroDivisionError: ") == 1 and done.returncode != 0
    log = RunDirectory(given["out_dir"]).log.read_text(encoding="utf-8")
    assert log.count("failed: rank 1 of 2: ZeroDivisionError: division by zero") == 1


@pytest.mark.slow
def test_processes_that_read_different_texts_do_not_start(settings, tmp_path):
    given = settings()
    code = """
from dataclasses import replace
load = start.load_corpus
start.load_corpus = lambda path: replace(load(path), text=load(path).text + os.environ["RANK"])
"""
    done = train_with_two(given, injected(tmp_path, code))
    (line,) = errors(done.stderr)
    assert "rank 1 of 2 reads another text or checkpoint than rank 0" in line
    assert done.returncode != 0 and not os.path.exists(given["out_dir"])


@pytest.mark.slow
@pytest.mark.parametrize("to_torchrun", [True, False])
def test_a_stop_asked_of_one_stops_all_after_the_same_step_and_saves(settings, to_torchrun, start):
    given = endless(settings, save_every=100_000)
    process = start(given, 4)
    # A terminal's Ctrl-C reaches torchrun alone, which hands it on; a signal to rank 1 has to be handed on by the processes.
    (process if to_torchrun else child_of(process, 1)).send_signal(signal.SIGINT)
    shown, complained = process.communicate(timeout=60)
    summary, last = (
        RunDirectory(given["out_dir"]).read_summary(),
        read_checkpoint(RunDirectory(given["out_dir"]).last),
    )
    assert summary["status"] == "interrupted" and last["state"]["step"] == summary["step"] >= 3
    assert shown.count("interrupted at step") == 1 and not errors(complained)
