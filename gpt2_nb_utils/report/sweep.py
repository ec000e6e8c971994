"""The command `sweep`: the runs of a spec one after the other, then a table and a figure out of all.

All runs train in this process, in which nothing of a run stays behind. Each has a run directory of its own, so a sweep
that was broken off goes on there, and a run that fails is written down while the sweep goes on. What the table says
comes from the run directories (`sweep_files`), never from memory.
"""

from __future__ import annotations

import gc
from pathlib import Path

import filelock
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report.sweep_files import write_files
from gpt2_nb_utils.report.sweep_spec import SET_BY_THE_SWEEP, read_spec
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training.loop import train
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.sweep_results import FINISHED, Outcome

_SPEC_COPY = "spec.toml"
"""The spec as it was run. By it a folder is known as that of a sweep."""
_LONGEST_REASON = 300


def sweep(spec_file: Path, out_dir: Path, keep_checkpoints: bool = False) -> list[Outcome]:
    """Train every run of a spec that has not come to its end yet, and bring the table and the figure up to date after each.

    A run that failed is not tried again until its folder is deleted.

    Args:
        out_dir: gets a run directory for each run, `table.csv`, `table.md`, `curves.csv` and `curves.png`.
        keep_checkpoints: leave `best.pt` of each finished run there. Its `last.pt` goes in any case.

    Returns:
        A row of the table for each run, the best first. One is `interrupted` where somebody asked to stop.

    Raises:
        UserError: the spec, the text, the device or a folder is not fit (nothing was written then), or another process
            took a run directory on the way.
    """
    spec = read_spec(spec_file, out_dir)
    for name, config in spec.runs.items():
        try:
            Precision.of(config)
            _refuse_other_settings(config)
        except UserError as error:
            raise UserError(f"run {name!r}: {error}") from None
    for input_file in {config.input_file for config in spec.runs.values()}:
        load_corpus(input_file)
    with _claim(out_dir):
        write_atomically(out_dir / _SPEC_COPY, spec.source)
        for number, (name, config) in enumerate(spec.runs.items(), start=1):
            directory = RunDirectory(config.out_dir)
            status = _status(directory)
            if status in (*FINISHED, "failed"):
                print(
                    f"run {number} of {len(spec.runs)}, {name}: {status.replace('_', ' ')} before",
                    flush=True,
                )
            else:
                print(f"run {number} of {len(spec.runs)}, {name}", flush=True)
                status = _train(config, directory)
                _forget(config)
                if status in FINISHED and not keep_checkpoints:
                    directory.best.unlink(missing_ok=True)
                write_files(spec, out_dir)
            if status in FINISHED:
                directory.last.unlink(missing_ok=True)
            if status == "interrupted":
                break
        return write_files(spec, out_dir)


def _refuse_other_settings(config: RunConfig) -> None:
    """Raise a UserError where the run directory holds a run that was made with other settings."""
    directory = RunDirectory(config.out_dir)
    if not directory.holds_run:
        return
    saved = directory.read_config()
    for name, value in config.model_dump().items():
        was = saved.get(name, RunConfig.model_fields[name].default)
        if (
            name == "max_tokens"
            and was == 0
            and 0 < directory.read_summary()["corpus"]["tokens"] <= value
        ):
            continue  # an excerpt that is as long as the text is no excerpt
        if name not in SET_BY_THE_SWEEP and was != value:
            raise UserError(
                f"{directory} was made with {name} {was}, the spec says {value}: delete that folder, or name "
                f"another --out_dir"
            )


def _claim(out_dir: Path) -> filelock.AcquireReturnProxy:
    """A lock on the folder; a UserError where it is something else, or another sweep is at work in it."""
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"out_dir {out_dir} is a file: name a folder (--out_dir)")
    if (
        out_dir.exists()
        and not (out_dir / _SPEC_COPY).exists()
        and any(entry.name != ".lock" for entry in out_dir.iterdir())
    ):
        raise UserError(
            f"out_dir {out_dir} holds files but no sweep: name a new or empty folder (--out_dir)"
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(out_dir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise UserError(
            f"out_dir {out_dir}: another sweep is at work there: wait for it, or name another folder "
            f"(--out_dir)"
        ) from None
    except OSError as error:
        raise UserError(
            f"out_dir {out_dir} cannot be used ({error.strerror}): name a folder you may write to"
        ) from None


def _status(directory: RunDirectory) -> str:
    """How the run ended, from its summary; `not started` where there is none."""
    return directory.read_summary()["status"] if directory.summary.exists() else "not started"


def _train(config: RunConfig, directory: RunDirectory) -> str:
    """Train one run; its status. What goes wrong in the training is written into its summary, as `reason`."""
    try:
        return train(config)["status"]
    except Exception as error:
        status = _status(directory)
        # A UserError before the training began (a folder that is taken, say) concerns the person, not the recipe.
        if status == "not started" or isinstance(error, UserError) and status != "failed":
            raise
        reason = " ".join(str(error).split()) or "no message"
        reason = (reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}")[
            :_LONGEST_REASON
        ]
        directory.write_json(
            directory.summary, {**directory.read_summary(), "status": "failed", "reason": reason}
        )
        print(f"failed: {reason}", flush=True)
        return "failed"


def _forget(config: RunConfig) -> None:
    """Give back the memory of a run: its parts refer to each other, so counting references does not free them."""
    gc.collect()
    if config.compile:
        torch.compiler.reset()  # torch gives up compiling after a handful of models
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
