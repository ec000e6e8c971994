"""The command `run`: from the text file to the grader's report."""

from __future__ import annotations

from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.notebook import enter_project
from gpt2_nb_utils.report.notebooks import run_notebooks
from gpt2_nb_utils.report.report import build_report
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.start import start_run


def run(config: RunConfig) -> dict[str, Any]:
    """Execute all notebooks and export the report.

    Returns:
        The content of the run's `summary.json`; its status is `interrupted` where somebody asked to stop.

    Raises:
        UserError: bad input (nothing was written), or a notebook that failed (the report shows how far it came).
    """
    enter_project()
    started = start_run(config)
    config, directory = started.config, started.directory
    claim = started.lock
    del started  # a checkpoint to resume from is large, and the kernel reads its own
    claim.lend()  # to the kernel in which notebook 03 trains
    try:
        return _run(config, directory)
    finally:
        claim.release()


def _run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    try:
        run_notebooks(config, directory)
    except KeyboardInterrupt:
        _end_as("interrupted", directory)
        build_report(directory)
        return {**directory.read_summary(), "status": "interrupted"}
    except BaseException:
        _end_as("failed", directory)
        build_report(directory)
        raise
    build_report(directory)
    return directory.read_summary()


def _end_as(status: str, directory: RunDirectory) -> None:
    """Say how the run ended, where training itself could not."""
    summary = directory.read_summary()
    if summary["status"] == "running":
        directory.write_json(directory.summary, {**summary, "status": status})
