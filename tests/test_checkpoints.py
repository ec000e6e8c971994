"""Checkpoints that are damaged, foreign, missing or of another run: what is said, and from what a run goes on."""

import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import checkpoints, open_run, recorder
from gpt2_nb_utils.training.checkpoints import read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.train import train


def run(settings: dict, **more) -> RunDirectory:
    train(RunConfig.resolve(settings), **more)
    return RunDirectory(settings["out_dir"])


class Evil:
    """What a pickle would call when it is loaded."""

    trap: Path

    def __reduce__(self):
        return os.mkdir, (str(Evil.trap),)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, text_file):
    """A run with last.pt of step 6 and previous.pt of step 3, as a kill leaves it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    given = {
        "preset": "tiny",
        "input_file": str(text_file),
        "out_dir": str(folder),
        "device": "cpu",
        "n_embd": 8,
        "max_tokens": 512,
        "batch_size": 4,
        "log_every": 1,
        "eval_every": 3,
        "save_every": 3,
        "sample_every": 3,
        "max_new_tokens": 8,
        "lr_schedule": "constant",
        "warmup_steps": 0,
    }
    directory = run({**given, "steps": 3})
    shutil.copy(directory.last, directory.last.with_name("kept"))
    run({"out_dir": str(folder), "resume": "auto", "steps": 6})
    directory.last.with_name("kept").rename(directory.previous)
    return directory


@pytest.fixture
def copy(stopped, tmp_path):
    """A copy of that run, to be spoilt."""
    shutil.copytree(stopped.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def set_aside(directory: RunDirectory) -> Path:
    return directory.last.with_name("set_aside_last.pt")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def with_a_changed_bit(path: Path) -> None:
    """In the middle of the weights, where torch would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_code(path: Path) -> None:
    torch.save({"format": 1, "model": {"w": Evil()}}, path)


def content_of(directory: RunDirectory) -> dict:
    return {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}


# What is said about a file


def test_each_kind_of_bad_file_has_its_own_line(stopped, tmp_path):
    Evil.trap = tmp_path / "owned"
    whole = stopped.last.read_bytes()
    middle = len(whole) // 2
    files = {
        "cut.pt": (whole[:middle], r"is damaged \(cut short\): name another one"),
        "empty.pt": (b"", r"is damaged \(empty\)"),
        "zeros.pt": (bytes(middle), r"is damaged \([\d,]+ bytes, with nothing at their start\)"),
        "bit.pt": (
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            r"is damaged \(its checksums do not match",
        ),
        "text.pt": (
            b"not a checkpoint",
            "is not a checkpoint of this program: name one that this program wrote",
        ),
        "plain_pickle.pt": (pickle.dumps(Evil()), "is not a checkpoint of this program: name one"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    with_code(tmp_path / "code.pt")
    torch.save(
        {"format": 1, "model": {"w": Evil()}},
        tmp_path / "old_code.pt",
        _use_new_zipfile_serialization=False,
    )
    torch.save({"weights": torch.ones(1)}, tmp_path / "foreign.pt")
    torch.save({"format": "\x1b[2J", "model": {}}, tmp_path / "odd_format.pt")
    torch.save({"format": 99, "model": {}}, tmp_path / "newer.pt")
    with zipfile.ZipFile(tmp_path / "document.pt", "w", zipfile.ZIP_DEFLATED) as document:
        document.writestr("word/document.xml", "text " * 1000)
    lines = {name: line for name, (_, line) in files.items()} | {
        "code.pt": "holds more than tensors and plain values, which could run code",
        "old_code.pt": "is not a checkpoint of this program",
        "foreign.pt": "is not a checkpoint of this program",
        "odd_format.pt": "is not a checkpoint of this program",
        "newer.pt": "has format 99, newer than format 2.*use the version that wrote it",
        "document.pt": "is not a checkpoint of this program",
        "none.pt": "no such checkpoint",
    }
    for name, line in lines.items():
        with pytest.raises(
            UserError, match=f"{name}.* ?{line}" if name != "none.pt" else line
        ) as caught:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value) and str(caught.value).isprintable(), name
    assert not Evil.trap.exists()


def test_any_changed_byte_is_noticed_or_changes_nothing_and_no_length_but_the_whole_is_taken(
    tmp_path,
):
    path = tmp_path / "last.pt"
    content = {"model": {"w": torch.arange(300.0)}, "state": {"step": 3, "loss": 2.5}}
    save_checkpoint(path, content)
    whole, chance, refused = path.read_bytes(), random.Random(1), 0
    for place in chance.sample(range(len(whole)), 250):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ chance.randint(1, 255)]) + whole[place + 1 :]
        )
        try:
            read = read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        torch.testing.assert_close(read, {"format": 2, **content}, rtol=0, atol=0)
    assert refused > 100
    for length in chance.sample(range(len(whole)), 60):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_checkpoint(path)


