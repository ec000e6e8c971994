"""The command `sweep`, and what notebook 03 says about its runs: real trainings of a second, and what goes wrong."""

import gc
import html
import json
import re
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures import training as figures
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.report import sweep as sweep_module
from gpt2_nb_utils.report.sweep import as_markdown, read_spec, resolve_runs, sweep
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training import recipe, sweep_results
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.optimizer import orthogonalise
from gpt2_nb_utils.training.records import Row
from gpt2_nb_utils.training.sweep_results import Outcome, Sweep, read_sweep, write_sweep
from gpt2_nb_utils.training.train import train

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


def results_of(folder: Path) -> list[dict]:
    """The results as any program would read them."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["outcomes"]


def summary_of(folder: Path, name: str) -> dict:
    return RunDirectory(folder / name).read_summary()


# -- the files of a sweep --------------------------------------------------------------------------------------------


def test_the_results_are_those_of_the_run_summaries_best_first(spec, tmp_path):
    sweep(spec(), tmp_path / "sweep")
    results = results_of(tmp_path / "sweep")
    for result in results:
        summary = summary_of(tmp_path / "sweep", result["name"])
        assert result["settings"] == {
            name: str(summary["config"][name]) for name in ("batch_size", "optimizer", "lr")
        }
        assert result["tokens_per_step"] == summary["config"]["batch_size"] * 64
        for name in ("tokens_seen", "epoch", "seconds", "train_loss"):
            assert result[name] == summary[name]
        assert (result["train_loss_windows"], result["status"]) == ("all", "steps_done")
        assert "reason" not in result
    losses = [result["train_loss"] for result in results]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert {result["name"] for result in results} == set(RUNS)


def test_the_markdown_table_shows_the_results(spec, tmp_path):
    sweep(spec(), tmp_path / "sweep")
    lines = (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8").splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert head == [
        "run",
        *(r"batch\_size", "optimizer", "lr"),
        *("tokens per step", "tokens", "epochs", "seconds", "training loss", "windows", "status"),
    ]
    for cells, result in zip(rows, results_of(tmp_path / "sweep"), strict=True):
        assert cells[0] == result["name"] and cells[1:4] == list(result["settings"].values())
        assert cells[5] == f"{result['tokens_seen']:,}"
        assert float(cells[8]) == pytest.approx(result["train_loss"], rel=1e-4)
        assert cells[9:] == ["all", "steps done"]


def test_the_curves_are_those_of_the_runs_and_the_figure_is_not_blank(spec, tmp_path):
    sweep(spec(), tmp_path / "sweep")
    curves = read_sweep(tmp_path / "sweep").curves
    for name in RUNS:
        assert (
            curves[name]
            == history(read_events(RunDirectory(tmp_path / "sweep" / name).events)).rows
        )
        assert len(curves[name]) == 7  # random weights, and 6 steps
    picture = imread(tmp_path / "sweep" / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600 and picture[..., :3].std() > 0.05


def test_a_run_of_a_sweep_is_the_run_that_train_makes_alone(spec, settings, tmp_path):
    sweep(spec(), tmp_path / "sweep", keep_checkpoints=True)
    alone = train(
        RunConfig.resolve(settings(sample_every=0, save_every=100, eval_every=100, **RUNS["small"]))
    )
    assert summary_of(tmp_path / "sweep", "small")["train_loss"] == alone["train_loss"]
    assert summary_of(tmp_path / "sweep", "slow")["train_loss"] != alone["train_loss"]


@pytest.mark.slow
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
    prompts = {outcome.settings["prompt"] for outcome in read_sweep(tmp_path / "sweep").outcomes}
    assert prompts == {hostile, "x\ny"}  # the JSON keeps all of it


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


@pytest.mark.slow
def test_a_run_that_diverges_is_a_row_with_its_reason_and_the_sweep_goes_on(spec, tmp_path, capsys):
    path = spec({"wild": DIVERGES, "calm": {}})
    assert main(["sweep", str(path), f"--out_dir={tmp_path / 'sweep'}"]) == 0
    calm, wild = results_of(tmp_path / "sweep")
    assert (calm["name"], calm["status"]) == ("calm", "steps_done")
    assert (wild["name"], wild["status"]) == ("wild", "failed")
    assert "20 steps in a row had no finite gradients" in wild["reason"]
    table = (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8")
    assert re.search(r"\| wild \|.*\| – \| – \| failed: 20 steps in a row", table)
    capsys.readouterr()
    before = RunDirectory(tmp_path / "sweep" / "wild").metrics.stat().st_mtime_ns
    assert main(["sweep", str(path), f"--out_dir={tmp_path / 'sweep'}"]) == 0
    assert "wild: failed\n" in capsys.readouterr().out
    assert RunDirectory(tmp_path / "sweep" / "wild").metrics.stat().st_mtime_ns == before


def test_an_error_of_the_machine_in_one_run_does_not_end_the_sweep(spec, tmp_path, monkeypatch):
    real = GPT2.__init__

    def too_large(self, config, *args, **kwargs):
        if config.n_embd == 16:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        real(self, config, *args, **kwargs)

    monkeypatch.setattr(GPT2, "__init__", too_large)
    sweep(spec({"large": {"n_embd": 16}, "small": {}}), tmp_path / "sweep")
    small, large = results_of(tmp_path / "sweep")
    assert small["status"] == "steps_done" and large["status"] == "failed"
    assert large["reason"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_sweep_that_was_broken_off_goes_on_where_it_stopped_and_ends_the_same(
    spec, tmp_path, monkeypatch, capsys
):
    sweep(spec(), tmp_path / "whole")
    folder = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_at("fast", 3, patch)
        assert main(["sweep", str(spec()), f"--out_dir={folder}"]) == 130
    status = {outcome.name: outcome.status for outcome in read_sweep(folder).outcomes}
    assert status == {"slow": "steps_done", "fast": "interrupted", "small": "not started"}
    assert (folder / "fast" / "checkpoints" / "last.pt").exists() and summary_of(folder, "fast")[
        "step"
    ] == 3
    first = {
        path: path.stat().st_mtime_ns for path in (folder / "slow").rglob("*") if path.is_file()
    }
    capsys.readouterr()
    assert main(["sweep", str(spec()), f"--out_dir={folder}"]) == 0
    assert "slow: steps done\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "resumed at step 3" in RunDirectory(folder / "fast").log.read_text(encoding="utf-8")
    assert list(folder.rglob("*.pt")) == []

    def without_times(folder: Path) -> Sweep:
        found = read_sweep(folder)
        return replace(
            found,
            outcomes=[replace(outcome, seconds=0.0) for outcome in found.outcomes],
            curves={
                name: [replace(row, tok_per_s=None, elapsed_s=0.0) for row in rows]
                for name, rows in found.curves.items()
            },
        )

    assert without_times(folder) == without_times(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_counts_as_interrupted_and_is_trained(spec, tmp_path, monkeypatch):
    """Killed before its first checkpoint: the summary still says `running`."""
    runs = {"first": DIVERGES, "one": {}}
    expected = sweep(spec(runs), tmp_path / "whole").best.train_loss
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    directory = RunDirectory(tmp_path / "killed" / "one")
    lines = directory.events.read_text(encoding="utf-8").splitlines(keepends=True)
    directory.events.write_text("".join(lines[:-1]), encoding="utf-8")  # without its end
    directory.write_json(
        directory.summary, {**directory.read_summary(), "status": "running", "step": 4}
    )
    shutil.rmtree(tmp_path / "killed" / "first")  # so it is trained again, before the killed one
    seen = []
    with monkeypatch.context() as patch:

        def stop_before_the_killed_one(config):
            seen.extend(read_sweep(tmp_path / "killed").outcomes)
            raise KeyboardInterrupt

        real = sweep_module.train
        patch.setattr(
            sweep_module,
            "train",
            lambda config: (
                real if config.out_dir.endswith("first") else stop_before_the_killed_one
            )(config),
        )
        with pytest.raises(KeyboardInterrupt):
            sweep(spec(runs), tmp_path / "killed")
    (killed,) = [outcome for outcome in seen if outcome.name == "one"]
    assert killed.status == "interrupted" and not killed.ranked
    again = sweep(spec(runs), tmp_path / "killed").best
    assert again.status == "steps_done" and again.train_loss == expected


def test_a_spec_may_grow_and_only_the_new_run_is_trained(spec, tmp_path, capsys):
    sweep(spec({"slow": RUNS["slow"]}), tmp_path / "sweep")
    capsys.readouterr()
    outcomes = sweep(
        spec({"slow": RUNS["slow"], "fast": RUNS["fast"]}), tmp_path / "sweep"
    ).outcomes
    assert "slow: steps done\n" in capsys.readouterr().out and {o.status for o in outcomes} == {
        "steps_done"
    }
    assert outcomes[0].settings.keys() == {"optimizer", "lr"}


def test_an_excerpt_longer_than_the_text_is_the_same_run_again(spec, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("A short text, to be sure. " * 10, encoding="utf-8")

    def make():
        return spec({"one": {}}, input_file=str(text), max_tokens=5000)

    sweep(make(), tmp_path / "sweep")
    assert summary_of(tmp_path / "sweep", "one")["config"]["max_tokens"] == 0
    assert sweep(make(), tmp_path / "sweep").best.status == "steps_done"


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
        ({"a": {}, "A": {}}, "", r"run 'A': the name becomes a folder: .* lower-case letters"),
        ({}, "", r"runs: Field required: a spec holds"),
        (
            {"a": {}},
            "rnus = 1",
            r"rnus: Extra inputs are not permitted: a spec holds a title, \[common\]",
        ),
        ({"a": {}}, "runs.b = 3", r"runs.b: Input should be a valid dictionary: a spec holds"),
        ({"a": {}}, "runs.b.c.lr = 3", r"run 'b': unknown setting 'c'"),
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
        (lambda folder: folder.write_text("mine"), "cannot be used .* exists"),
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
    path, refusals = spec({"one": {}}), []

    def train_while_another_begins(config):
        with pytest.raises(UserError, match="another sweep is at work there") as refused:
            sweep(path, tmp_path / "sweep")
        refusals.append(refused)
        return train(config)

    monkeypatch.setattr(sweep_module, "train", train_while_another_begins)
    assert sweep(path, tmp_path / "sweep").best.status == "steps_done" and len(refusals) == 1
    sweep(path, tmp_path / "sweep")  # and afterwards the folder is free


def test_a_run_that_another_process_trains_ends_the_sweep_and_is_not_written_down_as_failed(
    spec, tmp_path
):
    path = spec({"one": {}})
    lock = RunDirectory(tmp_path / "sweep" / "one").claim()
    (tmp_path / "sweep" / "spec.toml").touch()  # a sweep was here before
    with pytest.raises(UserError, match="another process is training there"):
        sweep(path, tmp_path / "sweep")
    lock.release()
    assert sweep(path, tmp_path / "sweep").best.status == "steps_done"


def test_a_flag_that_belongs_to_runs_is_no_flag_of_a_sweep(spec, capsys):
    assert main(["sweep", str(spec()), "--lr=3"]) == 2
    assert "unexpected argument '--lr=3'" in capsys.readouterr().err


# -- the committed spec, and the table it makes ----------------------------------------------------------------------


def test_the_committed_spec_is_valid_and_its_runs_can_be_compared(tmp_path):
    runs = resolve_runs(read_spec(sweep_results.REFERENCE / "recipe.toml"), tmp_path)
    configs = {run.name: run.config for run in runs}
    assert len(configs) >= 10
    assert {config.optimizer for config in configs.values()} == {"adamw", "muon"}
    for name, config in configs.items():
        assert (config.steps * config.tokens_per_step, config.max_tokens) == (65536, 8192), name
        if config.seed != 1337:  # to see what chance does, nothing else may differ
            same, other = (
                each.model_dump(exclude={"seed", "out_dir"}) for each in (configs["muon"], config)
            )
            assert same == other, name
        assert config.eval_windows == 0 and config.log_every == 1, name
    assert len(
        {tuple(config.model_dump(exclude={"out_dir"}).items()) for config in configs.values()}
    ) == len(configs)


def test_the_committed_results_are_those_of_the_committed_spec(tmp_path):
    runs = resolve_runs(read_spec(sweep_results.REFERENCE / "recipe.toml"), tmp_path)
    configs = {run.name: run.config for run in runs}
    results = read_sweep()
    assert {outcome.name for outcome in results.outcomes} == set(configs)
    for outcome in results.outcomes:
        config = configs[outcome.name]
        assert outcome.settings == {name: str(getattr(config, name)) for name in outcome.settings}
        assert outcome.settings.keys() >= {"seed", "optimizer", "lr", "momentum", "steps"}
        assert outcome.ranked
        last = results.curves[outcome.name][-1]
        assert last.train_loss == pytest.approx(outcome.train_loss, rel=1e-5)
        assert (last.step, last.tokens) == (config.steps, outcome.tokens_seen)
    assert (sweep_results.REFERENCE / "table.md").read_text(encoding="utf-8") == as_markdown(
        results
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
    assert read_sweep(tmp_path) == wanted and read_sweep(tmp_path).best == EXAMPLE[0]


def test_losses_that_are_not_finite_leave_the_results_readable(tmp_path):
    row = Row(1, 0.1, 5, float("nan"), None, 0.1, float("inf"))
    write_sweep(tmp_path, Sweep(EXAMPLE, {"wild": [row]}))
    assert "NaN" not in (tmp_path / "results.json").read_text(encoding="utf-8")  # no valid JSON
    assert read_sweep(tmp_path).curves["wild"] == [Row(1, 0.1, 5, None, None, 0.1, None)]


def test_runs_that_reached_the_target_rank_first_by_their_tokens():
    runs = [
        outcome("lucky", 0.2),
        outcome("unfinished", 0.01, "interrupted"),
        outcome("late", 0.05, "target_reached", 900),
        outcome("early", 0.09, "target_reached", 500),
        outcome("none", None, "not_started"),
        outcome("better", 0.15),
    ]
    assert [run.name for run in sorted(runs, key=lambda run: run.rank)] == [
        *("early", "late", "better", "lucky"),
        *("unfinished", "none"),
    ]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda file: file.unlink(), "FileNotFoundError"),
        (lambda file: file.write_text(""), "ValidationError"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "ValidationError"),
        (lambda file: file.write_text("[1, 2]"), "ValidationError"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "ValidationError"),
        (
            lambda file: file.write_text(file.read_text().replace('"step":1,', '"step":"one",')),
            "ValidationError",
        ),
    ],
)
def test_a_sweep_that_is_missing_or_damaged_is_one_line(tmp_path, spoil, words):
    write_sweep(tmp_path, example())
    spoil(tmp_path / "results.json")
    with pytest.raises(UserError, match=words) as refused:
        read_sweep(tmp_path)
    said = str(refused.value)
    assert "results.json is missing or damaged" in said and "recipe.toml" in said
    assert "\n" not in said and str(tmp_path) not in said  # a saved notebook names no folder


def test_the_comparison_shows_what_each_run_changes_and_its_cost():
    shown = recipe.comparison(example()).data
    cells = [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in shown.split("<tr")
    ]
    by_name = {row[0]: row[1:] for row in cells if row}
    assert by_name["muon"] == ["", "64", "0.5000", "+0.0000"]
    assert by_name["muon-low"] == ["lr 0.01 (not 0.03)", "64", "0.7500", "+0.2500"]
    assert by_name["adamw"] == [
        "optimizer adamw (not muon), lr 0.002 (not 0.03)",
        "64",
        "2.0000",
        "+1.5000",
    ]
    assert by_name["wild"][2:] == ["failed", ""]


def test_a_failed_run_is_compared_by_its_reason():
    failed = replace(EXAMPLE[-1], reason="it diverged")
    assert "failed: it diverged" in recipe.comparison(Sweep([EXAMPLE[0], failed])).data
    assert recipe.highlights(Sweep([failed])) == "No run finished: there is nothing to compare."


def test_the_highlights_are_numbers_of_the_table():
    lines = recipe.highlights(example()).splitlines()
    assert lines == [
        "best: muon, training loss 0.5000 (+0.0000)",
        "next: muon-low, training loss 0.7500 (+0.2500), lr 0.01 (not 0.03)",
        "best of adamw: adamw, training loss 2.0000 (+1.5000), optimizer adamw (not muon), lr 0.002 (not 0.03)",
        "last: adamw-high, training loss 4.5000 (+4.0000), optimizer adamw (not muon)",
    ]
    assert len(recipe.highlights(Sweep(EXAMPLE[:2])).splitlines()) == 2  # next and last are one
    alt = recipe.alt_text(example())
    assert "Lowest: muon, training loss 0.5000" in alt and "Highest: adamw-high" in alt


def test_runs_are_described_against_the_usual_settings():
    """They need not be those of the best run."""
    varied = Sweep(
        [
            outcome("best", 0.1, optimizer="muon", lr="0.3"),
            outcome("base", 0.2, optimizer="muon", lr="0.2"),
            outcome("other", 0.3, optimizer="adamw", lr="0.2"),
            outcome("low", 0.4, optimizer="muon", lr="0.1"),
        ]
    )
    assert [varied.changes(run) for run in varied.outcomes] == [
        "lr 0.3 (not 0.2)",
        "",
        "optimizer adamw (not muon)",
        "lr 0.1 (not 0.2)",
    ]


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
    figure = figures.sweep_curves(
        Sweep(outcomes, {outcome.name: curves.get(outcome.name, []) for outcome in outcomes})
    )
    figure.savefig(tmp_path / "curves.png")
    low, high = figure.axes[0].get_ylim()
    assert (
        0 < low < 0.1 and 10.8 < high < 20
    )  # a run that diverged does not push the others together


def test_the_best_curve_stands_out_and_every_line_has_its_label():
    axes = figures.sweep_curves(example()).axes[0]
    names = {outcome.name for outcome in EXAMPLE}
    lines = {line.get_label().split()[0]: line for line in axes.lines}
    lines = {name: line for name, line in lines.items() if name in names}
    assert lines.keys() == names
    widths = {name: line.get_linewidth() for name, line in lines.items()}
    assert (
        min(widths, key=lambda name: -widths[name]) == "muon"
        and widths["muon"] > 2 * widths["adamw"]
    )
    assert axes.get_yscale() == "log"
    labels = " ".join(text.get_text() for text in axes.get_legend().get_texts())
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
    rare, frequent, share = recipe.first_gradient(tokens, seed=7)
    (model,) = made
    windows = TokenDataset(tokens, 64)
    x, y = windows.batch(windows.evenly_spread(8))
    model.zero_grad()
    model.loss(x, y).backward()
    torch.testing.assert_close(
        rare + frequent, model.transformer.h[-1].mlp.c_fc.weight.grad, rtol=1e-3, atol=1e-7
    )
    ids = y.flatten().tolist()
    assert share == pytest.approx(sum(ids.count(token) == 1 for token in ids) / len(ids))


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
    share = recipe.share_of_rare(update, rare, frequent)
    assert share == pytest.approx((fall[0] / (fall[0] + fall[1])).item(), rel=1e-6)


@pytest.mark.parametrize("seed", [1, 1337])
def test_the_rare_tokens_gain_by_muon_as_the_notebook_says(tokens, seed):
    rare, frequent, share = recipe.first_gradient(tokens, seed)
    gradient = rare + frequent
    plain, adamw, muon = (
        recipe.share_of_rare(update, rare, frequent)
        for update in (gradient, gradient.sign(), orthogonalise(gradient))
    )
    assert plain < adamw < muon and muon > 0.75 * share > plain


@pytest.mark.parametrize("n_tokens", [3, 40, 70])
def test_a_text_of_a_few_tokens_has_a_gradient_too(tokens, n_tokens):
    rare, frequent, share = recipe.first_gradient(tokens[:n_tokens], seed=1)
    gradient = rare + frequent
    assert gradient.isfinite().all() and gradient.norm() > 0 and 0 <= share <= 1


def test_the_singular_values_drawn_are_those_of_the_matrix_and_even_after_muon(tokens):
    rare, frequent, _ = recipe.first_gradient(tokens, seed=1337)
    gradient = rare + frequent
    before = np.linalg.svd(gradient.double().numpy(), compute_uv=False)
    after = torch.linalg.svdvals(orthogonalise(gradient))
    figure = figures.singular_values(torch.linalg.svdvals(gradient), after)
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

    def read_or_refuse():
        if found:
            return example()
        raise UserError("it is missing")

    monkeypatch.setattr(sweep_results, "read_sweep", read_or_refuse)
    names = {
        "torch": torch,
        "repeated": tokens,
        "config": RunConfig.resolve({"preset": "tiny"}),
        "notebook": stub,
        "figures": figures,
    }
    for cell in ("muon", "rare", "sweep", "sweep-figure", "highlights"):
        exec(section[cell], names)
    said = capsys.readouterr().out
    assert re.search(r"plain gradient +\d+%\nAdamW's first step +\d+%\nMuon +\d+%\n", said)
    assert len(shown) == (2 if found else 1)
    assert ("best: muon, training loss 0.5000" in said) == found and ("it is missing" in said) == (
        not found
    )
