"""The command `run`: from the text file to the grader's report."""

from __future__ import annotations

from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.notebook import enter_project
from gpt2_nb_utils.progress import print_line
from gpt2_nb_utils.report.notebooks import interrupt_kernel, run_notebooks
from gpt2_nb_utils.report.report import build_report
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.open_run import open_run
from gpt2_nb_utils.training.recorder import Recorder
from gpt2_nb_utils.training.stop_request import StopRequest


def run(config: RunConfig) -> dict[str, Any]:
    """Execute all notebooks and export the report.

    Returns:
        The content of the run's `summary.json`; its status is `interrupted` where somebody asked to stop.

    Raises:
        UserError: bad input (nothing was written), or a notebook that failed (the report shows how far it came).
    """
    enter_project()
    started = open_run(config)
    config, directory = started.config, started.directory
    device = f"{started.precision.device_name}, {started.precision.description}"
    print_line(f"preset {config.preset} on {device}, into {directory}")
    # The start is on record before the first notebook: whatever fails then, the report can say what was to be done.
    Recorder(directory, started.events, started.claim)
    with directory.held_by_run(), StopRequest(interrupt_kernel) as stop:
        started.claim.release()  # to the kernel in which notebook 03 trains
        del started  # a checkpoint to resume from is large, and the kernel reads its own
        try:
            run_notebooks(config, directory, stop=stop)
        except KeyboardInterrupt:
            _end_as("interrupted", directory)
            return {**directory.read_summary(), "status": "interrupted"}
        except BaseException as error:
            _end_as("failed", directory, error)
            raise
        finally:
            build_report(directory)
    return directory.read_summary()


def _end_as(status: str, directory: RunDirectory, error: BaseException | None = None) -> None:
    """Record how the run ended, where training itself could not."""
    events = read_events(directory.events)
    if history(events).end is None:
        Recorder(directory, events, directory.claim(resume=True)).end(status, error)