# From what a run goes on


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (cut_short, r"last.pt is damaged \(cut short\)"),
        (with_a_changed_bit, "last.pt is damaged"),
        (with_code, "last.pt is not a checkpoint"),
        (Path.unlink, "last.pt is missing"),
    ],
)
def test_auto_goes_on_from_the_checkpoint_before_says_so_in_one_line_and_ends_the_same(
    stopped, copy, capsys, spoil, reason
):
    Evil.trap = copy.path / "owned"
    spoil(copy.last)
    spoilt = copy.last.read_bytes() if copy.last.exists() else None
    run({"out_dir": str(copy.path), "resume": "auto"})
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "checkpoint before it" in line
    ]
    assert (
        reason.replace("\\", "") in line
        and "continuing from the checkpoint before it, of step 3" in line
    )
    assert line in copy.log.read_text(encoding="utf-8")
    ours, theirs = read_checkpoint(copy.last), read_checkpoint(stopped.last)
    assert all(torch.equal(tensor, theirs["model"][name]) for name, tensor in ours["model"].items())
    assert copy.samples.read_bytes() == stopped.samples.read_bytes()
    assert (
        set_aside(copy).read_bytes() if spoilt is not None else None
    ) == spoilt and not Evil.trap.exists()


@pytest.mark.parametrize("spoil", [cut_short, with_code])
def test_where_no_checkpoint_before_is_left_that_is_said_and_nothing_changes(copy, spoil):
    Evil.trap = copy.path / "owned"
    spoil(copy.last)
    copy.previous.unlink()
    before = content_of(copy)
    with pytest.raises(
        UserError,
        match="previous.pt is missing, so there is nothing to continue from: put back a copy.*best.pt is whole, for `sample` and `verify`",
    ):
        run({"out_dir": str(copy.path), "resume": "auto"})
    assert content_of(copy) == before


def of_another_architecture(content: dict) -> None:
    content["model_config"]["n_layer"] = 3


def with_weights_of_another_shape(content: dict) -> None:
    content["model"]["transformer.wpe.weight"] = torch.zeros(3, 3)


def of_another_text(content: dict) -> None:
    content["corpus_sha256"] = "0" * 64


def of_a_newer_format(content: dict) -> None:
    content["format"] = 99


def of_odd_content(content: dict) -> None:
    content["state"] = {"step": 3, "mood": "fine"}


@pytest.mark.parametrize(
    "change, words",
    [
        (
            of_another_architecture,
            r"another architecture \(n_layer 3\) than the run in .* \(n_layer 2\): put back the checkpoint of that run",
        ),
        (with_weights_of_another_shape, "weights do not fit its model sizes"),
        (of_another_text, r"another text \(sha256 000000000000.*name that text"),
        (of_a_newer_format, "last.pt has format 99, newer than"),
        (of_odd_content, "lacks what this program writes"),
    ],
)
def test_a_whole_checkpoint_that_does_not_fit_the_run_is_not_passed_over_in_silence(
    copy, change, words
):
    content = read_checkpoint(copy.last)
    change(content)
    torch.save(content, copy.last)
    before = content_of(copy)
    with pytest.raises(UserError, match=words) as caught:
        run({"out_dir": str(copy.path), "resume": "auto", "steps": 7})
    assert "\n" not in str(caught.value) and content_of(copy) == before


def test_a_damaged_best_model_is_said_and_the_next_one_takes_its_place(copy, capsys):
    with_a_changed_bit(copy.best)
    run({"out_dir": str(copy.path), "resume": "auto", "steps": 9})
    assert (
        "best.pt is damaged" in capsys.readouterr().err
        and "best.pt is damaged" in copy.log.read_text(encoding="utf-8")
    )
    assert (
        read_checkpoint(copy.best)["state"]["step"]
        == copy.read_summary()["best_train_loss_step"]
        == 9
    )


