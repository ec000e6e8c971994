"""What Windows does otherwise, as far as it can be simulated; tests/README.md lists all of it."""

import errno
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_nb_utils import files
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten
from gpt2_nb_utils.files import move, write_atomically
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.report import notebooks
from gpt2_nb_utils.training.train import train

fcntl = pytest.importorskip("fcntl", reason="these tests simulate Windows on Linux")


def test_what_is_flushed_to_the_disk_is_open_for_writing(settings, monkeypatch):
    flush, flushed = os.fsync, []

    def as_windows(handle):
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise PermissionError(errno.EACCES, "a folder")
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        flush(handle)

    monkeypatch.setattr(os, "fsync", as_windows)
    summary = train(RunConfig.resolve(settings(steps=2, save_every=1)))
    assert summary["status"] == "steps_done"
    assert any(name.endswith("events.jsonl") for name in flushed)


def held_open(times: int, monkeypatch) -> list[str]:
    """Another program has the target open when `os.replace` is called, so many times."""
    replace, calls = os.replace, []

    def refused(source, target):
        calls.append(str(target))
        if len(calls) <= times:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    return calls


def test_a_file_that_a_virus_scanner_has_open_is_replaced_when_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    calls = held_open(3, monkeypatch)
    write_atomically(tmp_path / "summary.json", "{}")
    assert len(calls) == 4 and (tmp_path / "summary.json").read_text() == "{}"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_file_that_stays_open_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    (tmp_path / "a").touch()
    calls = held_open(10**6, monkeypatch)
    with pytest.raises(PermissionError) as caught:
        move(tmp_path / "a", tmp_path / "b")
    assert len(calls) > 10 and (tmp_path / "a").exists()
    monkeypatch.setattr("gpt2_nb_utils.errors.os", SimpleNamespace(name="nt", environ=os.environ))
    assert "close the program that has it open" in str(NotWritten("b", caught.value))


def test_elsewhere_a_refused_move_is_refused_at_once(tmp_path, monkeypatch):
    calls = held_open(1, monkeypatch)
    with pytest.raises(PermissionError):
        move(tmp_path / "a", tmp_path / "b")
    assert len(calls) == 1


def test_a_kernel_is_interrupted_by_its_event_and_not_ended(monkeypatch):
    kernel = SimpleNamespace(
        pid=os.getpid(),
        cmdline=lambda: [sys.executable, "-m", "ipykernel_launcher"],
        environ=lambda: {"JPY_INTERRUPT_EVENT": "1234"},
    )
    process = SimpleNamespace(children=lambda: [kernel])
    monkeypatch.setattr(notebooks.psutil, "Process", lambda: process)
    sent = []
    # The real module ends in a call of Windows: its one function is what counts here.
    event = SimpleNamespace(send_interrupt=sent.append)
    monkeypatch.setitem(sys.modules, "jupyter_client.win_interrupt", event)
    monkeypatch.setattr(notebooks, "WINDOWS", True)
    notebooks.interrupt_kernel()
    assert sent == [1234]
    monkeypatch.setattr(notebooks, "WINDOWS", False)
    with pytest.raises(KeyboardInterrupt):
        notebooks.interrupt_kernel()
        signal.pause()


def test_a_project_on_another_drive_is_executed_by_its_whole_path(tmp_path, monkeypatch):
    import papermill

    def on_another_drive(path):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    executed = []
    monkeypatch.setattr(notebooks.os.path, "relpath", on_another_drive)
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda source, *_, **more: executed.append(source)
    )
    name = "01_tokenization"
    notebooks._execute(
        notebooks._source(name), tmp_path / "01.ipynb", RunConfig.resolve({"device": "cpu"}), False
    )
    assert executed == [str(notebooks._source(name))]


def test_a_progress_line_is_drawn_over_without_escape_sequences(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(10, "training")
    progress._interval = 0
    progress.update(9, note="a long note " * 3)
    progress.update(10)
    progress.close()
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.endswith("\n")
    first, second, last = said.removeprefix("\r").removesuffix("\n").split("\r")
    assert len(first) == len(second) and "10/10" in last
