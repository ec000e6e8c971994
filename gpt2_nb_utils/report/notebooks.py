"""Run the notebooks headless, one after the other, into a run directory.

papermill executes them. Each gets the parameters that it knows; a progress line says how far the work is,
and an error names the cell that failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import nbformat
import psutil

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import WINDOWS
from gpt2_nb_utils.progress import CSS_CLASS, Progress
from gpt2_nb_utils.report.notebook_html import execution, read_notebook
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.stop_request import StopRequest

SOURCES = Path(__file__).resolve().parents[2] / "notebooks"
"""The folder of the source notebooks, beside the package in the project's folder."""
NAMES = ("01_tokenization", "02_model", "03_training", "04_results", "05_space")


class NotebookFailed(UserError):
    """A cell of a notebook ended in an error; the message says which.

    Args:
        exit_status: 2 where the cell reported a user's mistake, 1 otherwise.
    """

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def run_notebooks(
    config: RunConfig,
    directory: RunDirectory,
    names: tuple[str, ...] = NAMES,
    stop: StopRequest | bool = False,
) -> None:
    """Execute notebooks with the settings of a run.

    The run directory is claimed already. With `resume` set, 01 and 02 are not run again if the present
    ones ran to their end; 03 continues the training, 04 shows its results and 05 exports its model.

    Args:
        stop: becomes true when somebody asks to stop; `interrupt_kernel` ends the cell that is running.

    Raises:
        NotebookFailed: a cell failed; the partly executed notebook is kept.
        KeyboardInterrupt: somebody asked to stop; training has saved what it had.
        UserError: a notebook is missing.
    """
    for name in names:
        if not _source(name).exists():
            raise UserError(f"{_source(name)} is missing: run from a complete clone of the project")
    for name in names:
        if stop:
            raise KeyboardInterrupt
        target = directory.notebooks / f"{name}.ipynb"
        if not (config.resume and name in NAMES[:2] and _ran_to_its_end(_source(name), target)):
            _execute(_source(name), target, config, stop)


def _source(name: str) -> Path:
    return SOURCES / f"{name}.ipynb"


def parameters_for(source: Path, config: RunConfig) -> dict[str, Any]:
    """The parameters that give a notebook the settings of a run.

    Args:
        source: a notebook with a cell tagged `parameters`.
        config: complete settings.

    Returns:
        The preset, the run directory, and all that differs from what the preset gives: a resumed run has settings that
        nobody gave this time.
    """
    import papermill

    known = papermill.inspect_notebook(str(source))
    usual = RunConfig.resolve({"preset": config.preset})
    # The directory is this run's by now, whatever `resume` and `overwrite` said about it.
    always, never = {"preset", "out_dir"}, {"resume", "overwrite"}
    return {
        name: value
        for name, value in config.model_dump().items()
        if name in known and name not in never and (name in always or value != getattr(usual, name))
    }


def _execute(source: Path, target: Path, config: RunConfig, stop: StopRequest | bool) -> None:
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    at = fix = ""
    with contextlib.suppress(ValueError):  # on another drive
        source = Path(os.path.relpath(source))  # the executed notebook records it
    # papermill adds a cell with the given parameters.
    with _Watch(source.stem, 1 + len(nbformat.read(source, as_version=4).cells)) as watch:
        try:
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters_for(source, config),
                kernel_name="python3",
                progress_bar=False,
                autosave_cell_every=0,
                start_timeout=120,
                on_cell_start=watch.cell_starts,
                # Level 50: what the kernel itself says would tear the progress line.
                extra_arguments=["--log-level=50"],
            )
            failed = None
        except papermill.PapermillExecutionError as error:
            failed, status = (
                f"{error.ename}: {error.evalue}",
                2 if error.ename == "UserError" else 1,
            )
            at = f" (`{error.source.strip().splitlines()[0]}`)"
        except RuntimeError as error:  # from nbclient: the kernel died, or did not start
            failed, status = str(error), 1
            fix = "; --resume auto goes on from the last checkpoint"
        if stop:  # also where the notebook took the interrupt well, or its kernel was not there yet
            raise KeyboardInterrupt
        if failed is not None:
            raise NotebookFailed(
                f"{source.name}, cell {watch.cells_done + 1} of {watch.n_cells}{at}: "
                f"{' '.join(failed.split())} (executed so far: {target}){fix}",
                status,
            )


def _ran_to_its_end(source: Path, executed: Path) -> bool:
    try:
        notebook = read_notebook(executed)
    except ValueError:
        return False
    own = [
        cell.source
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    now = [cell.source for cell in nbformat.read(source, as_version=4).cells]
    return own == now and execution(notebook).whole


def interrupt_kernel() -> None:
    """Interrupt the kernel, as JupyterLab's stop button does: training then saves and ends.

    A kernel is in a process group of its own: neither Ctrl-C nor a closed terminal reaches it.
    """
    for child in psutil.Process().children():
        if "ipykernel_launcher" in child.cmdline():
            if WINDOWS:  # there os.kill would end it: jupyter_client made an event for this
                from jupyter_client.win_interrupt import send_interrupt

                send_interrupt(int(child.environ()["JPY_INTERRUPT_EVENT"]))
            else:
                os.kill(child.pid, signal.SIGINT)


class _Watch:
    """Shows how far a notebook is, and the progress line of the cell that is running."""

    def __init__(self, name: str, n_cells: int):
        self.n_cells, self.cells_done = n_cells, 0
        self._cell: Any = {}
        self._progress = Progress(n_cells, f"{name}  cell", estimate=False)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def cell_starts(self, cell: Any, cell_index: int) -> None:
        self._cell, self.cells_done = cell, cell_index

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._progress.update(self.cells_done if kind else self.n_cells)
        self._progress.close(
            "interrupted" if kind is KeyboardInterrupt else "failed" if kind else ""
        )

    def _follow(self) -> None:
        while not self._over.wait(0.5):
            lines = [
                output.data["text/plain"]
                for output in list(self._cell.get("outputs", []))
                if CSS_CLASS in output.get("data", {}).get("text/html", "")
            ]
            self._progress.update(self.cells_done, "".join(lines[-1:]))
