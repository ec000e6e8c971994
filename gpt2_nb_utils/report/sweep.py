"""The command `sweep`: the runs of a spec one after the other, then a table and a figure of all.

The spec is a TOML file:

    title = "Which learning rate?"     # optional
    [common]                           # settings of all runs, by the names of `RunConfig`
    preset = "tiny"
    [runs.slow]                        # one table per run: its name, and the settings that differ
    lr = 0.001
    [runs.fast]
    lr = 0.01

All runs train in this process. Each has its own run directory, so a sweep that was stopped can be
resumed, and a run that fails is recorded while the sweep continues.
"""

from __future__ import annotations

import gc
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import pydantic
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures.style import png
from gpt2_nb_utils.figures.training import sweep_curves
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.results.verdict import loss_text
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import markdown_table, markdown_text
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training import recipe
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import Row
from gpt2_nb_utils.training.sweep_results import FINISHED, Outcome, Sweep, write_sweep
from gpt2_nb_utils.training.train import train

TABLE, FIGURE = "table.md", "curves.png"
_SPEC_COPY = "spec.toml"
"""The spec as it was run. A folder that holds it is that of a sweep."""
_SET_BY_THE_SWEEP = ("out_dir", "resume", "overwrite")
_LONGEST_REASON = 300
_NAME = re.compile(  # Windows has no file by the names in the first group
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)$)[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE | re.ASCII
)


