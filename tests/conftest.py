"""What all tests share: a text to train on, and settings that finish in seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_nb_utils.run_directory import RunDirectory

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # workers side by side would only wait for each other's threads
os.environ["GPT2_NB_UTILS_NO_DOWNLOAD"] = "1"  # also for the kernels and commands that tests start
os.environ["GPT2_NB_UTILS_NO_APP"] = "1"  # each `run` would start it; the tests of the app do
os.environ["HF_HUB_OFFLINE"] = "1"

PROJECT = Path(__file__).parents[1]
COURSE_INPUT = PROJECT / "data" / "input.txt"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    """A real browser, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory, text_file):
    """A finished `run` of seconds on a hostile text with hostile names, and what the command printed."""
    folder = tmp_path_factory.mktemp("run")
    name = "=1+1 input.txt" if os.name == "nt" else "=1+1 <img src=x onerror=alert(6)>\u202e.txt"
    text = folder / name
    text.write_text(
        HOSTILE_TEXT + text_file.read_text(encoding="utf-8"), encoding="utf-8", newline="\n"
    )
    settings = {
        "preset": "tiny",
        "input_file": text,
        "out_dir": folder / "with space & 'quotes'",
        "device": "cpu",
        "amp": "fp32",
        "max_tokens": 512,
        "steps": 4,
        "eval_every": 2,
        "sample_every": 2,
        "max_new_tokens": 8,
        "prompt": HOSTILE_TEXT,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gpt2_nb_utils",
            "run",
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return RunDirectory(settings["out_dir"]), done


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
