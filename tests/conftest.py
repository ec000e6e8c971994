"""What all tests share: a text to train on, and settings that finish in seconds."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

# Before the first import of torch: workers side by side would only wait for each other's threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock
from hypothesis import settings as hypothesis_settings
from run_command import PROJECT, clone, command, flags

from gpt2_nb_utils.run_directory import RunDirectory

os.environ["GPT2_NB_UTILS_NO_DOWNLOAD"] = "1"  # also for the kernels and commands that tests start
os.environ["GPT2_NB_UTILS_NO_APP"] = "1"  # each `run` would start it; the tests of the app do
os.environ["HF_HUB_OFFLINE"] = "1"

COURSE_INPUT = PROJECT / "data" / "input.txt"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


# Which tests run

hypothesis_settings.register_profile("fast", max_examples=20, deadline=None)
hypothesis_settings.register_profile("complete", max_examples=200, deadline=None)

SLOW_FIXTURES = {"browser", "session", "served"}
"""What starts a browser, a kernel, or the app of a Space: each test that asks for one is slow."""
LONGEST_FIRST = (
    "test_jupyterlab.py",
    "test_run.py",
    "test_run_starts.py",
    "test_report_in_browser.py",
    "test_space_app.py",
    "test_processes.py",
    "test_exercises.py",
)
"""Where whole files go to the workers, so that at the end none is still busy with a long one."""


def complete(config: pytest.Config) -> bool:
    """Whether slow tests run too: with --all or -m, and where files or tests are named."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return config.getoption("all") or bool(config.getoption("markexpr")) or named


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="also run the slow tests, and more examples of each property",
    )


def pytest_configure(config):
    hypothesis_settings.load_profile("complete" if complete(config) else "fast")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
    if not complete(config):
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_terminal_summary(terminalreporter, config):
    if not complete(config):
        terminalreporter.write_line(
            "Left out: the slow tests (browsers, kernels, torchrun, kills, long trainings). "
            "All of them: python -m pytest --all"
        )


# What tests start from


@pytest.fixture(scope="module")
def browser():
    """A real browser, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard():
    """Under nohup, or in the background of a script, the tests and the processes that they start
    would ignore signals."""
    for name, usual in {"SIGHUP": signal.SIG_DFL, "SIGINT": signal.default_int_handler}.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A real text: the start of the course's file where it is there, of the demonstration corpus elsewhere."""
    from gpt2_nb_utils.tokenization.corpus import load_corpus

    text = load_corpus(str(COURSE_INPUT) if COURSE_INPUT.exists() else "").text[:20_000]
    path = tmp_path_factory.mktemp("corpus") / "input.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def rows_of(directory: RunDirectory) -> list:
    """The rows of a run's metrics so far, by its events; none before there are any."""
    from gpt2_nb_utils.training.events import history, read_events

    return history(read_events(directory.events)).rows if directory.events.exists() else []


HOSTILE_TEXT = """\
<script>document.title = 'broken'; alert(1)</script>
</script></pre></code></style><img src=//example.org/x onerror=alert(2)><svg onload=alert(3)>
<a href="javascript:alert(4)">here</a> [here](javascript:alert(5)) ![here](//example.org/y) ]]> {{ 7 * 7 }} ${7*7} $x^2$ ``` | |
<!--> <meta http-equiv=refresh content="0;url=//example.org/z"> --> <!--AUTO:SAMPLES:END-->
=cmd|'/c calc'!A1 \u202ethgir ot tfel\u202c \x1b[31mred\x1b[2J\x1b]0;title\x07 \x9b2J \x08\x7f
"""
"""A text that would do harm wherever it is taken for more than text."""


def shared_run(
    tmp_path_factory, name: str, run: Callable[[Path], subprocess.CompletedProcess]
) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder with a run in it, made once for all workers, and what its command printed.

    Args:
        run: makes the run in an empty folder.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker's own folder lies in that of all
        base = base.parent
    folder, printed = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not printed.exists():
            folder.mkdir()
            done = run(folder)
            printed.write_text(
                json.dumps([done.args, done.returncode, done.stdout, done.stderr]), encoding="utf-8"
            )
    return folder, subprocess.CompletedProcess(*json.loads(printed.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, text_file):
    """A finished `run` of seconds on a hostile text with hostile names, and what was printed.

    Tests only read it: those in another worker read the same one.
    """
    out_dir = "with space & 'quotes'"

    def run(folder: Path) -> subprocess.CompletedProcess:
        name = (
            "=1+1 input.txt" if os.name == "nt" else "=1+1 <img src=x onerror=alert(6)>\u202e.txt"
        )
        text = folder / name
        text.write_text(
            HOSTILE_TEXT + text_file.read_text(encoding="utf-8"), encoding="utf-8", newline="\n"
        )
        settings = {
            "preset": "tiny",
            "input_file": str(text),
            "out_dir": str(folder / out_dir),
            "device": "cpu",
            "amp": "fp32",
            "max_tokens": 512,
            "steps": 4,
            "eval_every": 2,
            "sample_every": 2,
            "max_new_tokens": 8,
            "prompt": HOSTILE_TEXT,
        }
        return command("run", *flags(settings))

    folder, done = shared_run(tmp_path_factory, "finished", run)
    assert done.returncode == 0, done.stderr
    return RunDirectory(folder / out_dir), done


@pytest.fixture(scope="session")
def solved(tmp_path_factory):
    """A `run` in a project without data/input.txt, with every exercise solved.

    It is started in the folder of its notebooks.

    Returns:
        The project's folder, and what the command printed.
    """
    from test_exercises import NOTEBOOKS, solve

    def run(folder: Path) -> subprocess.CompletedProcess:
        project = clone(folder / "project")
        for name in NOTEBOOKS:
            solve(name, project / "notebooks")
        settings = {
            "preset": "tiny",
            "device": "cpu",
            "max_tokens": 512,
            "steps": 4,
            "eval_every": 2,
            "sample_every": 2,
            "max_new_tokens": 8,
        }
        environment = {**os.environ, "PYTHONPATH": str(project)}
        return command("run", *flags(settings), cwd=project / "notebooks", env=environment)

    folder, done = shared_run(tmp_path_factory, "solved", run)
    return folder / "project", done


@pytest.fixture
def settings(text_file, tmp_path):
    """Settings of a run of seconds: a very small model on 512 tokens. Call it with what should differ."""

    def make(**more) -> dict:
        return {
            "preset": "tiny",
            "input_file": str(text_file),
            "out_dir": str(tmp_path / "run"),
            "device": "cpu",
            "amp": "fp32",  # on every processor: some would take bf16
            "n_embd": 8,
            "max_tokens": 512,
            "batch_size": 4,
            "steps": 6,
            "log_every": 1,
            "eval_every": 3,
            "save_every": 3,
            "sample_every": 3,
            "max_new_tokens": 8,
            "lr_schedule": "constant",
            "warmup_steps": 0,
            **more,
        }

    return make