class Spec(pydantic.BaseModel):
    """The content of a spec.

    Attributes:
        title: the question that the sweep asks.
        common: settings of all runs.
        runs: for each run by its name, the settings that differ.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    title: str = "Sweep"
    common: dict[str, Any] = {}
    runs: dict[str, dict[str, Any]] = pydantic.Field(min_length=1)


def read_spec(path: Path) -> Spec:
    """Read a spec; its settings are checked by `resolve_runs`.

    Raises:
        UserError: the file cannot be read, or is not a spec.
    """
    try:
        return Spec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"spec {path} cannot be read ({error.strerror}): name a TOML file"
        ) from None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"spec {path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}: a spec holds a "
            f"title, [common] settings and one table [runs.NAME] of settings for each run"
        ) from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise UserError(f"spec {path} is not valid TOML ({error}): correct it there") from None


@dataclass(frozen=True)
class Run:
    """A run of a sweep: its complete settings, and the directory `<out_dir>/<name>`."""

    name: str
    config: RunConfig
    directory: RunDirectory

    @property
    def summary(self) -> dict[str, Any]:
        """What the run recorded; empty where it has not started."""
        summary = self.directory.read_summary() if self.directory.summary.exists() else {}
        if summary.get("status") == "running":
            summary["status"] = "interrupted"  # it was killed: this process trains one at a time
        return summary

    @property
    def rows(self) -> list[Row]:
        """Its curve so far."""
        events = self.directory.events
        return history(read_events(events)).rows if events.exists() else []


def resolve_runs(spec: Spec, out_dir: Path) -> list[Run]:
    """The runs of a spec, in its order.

    Raises:
        UserError: a name, a setting or a value is not valid, or a directory holds a run that was
            made with other settings.
    """
    runs: dict[str, Run] = {}
    for name, settings in spec.runs.items():
        try:
            if not _NAME.fullmatch(name):
                raise UserError("the name becomes a folder: take up to 64 letters, digits, - and _")
            config = _resolve({**spec.common, **settings}, out_dir / name)
            run = Run(name, config, RunDirectory(config.out_dir))
            _refuse_other_settings(run)
            if (other := runs.setdefault(name.lower(), run)) is not run:
                raise UserError(
                    f"{other.name!r} has the same name but for capitals, and some systems have one "
                    f"folder for both: rename one"
                )
        except UserError as error:
            raise UserError(f"run {name!r}: {error}") from None
    return list(runs.values())


def _resolve(given: dict[str, Any], out_dir: Path) -> RunConfig:
    for name, value in given.items():
        if name in _SET_BY_THE_SWEEP:
            raise UserError(f"{name} is set by the sweep, which resumes its runs: leave it out")
        if isinstance(value, dict):
            raise UserError(
                f"{name!r} is a table, not a setting (a dot in [runs.NAME] makes one): leave out "
                f"the dot"
            )
    config = RunConfig.resolve({**given, "out_dir": str(out_dir), "resume": "auto"})
    Precision.of(config)  # raises where this machine lacks the device
    return config


def _refuse_other_settings(run: Run) -> None:
    if not run.directory.summary.exists():
        return
    recorded = run.directory.read_config()
    if run.config.max_tokens >= run.summary["corpus"]["tokens"]:
        # An excerpt that covers the whole text is recorded as 0.
        recorded["max_tokens"] = recorded["max_tokens"] or run.config.max_tokens
    for name, value in run.config:
        if name not in _SET_BY_THE_SWEEP and recorded.get(name, value) != value:
            raise UserError(
                f"{run.directory} was made with {name} {recorded[name]}, the spec says {value}: "
                f"delete that folder, or name another --out_dir"
            )


def sweep(spec_file: Path, out_dir: Path, keep_checkpoints: bool = False) -> Sweep:
    """Train every run of a spec that has not ended yet; update the table and the figure after each.

    A run that failed is not tried again until its folder is deleted.

    Args:
        out_dir: gets a run directory for each run, `results.json`, `curves.csv`, `table.md` and
            `curves.png`.
        keep_checkpoints: keep `best.pt` of each finished run. Its `last.pt` is removed in any case.

    Returns:
        The results. A run is `interrupted` where somebody asked to stop.

    Raises:
        UserError: the spec, the text, the device or a folder cannot be used (nothing was written
            then), or another process took a run directory meanwhile.
    """
    spec = read_spec(spec_file)
    runs = resolve_runs(spec, out_dir)
    settings = [run.config.model_dump(exclude=set(_SET_BY_THE_SWEEP)) for run in runs]
    varying = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    common = [f"{name} {value}" for name, value in spec.common.items() if name not in varying]
    corpora = [load_corpus(file) for file in sorted({run.config.input_file for run in runs})]
    is_demo = any(corpus.source == "demo" for corpus in corpora)
    about = Sweep(
        outcomes=[],
        title=spec.title + " (demonstration corpus)" * is_demo,
        corpus="; ".join(corpus.describe() for corpus in corpora),
        common=", ".join(common) or "none",
    )
    with _lock(out_dir):
        write_atomically(out_dir / _SPEC_COPY, spec_file.read_bytes())
        for number, run in enumerate(runs, start=1):
            status = run.summary.get("status", "not started")
            print(
                f"run {number} of {len(runs)}, {run.name}: {status.replace('_', ' ')}", flush=True
            )
            if status in (*FINISHED, "failed"):
                continue
            status = _train(run)
            if status in FINISHED:
                run.directory.last.unlink(missing_ok=True)
                if not keep_checkpoints:
                    run.directory.best.unlink(missing_ok=True)
            _write_results(out_dir, about, runs, varying)
            if status == "interrupted":
                break
        return _write_results(out_dir, about, runs, varying)


def _lock(out_dir: Path) -> filelock.AcquireReturnProxy:
    """A lock on the folder; a UserError where it cannot be used, or another sweep is at work there."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in out_dir.iterdir()} - {".lock"}
        if names and _SPEC_COPY not in names:
            raise UserError(
                f"out_dir {out_dir} holds files but no sweep: name a new or empty folder "
                f"(--out_dir)"
            )
        return filelock.FileLock(out_dir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise UserError(
            f"out_dir {out_dir}: another sweep is at work there: wait for it, or name another "
            f"folder (--out_dir)"
        ) from None
    except OSError as error:
        raise UserError(
            f"out_dir {out_dir} cannot be used ({error.strerror}): name a folder that you may "
            f"write to (--out_dir)"
        ) from None


def _train(run: Run) -> str:
    """Train one run; its status."""
    try:
        return train(run.config)["status"]
    except Exception:
        summary = run.summary
        if summary.get("status") != "failed":
            raise  # refused before the training began: nothing is wrong with these settings
        print(f"failed: {summary['reason'][:_LONGEST_REASON]}", flush=True)
        return "failed"
    finally:
        # The parts of a run refer to each other, so counting references does not free its memory.
        gc.collect()
        if run.config.compile:
            torch.compiler.reset()  # torch gives up compiling after a handful of models
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _write_results(out_dir: Path, about: Sweep, runs: list[Run], varying: list[str]) -> Sweep:
    """Collect the results from the run directories; write the data, the table and the figure."""
    outcomes = [
        Outcome(
            run.name,
            {name: str(getattr(run.config, name)) for name in varying},
            run.config.tokens_per_step,
            **run.summary,
        )
        for run in runs
    ]
    outcomes.sort(key=lambda outcome: outcome.rank)
    curves = {run.name: run.rows for run in runs}
    result = replace(about, outcomes=outcomes, curves=curves)
    write_sweep(out_dir, result)
    write_atomically(out_dir / TABLE, as_markdown(result))
    target = min(run.config.target_loss for run in runs)
    figure = sweep_curves(result, target, result.title)
    write_atomically(out_dir / FIGURE, png(figure, recipe.alt_text(result)))
    return result


def as_markdown(result: Sweep) -> str:
    """The results as a table, with what a reader needs to understand it."""
    rows = [
        {
            "run": outcome.name,
            **outcome.settings,
            "tokens per step": f"{outcome.tokens_per_step:,}",
            "tokens": f"{outcome.tokens_seen:,}",
            "epochs": f"{outcome.epoch:.2f}",
            "seconds": f"{outcome.seconds:,.1f}",
            "training loss": loss_text(outcome.train_loss) if outcome.ranked else "–",
            "windows": outcome.train_loss_windows if outcome.ranked else "–",
            "status": outcome.ending,
        }
        for outcome in result.outcomes
    ]
    notes = (
        "Best first: runs that reached the target by the tokens they took, the others by the "
        "training loss at their end."
    )
    if "seq_len" in rows[0]:
        notes += (
            " The training loss is measured on windows of each run's own seq_len: shorter ones "
            "make it harder."
        )
    parts = [
        f"# {markdown_text(result.title)}",
        f"Trained on {markdown_text(result.corpus)}.",
        f"Settings of all runs: {markdown_text(result.common)}.",
        notes,
        markdown_table(rows[0], [row.values() for row in rows]),
    ]
    return "\n\n".join(parts) + "\n"
