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
from dataclasses import dataclass
from functools import partial
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
from gpt2_nb_utils.results.record import Record, read_record
from gpt2_nb_utils.results.verdict import loss_text
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import markdown_table, markdown_text
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training import recipe
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.sweep_results import FINISHED, Outcome, Sweep, write_sweep
from gpt2_nb_utils.training.train import train

TABLE, FIGURE = "table.md", "curves.png"
_SPEC_COPY = "spec.toml"
"""The spec as it was run. A folder that holds it is that of a sweep."""
_SET_BY_THE_SWEEP = {"out_dir", "resume", "overwrite"}
_LONGEST_REASON = 300
# Windows has no file by the names in the first group, and one folder for names that differ in case.
_NAME = re.compile(r"(?!(?:con|prn|aux|nul|com\d|lpt\d)$)[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


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
        problem = f"cannot be read ({error.strerror})"
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:  # not UTF-8, or not TOML
        problem = f"not valid TOML ({error})"
    raise UserError(
        f"spec {path}: {problem}: a spec holds a title, [common] settings and one table [runs.NAME] "
        f"of settings for each run, in TOML"
    )


@dataclass(frozen=True)
class Run:
    """A run of a sweep: its complete settings, and the directory `<out_dir>/<name>`."""

    name: str
    config: RunConfig
    directory: RunDirectory

    @property
    def record(self) -> Record | None:
        """What the run recorded; None where it has not started."""
        return read_record(self.directory.path) if self.directory.summary.exists() else None

    def outcome(self, varying: list[str] | None = None) -> Outcome:
        """How it ended, with these of its settings."""
        record = self.record
        found = record.summary.model_dump(exclude_none=True) if record else {}
        if found.get("status") == "running":  # it was killed: this process trains one at a time
            found["status"] = "interrupted"
        return Outcome(
            self.name,
            {name: str(getattr(self.config, name)) for name in varying or ()},
            self.config.tokens_per_step,
            **found,
        )


def resolve_runs(spec: Spec, out_dir: Path) -> list[Run]:
    """The runs of a spec, in its order.

    Raises:
        UserError: a name, a setting or a value is not valid, or a directory holds a run that was
            made with other settings.
    """
    runs = []
    for name, settings in spec.runs.items():
        try:
            if not _NAME.fullmatch(name):
                raise UserError(
                    "the name becomes a folder: take up to 64 lower-case letters, digits, - and _"
                )
            given = {**spec.common, **settings}
            if taken := given.keys() & _SET_BY_THE_SWEEP:
                raise UserError(
                    f"{min(taken)} is set by the sweep, which resumes its runs: leave it out"
                )
            given |= {"out_dir": str(out_dir / name), "resume": "auto"}
            config = RunConfig.resolve(given)
            Precision.of(config)  # raises where this machine lacks the device
            runs.append(Run(name, config, RunDirectory(config.out_dir)))
            _refuse_other_settings(runs[-1])
        except UserError as error:
            raise UserError(f"run {name!r}: {error}") from None
    return runs


def _refuse_other_settings(run: Run) -> None:
    if not (record := run.record):
        return
    for name, value in run.config:
        recorded = record.setting(name)
        if name == "max_tokens" and value >= record.summary.corpus.tokens:
            recorded = recorded or value  # an excerpt that covers the whole text is recorded as 0
        if name not in _SET_BY_THE_SWEEP and recorded not in (None, value):
            raise UserError(
                f"{run.directory} was made with {name} {recorded}, the spec says {value}: delete "
                f"that folder, or name another --out_dir"
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
    settings = [run.config.model_dump(exclude=_SET_BY_THE_SWEEP) for run in runs]
    varying = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    common = [f"{name} {value}" for name, value in spec.common.items() if name not in varying]
    corpora = [load_corpus(file) for file in sorted({run.config.input_file for run in runs})]
    is_demo = any(corpus.source == "demo" for corpus in corpora)
    collect = partial(
        _collect,
        out_dir,
        runs,
        varying,
        title=spec.title + " (demonstration corpus)" * is_demo,
        corpus="; ".join(corpus.describe() for corpus in corpora),
        common=", ".join(common) or "none",
    )
    with _lock(out_dir):
        write_atomically(out_dir / _SPEC_COPY, spec_file.read_bytes())
        for number, run in enumerate(runs, start=1):
            status = run.outcome().status
            shown = status.replace("_", " ")
            print(f"run {number} of {len(runs)}, {run.name}: {shown}", flush=True)
            if status not in (*FINISHED, "failed"):
                _train(run, keep_checkpoints)
                status = run.outcome().status
            result = collect()
            if status == "interrupted":
                break
        return result


def _lock(out_dir: Path) -> filelock.AcquireReturnProxy:
    """A lock on the folder; a UserError where it cannot be used, or another sweep is at work there."""
    problem = "holds files but no sweep: name a new or empty folder"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in out_dir.iterdir()} - {".lock"}
        if not names or _SPEC_COPY in names:
            return filelock.FileLock(out_dir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        problem = "is taken, another sweep is at work there: wait for it, or name another folder"
    except OSError as error:
        problem = f"cannot be used ({error.strerror}): name a folder that you may write to"
    raise UserError(f"out_dir {out_dir} {problem} (--out_dir)")


def _train(run: Run, keep_checkpoints: bool) -> None:
    try:
        if train(run.config)["status"] in FINISHED:
            run.directory.last.unlink(missing_ok=True)
            if not keep_checkpoints:
                run.directory.best.unlink(missing_ok=True)
    except Exception:
        ended = run.outcome()
        if ended.status != "failed":
            raise  # refused before the training began: nothing is wrong with these settings
        print(f"failed: {ended.reason[:_LONGEST_REASON]}", flush=True)
    finally:
        # The parts of a run refer to each other, so counting references does not free its memory.
        gc.collect()
        if run.config.compile:
            torch.compiler.reset()  # torch gives up compiling after a handful of models
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _collect(out_dir: Path, runs: list[Run], varying: list[str], **about: str) -> Sweep:
    """The results as the run directories have them; written as data, a table and a figure."""
    outcomes = sorted((run.outcome(varying) for run in runs), key=lambda outcome: outcome.rank)
    curves = {run.name: record.rows if (record := run.record) else [] for run in runs}
    result = Sweep(outcomes, curves, **about)
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
