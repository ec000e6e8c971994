"""Whole runs that begin in their own way: without the course's file, from other folders, after a kill and after Ctrl-C."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import PROJECT, rows_of
from run_command import TRAINING, clone, command, flags, outputs

from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.events import history, read_events


@pytest.mark.slow
def test_a_killed_run_resumed_by_its_directory_alone_shows_its_own_text_in_every_notebook(
    tmp_path, text_file, monkeypatch
):
    show_the_text = {
        "01_tokenization": ("corpus-load",),
        "02_model": ("line",),
        "03_training": ("small-model", "loop-figure", "run"),
    }
    monkeypatch.setenv("PYTHONPATH", str(clone(tmp_path / "clone", show_the_text)))
    elsewhere = tmp_path / "any folder"  # relative paths are the user's, wherever the project lies
    elsewhere.mkdir()
    out_dir = elsewhere / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gpt2_nb_utils",
            "run",
            *flags(
                {
                    "preset": "tiny",
                    "input_file": text_file,
                    "out_dir": "run",
                    "device": "cpu",
                    "max_tokens": 300,
                    "steps": 2,
                    "seed": 5,
                }
            ),
        ],
        cwd=elsewhere,
    )
    deadline = time.monotonic() + 120
    while not (out_dir / "notebooks" / "01_tokenization.ipynb").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    done = command("run", "--out_dir=run", "--resume=auto", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    for name, (cell_id, *_) in show_the_text.items():
        assert str(text_file) in outputs(out_dir / "notebooks" / f"{name}.ipynb", cell_id), name
    summary = RunDirectory(out_dir).read_summary()
    assert (summary["seed"], summary["step"], summary["corpus"]["path"]) == (
        5,
        2,
        text_file.as_posix(),
    )
    assert (out_dir / "report" / "04_results.html").exists()


@pytest.mark.slow
def test_a_run_on_the_demonstration_corpus_says_so_wherever_a_result_is_shown(solved, monkeypatch):
    project, done = solved
    monkeypatch.setenv("PYTHONPATH", str(project))
    assert done.returncode == 0, done.stderr
    directory = RunDirectory(project / "out" / "run")
    assert directory.read_summary()["corpus"]["source"] == "demo"
    said = {
        "end of the command": done.stdout,
        "log": directory.log.read_text(encoding="utf-8"),
        "samples": directory.samples.read_text(encoding="utf-8"),
        **{page.name: page.read_text(encoding="utf-8") for page in directory.report.glob("*.html")},
        "sample": command("sample", str(directory), "--max_new_tokens=2", cwd=project).stderr,
    }
    readme = project / "README.md"
    shutil.copy(PROJECT / "README.md", readme)
    assert command("readme", str(directory), cwd=project).returncode == 0
    for block in ("SUMMARY", "PLOT", "LOGS", "METRICS", "SAMPLES", "REPRO"):
        said[block] = (
            readme.read_text(encoding="utf-8")
            .partition(f"AUTO:{block}:START")[2]
            .partition(f"AUTO:{block}:END")[0]
        )
    assert [place for place, text in said.items() if "demonstration" not in text] == []


@pytest.mark.slow
def test_ctrl_c_during_a_run_saves_the_training_builds_the_report_and_can_be_resumed(
    tmp_path, text_file, monkeypatch
):
    project = clone(tmp_path / "clone", TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    given = {
        "preset": "tiny",
        "input_file": text_file,
        "out_dir": tmp_path / "run",
        "device": "cpu",
        "max_tokens": 300,
        "steps": 5000,
        "target_loss": 1e-9,
        "log_every": 1,
        "eval_every": 5000,
        "save_every": 5000,
        "sample_every": 0,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_nb_utils", "run", *flags(given)],
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    directory = RunDirectory(given["out_dir"])
    deadline = time.monotonic() + 240
    while len(rows_of(directory)) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    shown, complained = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in complained
    assert "interrupted at step" in shown and str(directory.report / "index.html") in shown
    step = directory.read_summary()["step"]
    assert (
        directory.read_summary()["status"] == "interrupted"
        and read_checkpoint(directory.last)["state"]["step"] == step >= 3
    )
    done = command(
        "run", f"--out_dir={directory}", "--resume=auto", f"--steps={step + 2}", cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert directory.read_summary()["step"] == step + 2 and [
        row.step for row in history(read_events(directory.events)).rows
    ] == list(range(step + 3))


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [3, 20, 400])
def test_every_notebook_holds_for_a_text_of_few_tokens(n_tokens, text_file, tmp_path):
    text = tmp_path / "input.txt"
    ids = encode(text_file.read_text(encoding="utf-8"))[:n_tokens]
    text.write_text(decode(ids), encoding="utf-8", newline="\n")
    settings = {
        "preset": "tiny",
        "input_file": str(text),
        "out_dir": str(tmp_path / "run"),
        "steps": 2,
        "sample_every": 0,
    }
    done = command("run", *flags(settings))
    assert done.returncode == 0, done.stderr
    assert RunDirectory(tmp_path / "run").read_summary()["corpus"]["tokens"] == n_tokens
