"""The whole path through the real command: notebooks in real kernels, papermill, the report, and what goes wrong."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import PROJECT
from run_command import TRAINING, clone, command, outputs, stand_ins

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.report import notebooks
from gpt2_nb_utils.report.notebooks import NAMES, NotebookFailed, parameters_for, run_notebooks
from gpt2_nb_utils.run_directory import RunDirectory


def test_run_ends_with_executed_notebooks_checkpoints_logs_samples_figures_and_a_report(finished):
    directory, done = finished
    for path in (
        directory.last,
        directory.best,
        directory.log,
        directory.metrics,
        directory.samples,
        directory.report / "index.html",
        directory.figures / "loss.png",
    ):
        assert path.stat().st_size > 0, path
        assert str(path if path.suffix == ".html" else path.parent) in done.stdout, path
    for name in NAMES:
        cells = nbformat.read(directory.notebooks / f"{name}.ipynb", as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), name
        assert (directory.report / f"{name}.html").stat().st_size < 3_000_000
    assert directory.read_summary()["status"] == "steps_done"
    assert " run " in directory.read_summary()["command"]


def test_no_cell_of_any_notebook_warns_or_fails(finished):
    directory, _ = finished
    for name in NAMES:
        for cell in nbformat.read(directory.notebooks / f"{name}.ipynb", as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", (name, cell.source)
                assert output.get("name") != "stderr", (name, output.text)


def test_a_saved_notebook_keeps_the_finished_progress_line_and_the_last_live_figure(finished):
    directory, _ = finished
    shown = outputs(directory.notebooks / "03_training.ipynb", "run")
    assert "training  4/4" in shown and "steps done" in shown and "widget" not in shown
    assert "at step 4" in shown and "4 steps at most" in shown  # the live figure's own words


def test_a_second_run_on_the_same_directory_is_one_line_and_changes_nothing(finished):
    directory, _ = finished
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")}
    done = command("run", f"--out_dir={directory}", "--preset=tiny")
    assert (
        done.returncode == 2
        and "already holds a run" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")} == before


@pytest.mark.slow
def test_a_resumed_run_trains_on_and_leaves_the_first_notebooks_alone(
    finished, tmp_path, monkeypatch
):
    project = clone(tmp_path / "clone", {name: () for name in NAMES[:2]} | TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished[0].path, copy.path)
    untouched = (copy.notebooks / "01_tokenization.ipynb").read_bytes()
    done = command("run", f"--out_dir={copy}", "--resume=auto", "--steps=6", cwd=project)
    assert done.returncode == 0, done.stderr
    summary = copy.read_summary()
    (resumed,) = summary["resumed_with"]  # of `run` and of the notebook in it, one command
    assert summary["step"] == 6 and " run " in resumed["command"]
    assert (copy.notebooks / "01_tokenization.ipynb").read_bytes() == untouched


@pytest.mark.slow
def test_report_and_sample_work_on_a_finished_run(finished, tmp_path):
    directory = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished[0].path, directory.path)
    page = directory.report / "index.html"
    page.unlink()
    done = command("report", str(directory))
    assert done.returncode == 0 and done.stdout.strip() == str(page) and page.exists()
    texts = [
        command(
            "sample", str(directory), "--prompt=Hear me", "--max_new_tokens=5", "--seed=3"
        ).stdout
        for _ in range(2)
    ]
    assert texts[0].startswith("Hear me") and texts[0] == texts[1]


@pytest.mark.parametrize(
    "words, status, parts",
    [
        (["train", "--lerning_rate", "1"], 2, ["lerning_rate", "'lr'"]),
        (
            ["train", "--seq_len", "2048", "--block_size", "64"],
            2,
            ["seq_len 2048 exceeds block_size 64"],
        ),
        (
            ["train", "--n_embd", "100", "--n_head", "3"],
            2,
            ["n_embd 100 is not divisible by n_head 3"],
        ),
        (["train", "--steps", "many"], 2, ["--steps", "many"]),
        (["run", "extra"], 2, ["'extra'"]),
        (["fly"], 2, ["fly", "run", "train"]),
        ([], 2, ["command"]),
        (["sample", "no/such/run"], 2, ["no/such/run holds no run"]),
        (["train", "--steps", "0"], 2, ["steps 0", "greater than 0"]),
        (
            ["train", "--out_dir", b"out/\xff".decode("utf-8", "surrogateescape")],
            2,
            ["out_dir", "not valid UTF-8"],
        ),
        (["report", "no/such/run"], 2, ["no/such/run holds no run"]),
        (["readme", "no/such/run"], 2, ["no/such/run holds no run"]),
    ],
)
def test_a_users_mistake_is_one_line_with_status_2(words, status, parts, tmp_path):
    done = command(*words, cwd=PROJECT)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "does not exist"),
        (b"", "empty"),
        (b"a", "too short"),
        (b"MZ\0\1\2" * 99, "binary"),
        ("Müller ".encode("latin-1") * 99, "not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_used_leaves_no_run_directory(
    content, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(PROJECT)  # `run` goes there
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_bytes(content)
    for name in ("run", "train"):
        given = [f"--input_file={path}", f"--out_dir={tmp_path / 'out'}", "--preset=tiny"]
        assert main([name, *given]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_papermill_parameter_is_an_error_that_names_the_nearest(tmp_path):
    for name in NAMES:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "papermill",
                f"notebooks/{name}.ipynb",
                str(tmp_path / "out.ipynb"),
                "-p",
                "lerning_rate",
                "1",
                "-p",
                "out_dir",
                str(tmp_path / "run"),
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0, name
        assert "UserError: unknown setting 'lerning_rate': did you mean 'lr'?" in done.stderr, name
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_setting_that_a_notebook_does_not_take_is_an_error_not_a_default(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "notebooks/04_results.ipynb",
            str(tmp_path / "out.ipynb"),
            "-p",
            "steps",
            "9",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode != 0
        and "UserError: this notebook has no parameter 'steps': it takes out_dir" in done.stderr
    )


@pytest.mark.slow
def test_plain_papermill_trains_from_any_working_directory(tmp_path, text_file, monkeypatch):
    project = clone(tmp_path / "clone", TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "03_training.ipynb",
            str(tmp_path / "executed.ipynb"),
            "-p",
            "preset",
            "tiny",
            "-p",
            "steps",
            "2",
            "-p",
            "out_dir",
            str(tmp_path / "run"),
            "-p",
            "input_file",
            str(text_file),
            "-p",
            "max_tokens",
            "300",
            "-p",
            "sample_every",
            "0",
        ],
        cwd=project / "notebooks",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = RunDirectory(tmp_path / "run").read_summary()
    assert (
        summary["step"] == 2
        and "papermill" in summary["command"]
        and "-p steps 2" in summary["command"]
    )


def papermill(*words: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "papermill", *words], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("output", ["run/notebooks/03_training.ipynb", "run/executed.ipynb"])
def test_papermills_output_may_lie_in_the_run_directory(tmp_path, text_file, monkeypatch, output):
    project = clone(tmp_path / "clone", TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    run, given = RunDirectory(tmp_path / "run"), ["-r", "preset", "tiny", "-p", "steps", "2"]
    given += ["-r", "out_dir", str(run), "-r", "input_file", str(text_file)]
    given += ["-p", "max_tokens", "300", "-p", "sample_every", "0"]
    executed = tmp_path / output
    executed.parent.mkdir(parents=True)
    (executed.parent / ".ipynb_checkpoints").mkdir()
    for more in ([], ["-p", "overwrite", "True"]):
        done = papermill(
            "03_training.ipynb", str(executed), *given, *more, cwd=project / "notebooks"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "steps_done at step 2" in outputs(executed, "outcome")
    assert command("report", str(run)).returncode == 0
    assert (run.report / "03_training.html").exists() == ("notebooks" in output)


def test_other_notebooks_in_a_folder_are_not_taken_for_papermills(tmp_path):
    for name in ("run/mine.ipynb", "another/notebooks/mine.ipynb"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        shutil.copy(PROJECT / "notebooks" / "01_tokenization.ipynb", path)
        with pytest.raises(UserError, match="holds files but no run"):
            RunDirectory(tmp_path / path.relative_to(tmp_path).parts[0]).check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, given, said",
    [
        ("-p", ("out_dir", "20251127_0930"), "out_dir 202511270930 is not text"),
        ("-p", ("prompt", "007"), "prompt 7 is not text.*-r prompt TEXT"),
        ("-y", ("{prompt: 12:30}",), "prompt 750 is not text.*-r prompt TEXT"),
        ("-p", ("device", "0"), "device 0: must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_text_that_papermill_took_for_a_number_is_an_error(tmp_path, flag, given, said):
    output = str(tmp_path / "out.ipynb")
    done = papermill("notebooks/03_training.ipynb", output, flag, *given, cwd=PROJECT)
    assert done.returncode != 0 and re.search(f"UserError: {said}", done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


def test_each_notebook_gets_the_given_settings_that_it_knows():
    config = RunConfig.resolve({"preset": "tiny", "steps": 3, "seed": 5, "prompt": "O "})
    for name in NAMES:
        passed = parameters_for(notebooks.SOURCES / f"{name}.ipynb", config)
        assert "resume" not in passed and "overwrite" not in passed
        if name == "03_training":
            assert passed == {
                "preset": "tiny",
                "steps": 3,
                "seed": 5,
                "prompt": "O ",
                "out_dir": "out/run",
            }


@pytest.mark.slow
def test_run_goes_on_from_a_named_checkpoint(finished, tmp_path, monkeypatch):
    directory, branch = finished[0], RunDirectory(tmp_path / "branch")
    project = clone(tmp_path / "clone", TRAINING | {NAMES[3]: ()})  # those that read it
    monkeypatch.setenv("PYTHONPATH", str(project))
    done = command(
        "run", f"--resume={directory.last}", f"--out_dir={branch}", "--steps=5", cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in branch.log.read_text(encoding="utf-8")
    assert branch.read_summary()["step"] == 5
    assert (branch.report / "04_results.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "source, words, status",
    [
        (
            "x = 1\n1 / 0",
            r"02_model.ipynb, cell 5 of 6 \(`x = 1`\): ZeroDivisionError: division by zero",
            1,
        ),
        (
            "from gpt2_nb_utils.errors import UserError\nraise UserError('lower it')",
            "02_model.ipynb, cell 5 of 6 .*UserError: lower it",
            2,
        ),
        ("import os\nos._exit(3)", "02_model.ipynb, cell 5 of 6: .*[Kk]ernel died", 1),
    ],
)
def test_a_failing_cell_is_named_and_the_partly_executed_notebook_kept(
    tmp_path, monkeypatch, source, words, status
):
    stand_ins(tmp_path / "notebooks", nb_02=["print('so far')", source, "print('never')"])
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path / "notebooks")
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(NotebookFailed, match=words) as caught:
        run_notebooks(RunConfig.resolve({"preset": "tiny", "out_dir": str(directory)}), directory)
    assert caught.value.exit_status == status and "\n" not in str(caught.value)
    kept = (directory.notebooks / "02_model.ipynb").read_text(encoding="utf-8")
    assert "so far\\n" in kept and not (directory.notebooks / "03_training.ipynb").exists()


@pytest.mark.slow
def test_a_resumed_run_executes_a_first_notebook_again_where_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path / "notebooks")
    directory, config = (
        RunDirectory(tmp_path / "run"),
        RunConfig.resolve({"preset": "tiny", "out_dir": str(tmp_path / "run")}),
    )
    stand_ins(tmp_path / "notebooks", nb_01=["print('once')"], nb_02=["print('before')"])
    run_notebooks(config, directory, NAMES[:2])
    stamps = [(directory.notebooks / f"{name}.ipynb").stat().st_mtime_ns for name in NAMES[:2]]
    shutil.rmtree(tmp_path / "notebooks")
    stand_ins(tmp_path / "notebooks", nb_01=["print('once')"], nb_02=["print('after')"])
    run_notebooks(config.model_copy(update={"resume": "auto"}), directory, NAMES[:2])
    assert [
        (directory.notebooks / f"{name}.ipynb").stat().st_mtime_ns == stamp
        for name, stamp in zip(NAMES, stamps)
    ] == [True, False]
    assert "after" in outputs(directory.notebooks / f"{NAMES[1]}.ipynb")


def test_a_missing_notebook_is_said_before_any_is_run(tmp_path, monkeypatch):
    stand_ins(tmp_path / "notebooks")
    (tmp_path / "notebooks" / "04_results.ipynb").unlink()
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path / "notebooks")
    with pytest.raises(UserError, match="04_results.ipynb is missing"):
        run_notebooks(RunConfig.resolve({"preset": "tiny"}), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