def test_a_checkpoint_that_another_process_writes_meanwhile_is_not_gone_on_from(copy, monkeypatch):
    load = open_run.load_corpus
    monkeypatch.setattr(
        open_run, "load_corpus", lambda path: shutil.copy(copy.previous, copy.last) and load(path)
    )
    with pytest.raises(UserError, match="another process has just trained"):
        run({"out_dir": str(copy.path), "resume": "auto", "steps": 7})
    monkeypatch.undo()
    run(
        {"out_dir": str(copy.path), "resume": "auto", "steps": 7}
    )  # and the directory is not locked


def test_a_checkpoint_named_by_hand_sets_aside_the_one_whose_place_it_takes(copy):
    last = copy.last.read_bytes()
    train(RunConfig.resolve({"resume": str(copy.previous), "steps": 7}))
    assert set_aside(copy).read_bytes() == last and read_checkpoint(copy.last)["state"]["step"] == 7


def test_going_on_from_the_file_set_aside_does_not_lose_it(copy, monkeypatch):
    last, older = (
        read_checkpoint(copy.last)["state"]["step"],
        read_checkpoint(copy.previous)["state"]["step"],
    )
    copy.previous.rename(set_aside(copy))
    monkeypatch.setattr(
        recorder.Recorder, "_render_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )  # before any step
    with pytest.raises(KeyboardInterrupt):
        train(RunConfig.resolve({"resume": str(set_aside(copy)), "steps": 7}))
    kept = copy.last.parent.glob("set_aside_*last.pt")
    assert read_checkpoint(copy.last)["state"]["step"] == older
    assert {read_checkpoint(path)["state"]["step"] for path in kept} == {older, last}
    assert not list(copy.last.parent.glob(".*"))


@pytest.mark.parametrize(
    "junk",
    [b"\xff\xfe,1\n", b'"' + b"x" * 200_000 + b'",1\n', b"9" * 5000 + b"," * 9 + b"\n", b'"open\n'],
)
@pytest.mark.parametrize("name", ["metrics", "recall"])
def test_a_damaged_line_in_a_table_does_not_stop_a_resume(copy, name, junk):
    table = getattr(copy, name)
    before = table.read_bytes()
    table.write_bytes(before + junk)
    (table.parent / f".{table.name}.x1").write_bytes(b"half")  # as after a kill
    run({"out_dir": str(copy.path), "resume": "auto", "steps": 7})
    assert table.read_bytes().startswith(before) and junk not in table.read_bytes()
    assert not list(table.parent.glob(".*"))


# Folders that are thrown away


def test_a_folder_that_only_has_a_file_of_a_runs_name_is_not_thrown_away(settings, tmp_path):
    folder = tmp_path / "work"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "thesis.ipynb").write_text("mine", encoding="utf-8")
    (folder / "summary.json").write_text('{"title": "my work"}', encoding="utf-8")
    with pytest.raises(UserError, match="a summary.json that no run wrote"):
        RunDirectory(folder).claim(overwrite=True)
    assert (folder / "notebooks" / "thesis.ipynb").read_text(encoding="utf-8") == "mine"


def test_throwing_a_run_away_removes_a_link_and_not_what_it_leads_to(copy, tmp_path):
    elsewhere = tmp_path / "larger disk"
    copy.last.parent.rename(elsewhere)
    (copy.path / "checkpoints").symlink_to(elsewhere)
    copy.claim(overwrite=True).release()
    assert (elsewhere / "last.pt").exists() and not (copy.path / "checkpoints").is_symlink()


FORGED = [
    ("step", "x"),
    ("step", -5),
    ("step", 2.5),
    ("seconds", "x"),
    ("seconds", float("nan")),
    ("smoothed_loss", 1.0),
    ("tokens_seen", None),
    ("train_loss_windows", []),
    ("skipped_in_a_row", True),
]


@pytest.mark.parametrize(
    "change",
    [
        *({"state": pair} for pair in FORGED),
        {"corpus_sha256": None},
        {"random_states": {}},
        {"random_states": {"cpu": torch.zeros(3, dtype=torch.uint8)}},
        {"random_states": 5},
    ],
    ids=str,
)
def test_a_whole_checkpoint_with_forged_values_is_one_line_and_nothing_changes(copy, change):
    content = read_checkpoint(copy.last)
    if "state" in change:
        content["state"] = {**content["state"], change["state"][0]: change["state"][1]}
    else:
        content.update(change)
    save_checkpoint(copy.last, content)
    before = content_of(copy)
    with pytest.raises(UserError, match="last.pt lacks what this program writes into a checkpoint"):
        run({"out_dir": str(copy.path), "resume": "auto"})
    assert content_of(copy) == before


