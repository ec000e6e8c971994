"""The command `sweep`, and what notebook 03 says about its runs: real trainings of a second, and what goes wrong."""

import csv
import gc
import html
import io
import json
import re
import shutil
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.report import sweep as sweep_module
from gpt2_nb_utils.report.sweep import sweep
from gpt2_nb_utils.report.sweep_spec import read_spec
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training import recipe, recipe_figures, sweep_results
from gpt2_nb_utils.training.loop import train
from gpt2_nb_utils.training.muon import orthogonalise
from gpt2_nb_utils.training.run_log import Row
from gpt2_nb_utils.training.sweep_results import Outcome, Sweep, best_first, read_sweep, write_sweep

PROJECT = Path(__file__).parents[1]
RUNS = {
    "slow": {"lr": 0.001},
    "fast": {"lr": 0.01, "optimizer": "muon"},
    "small": {"lr": 0.01, "batch_size": 2},
}
DIVERGES = {"lr": 1e20, "steps": 30}


def toml(table: dict) -> str:
    return "".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in table.items())


@pytest.fixture
def spec(tmp_path, settings):
    """Writes a spec of these runs on the tiny model of the tests; call it with what should differ."""

    def make(runs: dict[str, dict] = RUNS, title: str = "", extra: str = "", **common) -> Path:
        shared = {**settings(sample_every=0, save_every=100, eval_every=100, **common)}
        del shared["out_dir"]
        tables = "".join(
            f"[runs.{json.dumps(name)}]\n{toml(changes)}" for name, changes in runs.items()
        )
        path = tmp_path / "spec.toml"
        path.write_text(
            f"title = {json.dumps(title)}\n{extra}\n[common]\n{toml(shared)}{tables}",
            encoding="utf-8",
        )
        return path

    return make


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def summary_of(folder: Path, name: str) -> dict:
    return RunDirectory(folder / name).read_summary()


# -- the files of a sweep --------------------------------------------------------------------------------------------


def test_the_table_says_what_the_summaries_of_the_runs_say_and_the_best_stands_first(
    spec, tmp_path
):
    sweep(spec(), tmp_path / "sweep")
    table = rows_of(tmp_path / "sweep" / "table.csv")
    assert list(table[0]) == [
        "name",
        "batch_size",
        "optimizer",
        "lr",
        "tokens_per_step",
        "tokens",
        "epochs",
        "seconds",
        "train_loss",
        "train_loss_windows",
        "status",
        "reason",
    ]
    for row in table:
        summary = summary_of(tmp_path / "sweep", row["name"])
        assert {name: row[name] for name in ("batch_size", "optimizer", "lr")} == {
            name: str(summary["config"][name]) for name in ("batch_size", "optimizer", "lr")
        }
        assert int(row["tokens_per_step"]) == summary["config"]["batch_size"] * 64
        assert (
            int(row["tokens"]),
            float(row["epochs"]),
            float(row["seconds"]),
            float(row["train_loss"]),
        ) == (summary["tokens_seen"], summary["epoch"], summary["seconds"], summary["train_loss"])
        assert (row["train_loss_windows"], row["status"], row["reason"]) == (
            "all",
            "steps_done",
            "",
        )
    losses = [float(row["train_loss"]) for row in table]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert {row["name"] for row in table} == set(RUNS)


