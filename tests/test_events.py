"""The record of a run: rendered from its events, whole again after a power cut, and of one run only."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.events import history, read_events, rendered, samples_text
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.training.train import train

CLOCK = ("seconds", "wall_seconds", "tok_per_s", "command", "resumed_with", "config")


def run(settings: dict, **more) -> RunDirectory:
    train(RunConfig.resolve(settings), **more)
    return RunDirectory(settings["out_dir"])


def assert_same_records(ours: RunDirectory, theirs: RunDirectory) -> None:
    """All but what the clock and the name of the folder say."""

    def rows(directory):
        return [row.split(",")[:8] for row in directory.metrics.read_text().splitlines()]

    assert rows(ours) == rows(theirs)
    assert ours.recall.read_text() == theirs.recall.read_text()
    assert ours.samples.read_text() == theirs.samples.read_text()
    one, other = (
        {name: value for name, value in each.read_summary().items() if name not in CLOCK}
        for each in (ours, theirs)
    )
    assert one == other


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text_file):
    """A run of six steps, and one that was stopped after four."""
    folder = tmp_path_factory.mktemp("runs")
    given = {
        "preset": "tiny", "input_file": str(text_file), "device": "cpu", "n_embd": 8,
        "max_tokens": 512, "batch_size": 4, "log_every": 1, "eval_every": 3, "save_every": 3,
        "sample_every": 3, "max_new_tokens": 8, "lr_schedule": "constant", "warmup_steps": 0,
        "steps": 6,
    }  # fmt: skip
    whole = run({**given, "out_dir": str(folder / "whole")})
    given["out_dir"] = str(folder / "half")
    half = run(given, on_row=lambda row: row.step == 4 and os.kill(os.getpid(), 2))
    return whole, half


def copy_of(run: RunDirectory, folder) -> RunDirectory:
    shutil.copytree(run.path, folder)
    return RunDirectory(folder)


RECORDS = [
    "summary.json",
    "config.json",
    "environment.json",
    "tokens.bin",
    "logs/events.jsonl",
    "logs/train.log",
    "logs/train_metrics.csv",
    "logs/recall.csv",
    "samples/samples.txt",
]


def cut(text: bytes, how: str) -> bytes | None:
    return {
        "missing": None,
        "empty": b"",
        "half": text[: len(text) // 2],
        "all but the last byte": text[:-1],
        "NUL": bytes(len(text)),
    }[how]


@pytest.mark.parametrize("how", ["missing", "empty", "half", "all but the last byte", "NUL"])
@pytest.mark.parametrize(
    "names",
    [*([name] for name in RECORDS), RECORDS],
    ids=lambda names: names[0] if len(names) == 1 else "all",
)
def test_a_power_cut_loses_no_record_that_the_checkpoint_speaks_of(
    runs, tmp_path, names, how, capsys
):
    whole, half = runs
    directory = copy_of(half, tmp_path / "run")
    for name in names:
        path = directory.path / name
        left = cut(path.read_bytes(), how)
        path.unlink() if left is None else path.write_bytes(left)
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    assert_same_records(directory, whole)
    said = "events.jsonl was not whole" in capsys.readouterr().err
    # An event or two may be younger than the checkpoint: nothing is lost where only those are cut.
    assert said == ("logs/events.jsonl" in names and how != "all but the last byte")
    told = [event["text"] for event in read_events(directory.events) if event["event"] == "note"]
    assert any("was not whole" in text for text in told) == said


def test_events_are_on_the_disk_before_the_checkpoint_that_speaks_of_them(settings, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: order.append(os.readlink(f"/proc/self/fd/{fd}")) or sync(fd)
    )
    monkeypatch.setattr(
        os, "replace", lambda one, other: order.append(str(other)) or replace(one, other)
    )
    directory = run(settings(steps=3, save_every=3))
    named = order.index(str(directory.last))
    assert str(directory.events) in order[:named]
    assert any(".last.pt." in place for place in order[:named])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_modes_and_flushing_is_written_to(settings, monkeypatch, number):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def without(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "chmod", refused)
    monkeypatch.setattr(os, "fsync", without)
    assert run(settings(steps=3)).read_summary()["status"] == "steps_done"


def test_a_finished_run_with_damaged_records_renders_them_again(runs, tmp_path):
    whole, _ = runs
    directory = copy_of(whole, tmp_path / "run")
    before = directory.metrics.read_bytes()
    directory.metrics.write_bytes(before[:50])
    run({"out_dir": str(directory.path), "resume": "auto"})
    assert directory.metrics.read_bytes() == before


def test_the_records_of_a_run_are_what_its_events_render(runs):
    for directory in runs:
        for name, text in rendered(read_events(directory.events)).items():
            assert (directory.path / name).read_text(encoding="utf-8") == text, name


# One run, one identity


def test_a_best_model_of_another_run_is_not_taken_for_ones_own(runs, settings, tmp_path, capsys):
    _, half = runs
    other = run(settings(out_dir=str(tmp_path / "other"), lr=0.05, target_loss=8.0, steps=100))
    assert other.read_summary()["target_reached"]
    directory = copy_of(half, tmp_path / "run")
    shutil.copy(other.best, directory.best)
    given = {"out_dir": str(directory.path), "resume": "auto", "steps": 6, "target_loss": 8.0}
    run(given)
    summary = directory.read_summary()
    assert (summary["status"], summary["target_reached"]) == ("steps_done", False)
    assert "best.pt belongs to another run" in capsys.readouterr().err
    assert read_checkpoint(directory.best)["state"]["step"] == summary["best_train_loss_step"] == 6


def test_a_best_model_of_a_branch_is_not_taken_for_ones_own(runs, tmp_path, capsys):
    """A copy of the run went on by itself, with the same identity, and reached its target."""
    whole, half = runs
    branch, directory = copy_of(half, tmp_path / "branch"), copy_of(half, tmp_path / "run")
    given = {"resume": "auto", "target_loss": 9.0, "lr": 0.05, "steps": 100}
    run({**given, "out_dir": str(branch.path)})
    assert branch.read_summary()["target_reached"]
    shutil.copy(branch.best, directory.best)
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    assert_same_records(directory, whole)
    assert "best.pt belongs to another run" in capsys.readouterr().err
    assert read_checkpoint(directory.best)["state"]["best_train_loss_step"] == 6


def test_events_that_a_last_checkpoint_of_a_branch_does_not_know_are_kept(runs, tmp_path):
    _, half = runs
    branch, directory = copy_of(half, tmp_path / "branch"), copy_of(half, tmp_path / "run")
    for each, steps in ((branch, 5), (directory, 6)):
        run({"out_dir": str(each.path), "resume": "auto", "steps": steps})
    events = directory.events.read_bytes()
    shutil.copy(branch.last, directory.last)
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 7})
    assert directory.events.with_name("set_aside_events.jsonl").read_bytes() == events


@pytest.mark.parametrize("left", [None, b"", b"PK"])
def test_a_finished_run_that_lost_its_best_model_takes_it_from_its_last(
    runs, tmp_path, left, capsys
):
    whole, _ = runs
    directory = copy_of(whole, tmp_path / "run")
    best = read_checkpoint(directory.best)
    directory.best.unlink() if left is None else directory.best.write_bytes(left)
    run({"out_dir": str(directory.path), "resume": "auto"})
    assert_same_records(directory, whole)
    again = read_checkpoint(directory.best)
    assert again.keys() == best.keys() and again["state"] == best["state"]
    assert all(again["model"][name].equal(tensor) for name, tensor in best["model"].items())
    assert "written again from last.pt" in capsys.readouterr().err


def test_a_last_checkpoint_of_another_run_is_refused(runs, settings, tmp_path):
    _, half = runs
    other = run(settings(out_dir=str(tmp_path / "other"), steps=3))
    directory = copy_of(half, tmp_path / "run")
    shutil.copy(other.last, directory.last)
    before = directory.events.read_bytes()
    with pytest.raises(UserError, match="last.pt belongs to another run.*--out_dir NEW"):
        run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    assert directory.events.read_bytes() == before


def test_a_checkpoint_of_another_run_named_in_the_folder_of_this_one_is_refused(
    runs, settings, tmp_path
):
    _, half = runs
    other = run(settings(out_dir=str(tmp_path / "other"), steps=3))
    directory = copy_of(half, tmp_path / "run")
    foreign = shutil.copy(other.last, directory.last.with_name("other.pt"))
    before = directory.events.read_bytes()
    with pytest.raises(UserError, match="other.pt belongs to another run"):
        run({"resume": str(foreign), "steps": 6, "out_dir": str(directory.path)})
    assert directory.events.read_bytes() == before


def test_events_of_the_wrong_kind_are_taken_from_the_checkpoint(runs, tmp_path):
    whole, half = runs
    directory = copy_of(half, tmp_path / "run")
    with directory.events.open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "time": "2026-01-01T00:00:00", "step": 9}\n')
    run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    assert_same_records(directory, whole)


def test_what_is_set_aside_twice_is_kept_twice(runs, tmp_path):
    _, half = runs
    directory = copy_of(half, tmp_path / "run")
    for content in (b"first", b"second"):
        directory.previous.write_bytes(half.last.read_bytes())
        directory.last.write_bytes(content)
        run({"out_dir": str(directory.path), "resume": "auto", "steps": 6})
    kept = {path.read_bytes() for path in directory.last.parent.glob("set_aside_*")}
    assert {b"first", b"second"} <= kept


def test_a_run_that_saved_nothing_can_start_again(runs, tmp_path):
    whole, half = runs
    directory = copy_of(half, tmp_path / "run")
    shutil.rmtree(directory.last.parent)
    events = [json.loads(line) for line in directory.events.read_text().splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["saved"]
    with pytest.raises(UserError, match="last.pt is missing.*restore it"):
        run({"out_dir": str(directory.path), "resume": "auto"})
    events[-1]["saved"] = False  # stopped twice, before its first checkpoint
    directory.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    run({"out_dir": str(directory.path), "resume": "auto"})
    assert_same_records(directory, whole)


def test_the_record_of_a_killed_run_whose_checkpoints_are_gone_is_kept(runs, tmp_path, capsys):
    whole, half = runs
    directory = copy_of(half, tmp_path / "run")
    shutil.rmtree(directory.last.parent)
    lines = directory.events.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "end"
    directory.events.write_text("".join(lines[:-1]))  # killed at step 4, after a checkpoint was due
    run({"out_dir": str(directory.path), "resume": "auto"})
    assert_same_records(directory, whole)
    said = "no checkpoint is left of the 4 steps on record"
    assert said in capsys.readouterr().err and said in directory.log.read_text()
    kept = directory.events.with_name("set_aside_events.jsonl")
    assert kept.read_text() == "".join(lines[:-1])


# From one number format to another, as from a CPU to a GPU


def test_a_run_begun_on_a_cpu_continues_in_the_format_of_the_gpu(settings, monkeypatch):
    given = settings(steps=3, amp="auto")
    on_a_cpu = run(given).read_summary()["amp"]
    # What `auto` means on a GPU; GradScaler works on the CPU as well.
    resolve = Precision.of.__func__

    def on_a_gpu(cls, config, *args):
        amp = "fp16" if config.amp == "auto" else config.amp
        return resolve(cls, config.model_copy(update={"amp": amp}), *args)

    monkeypatch.setattr(Precision, "of", classmethod(on_a_gpu))
    directory = run({"out_dir": given["out_dir"], "resume": "auto", "steps": 6})
    assert directory.read_summary()["amp"] == "fp16"
    log = directory.log.read_text(encoding="utf-8")
    assert f"amp was {on_a_cpu} and is fp16 from step 3 on" in log
    scales = [row.loss_scale for row in history(read_events(directory.events)).rows]
    assert scales[:4] == [None] * 4 and all(scale >= 1 for scale in scales[4:])
    monkeypatch.undo()  # and back again
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 7})
    log = directory.log.read_text(encoding="utf-8")
    assert f"amp was fp16 and is {on_a_cpu} from step 6 on" in log


def test_a_format_is_compared_by_what_it_was_not_by_the_word_auto(settings):
    given = settings(steps=3)
    run(given)
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 4, "amp": "fp32"})
    with pytest.raises(UserError, match="amp fp16 differs from fp32, with which the run"):
        run({"out_dir": given["out_dir"], "resume": "auto", "steps": 5, "amp": "fp16"})


def test_the_same_line_continues_where_max_tokens_is_the_whole_text(settings, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A short text, to be sure. " * 10, encoding="utf-8")
    line = settings(steps=2, input_file=str(path), max_tokens=5000, resume="auto")
    run(line)
    assert run(line).read_summary()["status"] == "steps_done"


# Samples as text


@given(st.text(), st.text())
def test_no_generated_text_can_pass_for_a_header(prompt, text):
    lines = samples_text([Sample(1, 1, prompt, text)]).split("\n")
    assert lines[0] == "=== step 1 · prompt 1 ===" and lines[1].startswith("PROMPT: ")
    assert lines[2] == "SAMPLE:" and lines[-2:] == ["", ""]
    assert len(lines) > 5 and all(line.startswith("| ") for line in lines[3:-2])


@given(st.text())
def test_a_terminal_never_receives_a_control_character(text):
    shown = samples_text([Sample(1, 1, text, text)])
    assert all(
        char == "\n" or char == "\t" or char.isprintable() or ord(char) > 0x9F for char in shown
    )
    assert not set(shown) & set("\u061c\u200e\u200f\u202a\u202e\u2066\x1b\x9b")


# A power cut, on a block device


@pytest.fixture
def block_device(tmp_path):
    """A file system in a file, whose copy is what a power cut leaves: what the system had not written yet is not in it."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 96 << 20)
    make = ["mkfs.ext4", "-q", "-F", str(image)]
    if not shutil.which("mkfs.ext4") or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("no mkfs.ext4 here")

    def mount(file) -> None:
        # Without ext4's own precaution for programs that rename without flushing: other file systems have none.
        options = ["-o", "loop,noauto_da_alloc,commit=1"]
        done = subprocess.run(["mount", *options, str(file), str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"nobody may mount a file here ({done.stderr.decode().strip()})")

    mount(image)
    yield image, folder, mount
    subprocess.run(["umount", str(folder)], check=False)


@pytest.mark.slow
def test_whenever_the_power_is_cut_a_run_continues_from_its_last_checkpoint(
    settings, block_device, tmp_path
):
    image, folder, mount = block_device
    given = settings(
        out_dir=str(folder / "run"), steps=100_000, eval_every=5, save_every=1, target_loss=1e-9
    )
    command = [sys.executable, "-m", "gpt2_nb_utils", "train"]
    command += [f"--{name}={value}" for name, value in given.items()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    directory = RunDirectory(given["out_dir"])
    copies = []
    try:
        deadline = time.monotonic() + 300
        while len(copies) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(1.0)
            if directory.last.exists():
                copies.append(shutil.copy(image, tmp_path / f"copy{len(copies)}"))
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", str(folder)], check=True)
    for copy in copies:
        mount(copy)
        if directory.last.exists() or directory.previous.exists():
            run({"out_dir": str(directory.path), "resume": "auto", "steps": 100_000},
                on_row=lambda row: os.kill(os.getpid(), 2))  # fmt: skip
            step = directory.read_summary()["step"]
            assert [row.step for row in history(read_events(directory.events)).rows] == list(
                range(step + 1)
            )
            assert step > 1
        subprocess.run(["umount", str(folder)], check=True)