def test_forged_records_are_rendered_again_from_the_events_by_a_resumed_run(copy):
    for path, name in ((copy.summary, "resumed_with"), (copy.environment, "resumed")):
        copy.write_json(path, {**copy.read_json(path), name: 5})
    run({"out_dir": str(copy.path), "resume": "auto", "steps": 7})
    assert [each["step"] for each in copy.read_summary()["resumed_with"]] == [3, 6]
    assert len(copy.read_json(copy.environment)["resumed"]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "logs/events.jsonl",
        "logs/train.log",
        "logs/train_metrics.csv",
        "samples/samples.txt",
        "notebooks/03_training.ipynb",
    ],
)
def test_a_record_that_is_a_link_is_refused_and_what_it_leads_to_stays(copy, tmp_path, name):
    victim, link = tmp_path / "victim", copy.path / name
    victim.write_text("mine", encoding="utf-8")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with pytest.raises(UserError, match=f"{link.name} is a link"):
        run({"out_dir": str(copy.path), "resume": "auto", "steps": 7})
    assert victim.read_text(encoding="utf-8") == "mine"


def test_going_on_from_a_named_checkpoint_and_throwing_its_run_away_contradict_each_other(copy):
    before = content_of(copy)
    with pytest.raises(
        UserError, match="--resume .*last.pt continues a run and --overwrite throws one away"
    ):
        run({"out_dir": str(copy.path), "resume": str(copy.last), "overwrite": True})
    assert content_of(copy) == before


# The checkpoint before


@pytest.mark.parametrize("links", [True, False])
def test_the_checkpoint_before_is_kept_when_a_new_one_takes_its_place(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(
            checkpoints.os,
            "link",
            lambda *_: (_ for _ in ()).throw(PermissionError(1, "not on this file system")),
        )
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (1, 2, 3):
        save_checkpoint(last, {"model": {}, "step": step}, previous=previous)
    assert (read_checkpoint(last)["step"], read_checkpoint(previous)["step"]) == (3, 2)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_a_run_that_breaks_off_keeps_two_checkpoints_and_one_that_ends_keeps_the_last(settings):
    def fail(row):
        if row.step == 5:
            raise ZeroDivisionError

    given = settings(save_every=1)
    with pytest.raises(ZeroDivisionError):
        run(given, on_row=fail)
    directory = RunDirectory(given["out_dir"])
    assert (
        read_checkpoint(directory.previous)["state"]["step"]
        < read_checkpoint(directory.last)["state"]["step"]
        == 4
    )
    run({"out_dir": given["out_dir"], "resume": "auto"})
    assert directory.last.exists() and not directory.previous.exists()


# A run killed in its first moments, or while an old one is thrown away


@pytest.mark.parametrize(
    "left",
    [[], ["config.json"], ["tokens.bin", "config.json", "environment.json", ".summary.json.x1"]],
)
def test_a_folder_in_which_a_run_was_killed_before_it_had_a_summary_can_be_used(settings, left):
    given = settings(steps=1)
    directory = RunDirectory(given["out_dir"])
    directory.claim().release()
    for name in left:
        (directory.path / name).write_text("{}", encoding="utf-8")
    run(given)
    assert directory.read_summary()["status"] == "steps_done" and not list(
        directory.path.glob(".summary*")
    )


def test_a_folder_with_a_lock_and_a_file_of_somebody_elses_is_refused(settings):
    given = settings(steps=1)
    directory = RunDirectory(given["out_dir"])
    directory.claim().release()
    (directory.path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds files but no run"):
        run(given)


def test_while_an_old_run_is_thrown_away_its_folder_is_known_for_a_runs_to_the_last(
    copy, monkeypatch
):
    unlink, seen = Path.unlink, []
    monkeypatch.setattr(
        Path, "unlink", lambda path, **more: (seen.append(copy.holds_run), unlink(path, **more))[1]
    )
    copy.claim(overwrite=True).release()
    assert len(seen) > 3 and all(seen) and not copy.holds_run