def test_the_curves_are_those_of_the_runs_and_the_figure_is_not_blank(spec, tmp_path):
    sweep(spec(), tmp_path / "sweep")
    points = rows_of(tmp_path / "sweep" / "curves.csv")
    for name in RUNS:
        metrics = rows_of(RunDirectory(tmp_path / "sweep" / name).metrics)
        own = [point for point in points if point["name"] == name]
        assert [list(row.values())[1:] for row in own] == [
            list(row.values())[:5] for row in metrics
        ]
        assert len(own) == 7  # random weights, and 6 steps
    picture = imread(tmp_path / "sweep" / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600 and picture[..., :3].std() > 0.05


def test_a_run_of_a_sweep_is_the_run_that_train_makes_alone(spec, settings, tmp_path):
    sweep(spec(), tmp_path / "sweep", keep_checkpoints=True)
    alone = train(
        RunConfig.resolve(settings(sample_every=0, save_every=100, eval_every=100, **RUNS["small"]))
    )
    assert summary_of(tmp_path / "sweep", "small")["train_loss"] == alone["train_loss"]
    assert summary_of(tmp_path / "sweep", "slow")["train_loss"] != alone["train_loss"]


def test_checkpoints_of_finished_runs_go_and_best_pt_stays_on_request(spec, tmp_path):
    sweep(spec(), tmp_path / "without")
    sweep(spec(), tmp_path / "with", keep_checkpoints=True)
    assert list((tmp_path / "without").rglob("*.pt")) == []
    assert sorted(
        path.relative_to(tmp_path / "with").as_posix() for path in (tmp_path / "with").rglob("*.pt")
    ) == [f"{name}/checkpoints/best.pt" for name in sorted(RUNS)]
    sweep(spec(), tmp_path / "with")  # nothing to train any more: what was asked to stay stays
    assert len(list((tmp_path / "with").rglob("best.pt"))) == 3


def test_no_text_of_a_spec_or_a_run_leaves_its_place_in_the_markdown_table(spec, tmp_path):
    hostile = "a | b <img> *c* `d` [e](f) $g$"
    sweep(
        spec({"one": {"prompt": hostile}, "two": {"prompt": "x\ny"}}, title=f"# {hostile}\n\nnext"),
        tmp_path / "sweep",
    )
    text = (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8")
    heading, *_ = text.splitlines()
    assert heading == r"# # a \| b &lt;img&gt; \*c\* \`d\` \[e\](f) \$g\$ next"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    assert "<img>" not in text and "| x y |" in text
    assert {row["prompt"] for row in rows_of(tmp_path / "sweep" / "table.csv")} == {
        hostile,
        "x\ny",
    }  # CSV keeps all of it
    assert {outcome.settings["prompt"] for outcome in read_sweep(tmp_path / "sweep").outcomes} == {
        hostile,
        "x\ny",
    }


def test_a_sweep_on_the_demonstration_corpus_says_so(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no data/input.txt here
    assert main(["sweep", str(spec({"one": {}}, input_file="")), "--out_dir=sweep"]) == 0
    assert "demonstration corpus" in capsys.readouterr().out
    assert "demonstration corpus" in (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8")


def test_the_command_prints_the_table_and_where_the_figure_is(spec, tmp_path, capsys):
    assert main(["sweep", str(spec()), f"--out_dir={tmp_path / 'sweep'}"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8") in printed
    assert str(tmp_path / "sweep" / "curves.png") in printed


# -- what fails, what is broken off, what is refused -----------------------------------------------------------------


def test_a_run_that_diverges_is_a_row_with_its_reason_and_the_sweep_goes_on(spec, tmp_path, capsys):
    path = spec({"wild": DIVERGES, "calm": {}})
    assert main(["sweep", str(path), f"--out_dir={tmp_path / 'sweep'}"]) == 0
    calm, wild = rows_of(tmp_path / "sweep" / "table.csv")
    assert (calm["name"], calm["status"], wild["name"], wild["status"]) == (
        "calm",
        "steps_done",
        "wild",
        "failed",
    )
    assert (
        "20 steps in a row had no finite gradients" in wild["reason"] and wild["train_loss"] == ""
    )
    assert "wild failed: 20 steps in a row" in (tmp_path / "sweep" / "table.md").read_text(
        encoding="utf-8"
    )
    capsys.readouterr()
    before = RunDirectory(tmp_path / "sweep" / "wild").metrics.stat().st_mtime_ns
    assert main(["sweep", str(path), f"--out_dir={tmp_path / 'sweep'}"]) == 0
    assert "wild: failed before" in capsys.readouterr().out
    assert RunDirectory(tmp_path / "sweep" / "wild").metrics.stat().st_mtime_ns == before


def test_an_error_of_the_machine_in_one_run_does_not_end_the_sweep(spec, tmp_path, monkeypatch):
    real = GPT2.__init__

    def too_large(self, config, *args, **kwargs):
        if config.n_embd == 16:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        real(self, config, *args, **kwargs)

    monkeypatch.setattr(GPT2, "__init__", too_large)
    sweep(spec({"large": {"n_embd": 16}, "small": {}}), tmp_path / "sweep")
    small, large = rows_of(tmp_path / "sweep" / "table.csv")
    assert small["status"] == "steps_done" and large["status"] == "failed"
    assert large["reason"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_no_model_of_an_earlier_run_is_in_memory_when_the_next_one_starts(
    spec, tmp_path, monkeypatch
):
    models, alive = [], []

    def watched(config):
        alive.append(sum(model() is not None for model in models))
        return train(config)

    real = GPT2.__init__
    monkeypatch.setattr(
        GPT2,
        "__init__",
        lambda self, *a, **k: models.append(weakref.ref(self)) or real(self, *a, **k),
    )
    monkeypatch.setattr(sweep_module, "train", watched)
    gc.disable()  # or it might be luck
    try:
        sweep(spec({"one": {}, "wild": DIVERGES, "two": {}}), tmp_path / "sweep")
    finally:
        gc.enable()
    assert alive == [0, 0, 0] and len(models) == 3


def stop_at(run: str, step: int, monkeypatch) -> None:
    """Let Ctrl-C come at a step of a run."""

    def on_row(config, row):
        if config.out_dir.endswith(run) and row.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(
        sweep_module, "train", lambda config: train(config, on_row=lambda row: on_row(config, row))
    )


def test_a_sweep_that_was_broken_off_goes_on_where_it_stopped_and_ends_the_same(
    spec, tmp_path, monkeypatch, capsys
):
    sweep(spec(), tmp_path / "whole")
    folder = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_at("fast", 3, patch)
        assert main(["sweep", str(spec()), f"--out_dir={folder}"]) == 130
    status = {row["name"]: row["status"] for row in rows_of(folder / "table.csv")}
    assert status == {"slow": "steps_done", "fast": "interrupted", "small": "not started"}
    assert (folder / "fast" / "checkpoints" / "last.pt").exists() and summary_of(folder, "fast")[
        "step"
    ] == 3
    first = {
        path: path.stat().st_mtime_ns for path in (folder / "slow").rglob("*") if path.is_file()
    }
    capsys.readouterr()
    assert main(["sweep", str(spec()), f"--out_dir={folder}"]) == 0
    assert "slow: steps done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "resumed at step 3" in RunDirectory(folder / "fast").log.read_text(encoding="utf-8")
    assert list(folder.rglob("*.pt")) == []

    def without_seconds(path: Path) -> list[dict]:
        return [{**row, "seconds": ""} for row in rows_of(path)]

    assert without_seconds(folder / "table.csv") == without_seconds(
        tmp_path / "whole" / "table.csv"
    )
    assert (folder / "curves.csv").read_bytes() == (tmp_path / "whole" / "curves.csv").read_bytes()


def test_a_run_that_was_killed_without_notice_starts_anew(spec, tmp_path):
    """Killed before its first checkpoint: the summary still says `running`."""
    expected = sweep(spec({"one": {}}), tmp_path / "whole")[0].train_loss
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    directory = RunDirectory(tmp_path / "killed" / "one")
    directory.write_json(
        directory.summary, {**directory.read_summary(), "status": "running", "step": 4}
    )
    (killed,) = sweep_module.write_files(
        read_spec(spec({"one": {}}), tmp_path / "killed"), tmp_path / "killed"
    )
    assert (
        killed.status == "interrupted" and killed.train_loss is None
    )  # measured at another step than it is at
    (again,) = sweep(spec({"one": {}}), tmp_path / "killed")
    assert again.status == "steps_done" and again.train_loss == expected


def test_a_spec_may_grow_and_only_the_new_run_is_trained(spec, tmp_path, capsys):
    sweep(spec({"slow": RUNS["slow"]}), tmp_path / "sweep")
    capsys.readouterr()
    outcomes = sweep(spec({"slow": RUNS["slow"], "fast": RUNS["fast"]}), tmp_path / "sweep")
    assert "slow: steps done before" in capsys.readouterr().out and {
        o.status for o in outcomes
    } == {"steps_done"}
    assert outcomes[0].settings.keys() == {"optimizer", "lr"}


def test_an_excerpt_longer_than_the_text_is_the_same_run_again(spec, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("A short text, to be sure. " * 10, encoding="utf-8")

    def make():
        return spec({"one": {}}, input_file=str(text), max_tokens=5000)

    sweep(make(), tmp_path / "sweep")
    assert summary_of(tmp_path / "sweep", "one")["config"]["max_tokens"] == 0
    assert sweep(make(), tmp_path / "sweep")[0].status == "steps_done"


@pytest.mark.parametrize(
    "runs, extra, words",
    [
        (
            {"a": {"lr": 0.1}, "b": {"lerning_rate": 1}},
            "",
            r"run 'b': unknown setting 'lerning_rate': did you mean 'lr'",
        ),
        ({"a": {"lr": -1.0}}, "", r"run 'a': lr -1.0: must be greater than or equal to 0"),
        ({"a": {"lr": "fast"}}, "", r"run 'a': lr 'fast'"),
        (
            {"a": {"n_embd": 10, "n_head": 4}},
            "",
            r"run 'a': n_embd 10 is not divisible by n_head 4",
        ),
        ({"a": {"out_dir": "elsewhere"}}, "", r"run 'a': out_dir is set by the sweep"),
        ({"a": {"resume": "auto"}}, "", r"run 'a': resume is set by the sweep"),
        ({"a": {"overwrite": True}}, "", r"run 'a': overwrite is set by the sweep"),
        ({"a": {"device": "cuda:97"}}, "", r"run 'a': device cuda:97: this machine has"),
        ({"../a": {}}, "", r"run '../a': the name becomes a folder"),
        ({"": {}}, "", r"run '': the name becomes a folder"),
        ({"con": {}}, "", r"run 'con': the name becomes a folder"),
        ({"a": {}, "A": {}}, "", r"run 'A': 'a' has the same name but for capitals"),
        ({}, "", r"names no runs"),
        ({"a": {}}, "rnus = 1", r"unknown entry 'rnus'"),
        ({"a": {}}, "runs.b = 3", r"run 'b': it has no table of settings"),
        ({"a": {}}, "runs.b.c.lr = 3", r"run 'b': 'c' is a table, not a setting"),
        ({"a": {}}, "runs.a = 3", r"not valid TOML"),
        ({"a": {"input_file": "no/such/file.txt"}}, "", r"no/such/file.txt"),
    ],
)
def test_a_bad_spec_is_one_line_and_nothing_is_written(spec, tmp_path, capsys, runs, extra, words):
    path = spec(runs, extra=extra)
    assert main(["sweep", str(path), f"--out_dir={tmp_path / 'sweep'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(words, line), line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "content, words",
    [(None, "cannot be read"), (b"\xff\xfe", "not valid TOML"), (b"a = ", "not valid TOML")],
)
def test_a_file_that_is_no_spec_is_one_line(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "spec.toml").write_bytes(content)
    assert main(["sweep", str(tmp_path / "spec.toml"), f"--out_dir={tmp_path / 'sweep'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "sweep").exists()


def test_a_run_that_was_made_with_other_settings_is_refused_before_anything_starts(spec, tmp_path):
    sweep(spec({"slow": {"lr": 0.001}}), tmp_path / "sweep")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")}
    with pytest.raises(
        UserError,
        match=r"^run 'slow': .*slow was made with lr 0.001, the spec says 0.002: delete that folder",
    ):
        sweep(spec({"new": {}, "slow": {"lr": 0.002}}), tmp_path / "sweep")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*")} == before


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: folder.write_text("mine"), "is a file"),
        (
            lambda folder: folder.mkdir() or (folder / "thesis.txt").write_text("mine"),
            "holds files but no sweep",
        ),
    ],
)
def test_a_folder_that_is_no_sweep_is_refused_and_left_alone(spec, tmp_path, make, words):
    make(tmp_path / "sweep")
    with pytest.raises(UserError, match=words):
        sweep(spec(), tmp_path / "sweep")
    assert [path.name for path in tmp_path.rglob("*") if path.name != "spec.toml"] in (
        ["sweep"],
        ["sweep", "thesis.txt"],
    )


def test_a_second_sweep_in_the_folder_of_one_at_work_is_told_in_one_line(
    spec, tmp_path, monkeypatch
):
    path, told = spec({"one": {}}), []

    def train_while_another_begins(config):
        with pytest.raises(UserError, match="another sweep is at work there") as refused:
            sweep(path, tmp_path / "sweep")
        told.append(refused)
        return train(config)

    monkeypatch.setattr(sweep_module, "train", train_while_another_begins)
    assert sweep(path, tmp_path / "sweep")[0].status == "steps_done" and len(told) == 1
    assert (
        sweep(path, tmp_path / "sweep")[0].status == "steps_done"
    )  # and afterwards the folder is free


def test_a_run_that_another_process_trains_ends_the_sweep_and_is_not_written_down_as_failed(
    spec, tmp_path
):
    path = spec({"one": {}})
    lock = RunDirectory(tmp_path / "sweep" / "one").claim()
    (tmp_path / "sweep" / "spec.toml").touch()  # a sweep was here before
    with pytest.raises(UserError, match="another process is training there"):
        sweep(path, tmp_path / "sweep")
    lock.release()
    assert sweep(path, tmp_path / "sweep")[0].status == "steps_done"


def test_a_flag_that_belongs_to_runs_is_no_flag_of_a_sweep(spec, capsys):
    assert main(["sweep", str(spec()), "--lr=3"]) == 2
    assert "unexpected argument '--lr=3'" in capsys.readouterr().err


# -- the committed spec, and the table it makes ----------------------------------------------------------------------


def test_the_committed_spec_is_valid_and_its_runs_can_be_compared(tmp_path):
    spec = read_spec(sweep_results.REFERENCE / "recipe.toml", tmp_path)
    assert len(spec.runs) >= 10 and {config.optimizer for config in spec.runs.values()} == {
        "adamw",
        "muon",
    }
    for name, config in spec.runs.items():
        assert (config.steps * config.tokens_per_step, config.max_tokens) == (65536, 8192), name
        if config.seed != 1337:  # to see what chance does, nothing else may differ
            same, other = (
                each.model_dump(exclude={"seed", "out_dir"}) for each in (spec.runs["muon"], config)
            )
            assert same == other, name
        assert config.eval_windows == 0 and config.log_every == 1, name
    assert len(
        {tuple(config.model_dump(exclude={"out_dir"}).items()) for config in spec.runs.values()}
    ) == len(spec.runs)


@pytest.mark.skipif(
    not (sweep_results.REFERENCE / "table.csv").exists(),
    reason="the reference sweep is not committed yet",
)
def test_the_committed_table_is_that_of_the_committed_spec(tmp_path):
    spec, table = read_spec(sweep_results.REFERENCE / "recipe.toml", tmp_path), read_sweep()
    assert {outcome.name: outcome.settings for outcome in table.outcomes} == {
        name: {setting: str(getattr(config, setting)) for setting in spec.varying}
        for name, config in spec.runs.items()
    }
    assert all(
        rows[-1].train_loss == pytest.approx(outcome.train_loss, rel=1e-5)
        for outcome in table.outcomes
        if outcome.ranked
        for rows in [table.curves[outcome.name]]
    )


# -- reading a sweep, and saying what it shows -----------------------------------------------------------------------


def outcome(
    name: str, loss: float | None, status: str = "steps_done", tokens: int = 100, **settings: str
) -> Outcome:
    return Outcome(
        name, settings, 64, tokens, tokens / 50, 1.5, loss, "all" if loss else None, status
    )


EXAMPLE = [
    outcome("muon", 0.5, optimizer="muon", lr="0.03"),
    outcome("muon-low", 0.75, optimizer="muon", lr="0.01"),
    outcome("adamw", 2.0, optimizer="adamw", lr="0.002"),
    outcome("adamw-high", 4.5, optimizer="adamw", lr="0.03"),
    outcome("wild", None, "failed", optimizer="muon", lr="9.0"),
]


def example() -> Sweep:
    def curve(end):
        return [
            Row(
                step,
                step / 4,
                step * 50,
                10.8 * (end / 10.8) ** (step / 8) if step else None,
                10.8 if step == 0 else end if step == 8 else None,
            )
            for step in range(9)
        ]

    return Sweep(
        list(EXAMPLE), {outcome.name: curve(outcome.train_loss or 12.0) for outcome in EXAMPLE}
    )


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    wanted = example()
    wanted.outcomes[-1] = Outcome(**{**vars(EXAMPLE[-1]), "reason": 'a "quoted", long\nstory'})
    write_sweep(tmp_path, wanted)
    found = read_sweep(tmp_path)
    assert found.outcomes == wanted.outcomes and found.best == EXAMPLE[0]
    assert [row.step for row in found.curves["adamw"]] == list(range(9)) and found.curves["adamw"][
        0
    ].loss is None
    assert found.curves["adamw"][8].loss == pytest.approx(2.0, rel=1e-6)


def test_runs_that_reached_the_target_are_ordered_by_their_tokens_and_come_before_all_others():
    runs = [
        outcome("lucky", 0.2),
        outcome("unfinished", 0.01, "interrupted"),
        outcome("late", 0.05, "target_reached", 900),
        outcome("early", 0.09, "target_reached", 500),
        outcome("none", None, "not_started"),
        outcome("better", 0.15),
    ]
    assert [run.name for run in best_first(runs)] == [
        "early",
        "late",
        "better",
        "lucky",
        "unfinished",
        "none",
    ]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "table.csv").unlink(), "table.csv is missing"),
        (lambda folder: (folder / "curves.csv").unlink(), "curves.csv is missing"),
        (lambda folder: (folder / "table.csv").write_text(""), "table.csv cannot be read"),
        (lambda folder: (folder / "table.csv").write_text("x,y\n1,2\n"), "other columns"),
        (
            lambda folder: (folder / "table.csv").write_bytes(b"\xff\xfe"),
            "table.csv cannot be read",
        ),
        (lambda folder: (folder / "curves.csv").open("a").write("muon,9"), "cut short"),
        (lambda folder: (folder / "curves.csv").open("a").write("other,1,1,1,1,1\n"), "KeyError"),
        (
            lambda folder: (folder / "curves.csv").open("a").write("muon,1,one,1,1,1\n"),
            "ValueError",
        ),
    ],
)
def test_a_sweep_that_is_missing_or_damaged_is_one_line_and_no_sweep(tmp_path, spoil, words):
    write_sweep(tmp_path, example())
    spoil(tmp_path)
    gc.collect()  # closes what the spoiling opened
    found, said = sweep_results.read_sweep_or_say(tmp_path)
    assert found is None and words in said and "\n" not in said
    assert str(tmp_path) not in said  # a saved notebook names no folder of this machine


def test_a_sweep_is_announced_by_its_size(tmp_path):
    write_sweep(tmp_path, example())
    assert (
        sweep_results.read_sweep_or_say(tmp_path)[1]
        == "5 runs, 4 of which came to their end, after 2 epochs."
    )


def test_the_comparison_shows_each_loser_with_what_it_did_otherwise_and_what_that_cost():
    shown = recipe.comparison(example()).data
    cells = [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in shown.split("<tr")
    ]
    by_name = {row[0]: row[1:] for row in cells if row}
    assert by_name["muon"] == ["", "64", "0.5000", "the best"]
    assert by_name["muon-low"] == ["lr 0.01 (not 0.03)", "64", "0.7500", "+0.2500"]
    assert by_name["adamw"] == [
        "optimizer adamw (not muon), lr 0.002 (not 0.03)",
        "64",
        "2.0000",
        "+1.5000",
    ]
    assert by_name["wild"][2:] == ["failed", ""]


def test_the_losers_are_told_with_numbers_of_the_table():
    told = recipe.losers(example()).splitlines()
    assert told[0] == "best: muon, training loss 0.5000 after 2 epochs"
    assert told[1] == "next: muon-low, +0.2500 nats per token (lr 0.01 (not 0.03))"
    assert told[2].startswith("best of adamw: adamw, +1.5000") and told[3].startswith(
        "last: adamw-high, +4.0000"
    )
    assert told[4] == "failed: wild"
    assert len(recipe.losers(Sweep(EXAMPLE[:2], {})).splitlines()) == 2  # next and last are one
    assert "nothing to compare" in recipe.losers(Sweep(EXAMPLE[:1], {}))
    assert "Lowest: muon, training loss 0.5000" in recipe.in_words(
        example()
    ) and "adamw-high" in recipe.in_words(example())


def test_runs_are_described_against_the_one_that_all_vary_which_need_not_be_the_best():
    varied = [
        outcome("best", 0.1, optimizer="muon", lr="0.3"),
        outcome("base", 0.2, optimizer="muon", lr="0.2"),
        outcome("other", 0.3, optimizer="adamw", lr="0.2"),
        outcome("low", 0.4, optimizer="muon", lr="0.1"),
    ]
    told = recipe.losers(Sweep(varied, {})).splitlines()
    assert told[0] == "best: best, training loss 0.1000 after 2 epochs (lr 0.3 (not 0.2))"
    assert told[1] == "next: base, +0.1000 nats per token"
    assert "what it does otherwise than base" in recipe.comparison(Sweep(varied, {})).data
    assert any("(optimizer adamw (not muon))" in line for line in told)


def test_text_of_a_sweep_is_text_in_the_comparison():
    hostile = outcome("<script>", 1.0, prompt="<img src=x>")
    shown = recipe.comparison(Sweep([outcome("a", 0.5, prompt="x"), hostile], {})).data
    assert "<script>" not in shown and "<img" not in shown and "&lt;script&gt;" in shown


@pytest.mark.parametrize(
    "outcomes, curves",
    [
        (EXAMPLE, {}),
        (EXAMPLE[-1:], {}),
        (EXAMPLE, {"wild": [Row(1, 0.1, 5, float("nan")), Row(2, 0.2, 10, 1e30)]}),
        ([outcome(f"run-{number}", 1 + number / 10) for number in range(30)], {}),
    ],
)
def test_the_curves_can_be_drawn_from_whatever_there_is(outcomes, curves, tmp_path):
    figure = recipe_figures.curves(
        Sweep(outcomes, {outcome.name: curves.get(outcome.name, []) for outcome in outcomes})
    )
    figure.savefig(tmp_path / "curves.png")
    low, high = figure.axes[0].get_ylim()
    assert (
        0 < low < 0.1 and 10.8 < high < 20
    )  # a run that diverged does not push the others together


def test_the_best_curve_stands_out_and_every_line_has_its_label():
    axes = recipe_figures.curves(example()).axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert lines.keys() == {outcome.name for outcome in EXAMPLE}
    widths = {name: line.get_linewidth() for name, line in lines.items()}
    assert (
        min(widths, key=lambda name: -widths[name]) == "muon"
        and widths["muon"] > 2 * widths["adamw"]
    )
    assert axes.get_yscale() == "log"
    labels = " ".join(text.get_text() for text in axes.texts)
    assert "target 0.099999" in labels and "muon  0.500" in labels and "wild  (failed)" in labels
    assert lines["adamw"].get_xdata()[-1] == 2.0  # epochs, not steps


# -- what Muon does to a gradient ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(text_file):
    return torch.from_numpy(encode(text_file.read_text(encoding="utf-8")))


def test_the_parts_of_the_gradient_add_up_to_that_of_the_mean_loss(tokens, monkeypatch):
    made = []
    real = GPT2.__init__
    monkeypatch.setattr(
        GPT2, "__init__", lambda self, *a, **k: made.append(self) or real(self, *a, **k)
    )
    gradient = recipe.first_gradient(tokens, seed=7)
    (model,) = made
    windows = Windows(tokens, 64)
    x, y = windows.batch(windows.evenly_spread(8))
    model.zero_grad()
    model.loss(x, y).backward()
    torch.testing.assert_close(
        gradient.whole, model.transformer.h[-1].mlp.c_fc.weight.grad, rtol=1e-3, atol=1e-7
    )
    ids = y.flatten().tolist()
    assert gradient.share == pytest.approx(sum(ids.count(token) == 1 for token in ids) / len(ids))


def test_the_share_of_the_rare_is_the_fall_of_their_loss_after_a_small_step():
    """For L = ⟨A, W⟩ + ⟨B, W⟩ a step along U lowers the two terms by ⟨A, U⟩ and ⟨B, U⟩, exactly."""
    generator = torch.Generator().manual_seed(3)
    rare, frequent, update, weights = (
        torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    fall = [
        (part * weights).sum() - (part * (weights - 1e-3 * update)).sum()
        for part in (rare, frequent)
    ]
    share = recipe.share_of_rare(update, recipe.SplitGradient(rare, frequent, 0.5))
    assert share == pytest.approx((fall[0] / (fall[0] + fall[1])).item(), rel=1e-6)


@pytest.mark.parametrize("seed", [1, 1337])
def test_the_rare_tokens_gain_by_muon_as_the_notebook_says(tokens, seed):
    gradient = recipe.first_gradient(tokens, seed)
    plain, adamw, muon = (
        recipe.share_of_rare(update, gradient)
        for update in (gradient.whole, gradient.whole.sign(), orthogonalise(gradient.whole))
    )
    assert plain < adamw < muon and muon > 0.75 * gradient.share > plain


@pytest.mark.parametrize("n_tokens", [3, 40, 70])
def test_a_text_of_a_few_tokens_has_a_gradient_too(tokens, n_tokens):
    gradient = recipe.first_gradient(tokens[:n_tokens], seed=1)
    assert (
        gradient.whole.isfinite().all() and gradient.whole.norm() > 0 and 0 <= gradient.share <= 1
    )


def test_the_singular_values_drawn_are_those_of_the_matrix_and_even_after_muon(tokens):
    gradient = recipe.first_gradient(tokens, seed=1337).whole
    before = np.linalg.svd(gradient.double().numpy(), compute_uv=False)
    after = torch.linalg.svdvals(orthogonalise(gradient))
    figure = recipe_figures.singular_values(torch.linalg.svdvals(gradient), after)
    first, second = (line.get_ydata() for line in figure.axes[0].lines)
    real = before[before > 1e-5 * before.max()]
    np.testing.assert_allclose(first, real / real.mean(), rtol=1e-3)
    assert first[0] / first[-1] > 10 and len(second) == len(first) and second[0] / second[-1] < 3


@pytest.mark.parametrize("found", [True, False])
def test_the_section_of_notebook_03_shows_a_sweep_and_without_one_says_so(
    tokens, found, monkeypatch, capsys
):
    cells = json.loads((PROJECT / "notebooks" / "03_training.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    section = {cell["id"]: "".join(cell["source"]) for cell in cells}
    shown = {}
    stub = SimpleNamespace(show=lambda figure, alt: shown.update({alt: figure}))
    monkeypatch.setattr(
        sweep_results,
        "read_sweep_or_say",
        lambda: (example(), "5 runs") if found else (None, "it is missing"),
    )
    names = {
        "torch": torch,
        "tokens": tokens,
        "config": RunConfig.resolve({"preset": "tiny"}),
        "notebook": stub,
    }
    for cell in ("muon", "rare", "sweep", "sweep-figure", "losers"):
        exec(section[cell], names)
    said = capsys.readouterr().out
    assert re.search(r"plain gradient +\d+%\nAdamW's first step +\d+%\nMuon +\d+%\n", said)
    assert len(shown) == (2 if found else 1)
    assert ("best: muon, training loss 0.5000" in said) == found and ("it is missing" in said) == (
        not found
    )
