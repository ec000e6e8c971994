"""A disk that is full, cannot be written, or is taken away: what is said, and what of the training survives."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from run_fixture import make_run
from test_kills import assert_same_end, run

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import recorder
from gpt2_nb_utils.training.checkpoints import is_whole, read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.train import train


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path):
        self.path = path

    def mount(self, *options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.path)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"this system lets nobody mount a small disk here ({done.stderr.strip()})")

    def fill(self) -> Path:
        """Leave no byte free."""
        filler = self.path / "filler"
        with filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        return filler


@pytest.fixture
def disk(tmp_path):
    """Call it with the size of a disk, as `mount` takes it."""
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path)

    def make(size: str) -> Disk:
        if shutil.which("mount") is None:
            pytest.skip("this system has no mount command")
        made.mount(f"size={size}")
        return made

    yield make
    if os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)


# Full


def test_a_disk_too_small_for_a_second_checkpoint_leaves_the_first_and_the_run_goes_on_when_there_is_room(
    settings, tmp_path, disk
):
    small = disk("9m")  # best.pt 1.6 MB, last.pt 4.9 MB
    given = settings(out_dir=str(small.path / "run"))
    run({**given, "steps": 3})
    with pytest.raises(
        UserError,
        match=r"last.pt cannot be written \(\[Errno 28\] No space left on device\): free disk space or choose another "
        "--out_dir; the previous checkpoint is whole",
    ):
        run({"out_dir": given["out_dir"], "resume": "auto", "steps": 6})
    directory = RunDirectory(given["out_dir"])
    assert directory.read_summary()["status"] == "failed"
    assert is_whole(directory.last) and read_checkpoint(directory.last)["state"]["step"] == 3
    assert sorted(os.listdir(directory.last.parent)) == [
        "best.pt",
        "last.pt",
    ]  # nothing half written is left to fill the disk
    small.mount("remount", "size=40m")
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 6})
    assert_same_end(directory, run(settings(out_dir=str(tmp_path / "whole"))))


def test_the_checkpoint_before_the_last_makes_room_for_a_new_one(disk):
    folder = disk("8m").path
    last, previous = folder / "last.pt", folder / "previous.pt"
    for step in (1, 2, 3):  # 3 MB each
        save_checkpoint(
            last, {"model": {"w": torch.full((750_000,), float(step))}}, previous=previous
        )
        assert is_whole(last) and read_checkpoint(last)["model"]["w"][0] == step
    assert read_checkpoint(previous)["model"]["w"][0] == 2
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(last, {"model": {"w": torch.ones(2_000_000)}}, previous=previous)
    assert is_whole(last) and read_checkpoint(last)["model"]["w"][0] == 3


def test_a_disk_that_fills_up_while_logging_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(
    settings, disk
):
    small = disk("30m")
    given = settings(out_dir=str(small.path / "run"), steps=60, eval_every=100, save_every=4)
    run({**given, "steps": 4, "sample_every": 5})
    with pytest.raises(
        UserError,
        match=r"cannot be written \(\[Errno 28\] No space left on device\): free disk space",
    ) as caught:
        run(
            {"out_dir": given["out_dir"], "resume": "auto", "steps": 60, "sample_every": 3},
            on_row=lambda row: row.step == 10 and small.fill(),
        )
    assert "\n" not in str(caught.value)
    directory = RunDirectory(given["out_dir"])
    assert (
        is_whole(directory.last) and directory.read_summary()["config"]["steps"] == 60
    )  # nothing is cut short
    (small.path / "filler").unlink()
    run({"out_dir": given["out_dir"], "resume": "auto"})  # and nothing is locked
    assert [row.step for row in history(read_events(directory.events)).rows] == list(range(61))
    assert [
        sample.step for sample in history(read_events(directory.events)).samples if not sample.final
    ][::3] == [
        4,
        *range(6, 61, 3),
    ]


@pytest.mark.parametrize("name", ["events.jsonl", "train.log", "train_metrics.csv", "samples.txt"])
def test_every_record_that_cannot_be_written_is_named_in_one_line(settings, monkeypatch, name):
    given, real = settings(), Path.open
    run({**given, "steps": 2})
    begun = []

    def opened(path, mode="r", *args, **more):
        begun.append(path.name == "train_metrics.csv" and mode == "a")
        if path.name == name and mode == "a" and any(begun):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **more)

    def written(path, content, **more):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, content, **more)

    whole = recorder.write_atomically
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(recorder, "write_atomically", written)
    with pytest.raises(
        UserError,
        match=f"{name} cannot be written .*No space left.*the last good checkpoint is kept, and --resume auto continues",
    ):
        run({"out_dir": given["out_dir"], "resume": "auto", "steps": 6})
    monkeypatch.undo()
    run({"out_dir": given["out_dir"], "resume": "auto", "steps": 6})
    assert [
        row.step for row in history(read_events(RunDirectory(given["out_dir"]).events)).rows
    ] == list(range(7))


def test_a_report_for_which_there_is_no_room_is_one_line_and_leaves_the_old_one_whole(disk, capsys):
    small = disk("20m")
    directory = make_run(small.path / "run")
    assert main(["report", str(directory)]) == 0
    before = (directory.report / "index.html").read_bytes()
    capsys.readouterr()
    small.fill()
    assert main(["report", str(directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "No space left on device): free disk space" in line
    assert (directory.report / "index.html").read_bytes() == before


# Not to be written


def test_a_folder_that_cannot_be_written_is_one_line_and_a_text_and_a_checkpoint_can_be_read_from_it(
    settings, tmp_path, disk, text_file, capsys
):
    read_only = disk("30m")
    shutil.copy(text_file, read_only.path / "input.txt")
    first = run(
        settings(
            out_dir=str(read_only.path / "run"),
            input_file=str(read_only.path / "input.txt"),
            steps=3,
        )
    )
    read_only.mount("remount", "ro")
    capsys.readouterr()
    for words in (
        [
            "train",
            f"--out_dir={read_only.path / 'other'}",
            f"--input_file={text_file}",
            "--preset=tiny",
        ],
        ["train", f"--out_dir={first}", "--resume=auto", "--steps=5"],
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be used (Read-only file system): name a folder you may write to" in line
    run({"resume": str(first.last), "out_dir": str(tmp_path / "branch"), "steps": 6})
    assert read_checkpoint(tmp_path / "branch" / "checkpoints" / "last.pt")["state"]["step"] == 6


def test_a_checkpoint_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {}})
    monkeypatch.setattr(
        Path,
        "open",
        lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")),
    )
    with pytest.raises(
        UserError, match=r"last.pt cannot be read \(Permission denied\): check its permissions"
    ):
        read_checkpoint(path)


# Removed


def test_when_its_folder_is_removed_a_run_ends_in_one_line_and_writes_nothing(settings):
    given = settings()
    directory = RunDirectory(given["out_dir"])
    with pytest.raises(
        UserError, match="was removed while this run trained in it: it ends at step 5"
    ):
        run(given, on_row=lambda row: row.step == 4 and shutil.rmtree(directory.path))
    assert not directory.path.exists()


def test_a_run_whose_folder_another_one_has_taken_writes_nothing_into_it(settings):
    given = settings(save_every=1)
    directory, found = RunDirectory(given["out_dir"]), {}

    def replace(row):
        if row.step == 4:
            shutil.rmtree(directory.path)
            train(RunConfig.resolve({**given, "steps": 1, "seed": 9}))
            found.update(
                {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
            )

    with pytest.raises(
        UserError,
        match="was removed while this run trained in it: it ends at step 5 and writes nothing there",
    ):
        run(given, on_row=replace)
    assert (
        len(found) > 5
        and {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
        == found
    )


# Names


def test_spaces_quotes_and_letters_of_other_scripts_in_paths_do_no_harm(
    settings, tmp_path, text_file, capsys
):
    folder = tmp_path / 'it\'s a "run" $HOME & `x` 日本 данные ünï [1] {2} %s'
    folder.mkdir()
    shutil.copy(text_file, folder / "my text's 文.txt")
    given = settings(
        out_dir=str(folder / "out [*] 1"), input_file=str(folder / "my text's 文.txt"), steps=3
    )
    assert main(["train", *(f"--{name}={value}" for name, value in given.items())]) == 0
    directory = RunDirectory(given["out_dir"])
    (directory.last.parent / ".last.pt.cut").write_bytes(b"half")  # as after a kill
    assert main(["train", f"--out_dir={directory}", "--resume=auto", "--steps=5"]) == 0
    assert (
        directory.read_summary()["step"] == 5
        and not (directory.last.parent / ".last.pt.cut").exists()
    )
    assert main(["sample", str(directory), "--max_new_tokens=2"]) == 0
    assert str(directory.log) in capsys.readouterr().out
    assert directory.read_summary()["corpus"]["path"] == (folder / "my text's 文.txt").as_posix()
