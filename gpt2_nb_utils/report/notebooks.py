"""Run the notebooks headless, one after the other, into a run directory.

papermill executes them. This module gives each the parameters that it knows, shows how far the work is, and says
which cell failed. What the notebooks do is their own affair.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.stop_request import StopRequest

SOURCES = Path(__file__).resolve().parents[2] / "notebooks"
"""The folder of the source notebooks, beside the package in the project's folder."""
NAMES = ("01_tokenization", "02_model", "03_training", "04_results", "05_space")
_ENGINE = "gpt2_nb_utils"


class NotebookFailed(UserError):
    """A cell of a notebook ended in an error; the message says which.

    Args:
        exit_status: 2 where the cell reported a user's mistake, 1 otherwise.
    """

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def run_notebooks(
    config: RunConfig, directory: RunDirectory, names: tuple[str, ...] = NAMES
) -> None:
    """Execute notebooks with the settings of a run.

    The run directory is claimed already. With `resume` set, 01 and 02 are not run again if they had run to their end, as they stand now;
    03 goes on with the training, 04 shows its results and 05 exports its model.

    Raises:
        NotebookFailed: a cell failed; the partly executed notebook is kept.
        KeyboardInterrupt: somebody asked to stop; training has saved what it had.
        UserError: a notebook is missing.
    """
    for name in names:
        source = _source(name)
        if not source.exists():
            raise UserError(f"{source} is missing: run from a complete clone of the project")
    for name in names:
        target = directory.notebooks / f"{name}.ipynb"
        if config.resume and name in NAMES[:2] and _ran_to_its_end(_source(name), target):
            continue
        _execute(name, target, config, directory)


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
    # The directory is this run's by now: its notebooks go on in it.
    always, never = {"preset", "out_dir"}, {"resume", "overwrite"}
    return {
        name: value
        for name, value in config.model_dump().items()
        if name in known and name not in never and (name in always or value != getattr(usual, name))
    }


def _execute(name: str, target: Path, config: RunConfig, directory: RunDirectory) -> None:
    import papermill
    from papermill.engines import papermill_engines

    engine = _telling_engine()
    papermill_engines.register(_ENGINE, engine)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    source = _source(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    n_cells = (
        len(nbformat.read(source, as_version=4).cells) + 1
    )  # papermill adds the injected parameters
    with _Watch(name, n_cells, directory) as watch, StopRequest(engine.interrupt) as stop:
        engine.on_cell = watch.cell
        try:
            papermill.execute_notebook(
                _as_seen_from_here(source),
                str(target),
                parameters_for(source, config),
                engine_name=_ENGINE,
                kernel_name="python3",
                progress_bar=False,
                autosave_cell_every=0,
            )
        except papermill.PapermillExecutionError as error:
            if stop:
                raise KeyboardInterrupt from None
            first_line = error.source.strip().splitlines()[0]
            raise NotebookFailed(
                f"{name}.ipynb, cell {watch.cells_done + 1} of {n_cells} (`{first_line}`): {error.ename}: {' '.join(error.evalue.split())} "
                f"(executed so far: {target})",
                2 if error.ename == "UserError" else 1,
            ) from None
        except RuntimeError as error:  # nbclient: the kernel died, or did not start
            raise NotebookFailed(
                f"{name}.ipynb, cell {watch.cells_done + 1} of {n_cells}: {' '.join(str(error).split())} (executed so far: "
                f"{target}); --resume auto goes on from the last checkpoint",
                1,
            ) from None
        if stop:
            raise KeyboardInterrupt


def _as_seen_from_here(path: Path) -> str:
    """A relative path where there is one: the executed notebook records it, and is handed on to others."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _ran_to_its_end(source: Path, executed: Path) -> bool:
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return False
    own = [
        cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    return own == [cell.source for cell in nbformat.read(source, as_version=4).cells] and all(
        cell.metadata.get("papermill", {}).get("status") == "completed" for cell in cells
    )


def _telling_engine() -> type:
    """papermill's way to execute a notebook, which tells each cell that it starts and whose kernel can be interrupted."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

    class TellingEngine(Engine):
        on_cell: Callable[[int], None] = staticmethod(lambda index: None)
        client: PapermillNotebookClient | None = None

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            start = nb_man.cell_start

            def cell_start(cell: Any, cell_index: int, **more: Any) -> None:
                cls.on_cell(cell_index)
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            # Level 50: what the kernel itself says would tear the progress line.
            cls.client = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=120,
                timeout=None,
                extra_arguments=["--log-level=50"],
            )
            cls.client.execute()

        @classmethod
        def interrupt(cls) -> None:
            """Interrupt the kernel, as JupyterLab's stop button does: training then saves and ends."""
            kernel = cls.client and cls.client.km and cls.client.km.provisioner
            if kernel and kernel.pid:
                os.kill(
                    kernel.pid, signal.SIGINT
                )  # a kernel is in a process group of its own: Ctrl-C does not reach it

    return TellingEngine


class _Watch:
    """Shows how far a notebook is, and how far the training inside it, as `summary.json` tells."""

    def __init__(self, name: str, n_cells: int, directory: RunDirectory):
        self._name, self._directory = name, directory
        self._progress = Progress(n_cells, f"{name}  cell", estimate=False)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.cells_done = 0

    def cell(self, index: int) -> None:
        self.cells_done = index

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._progress.update(self.cells_done if kind else self._progress.total)
        self._progress.close(
            "interrupted" if kind is KeyboardInterrupt else "failed" if kind else ""
        )

    def _follow(self) -> None:
        while not self._over.wait(0.5):
            figures, left = {}, None
            if self._name == "03_training":
                figures, left = self._training()
            self._progress.update(self.cells_done, seconds_left=left, **figures)

    def _training(self) -> tuple[dict[str, str], float | None]:
        try:
            summary = self._directory.read_summary()
        except (UserError, OSError):
            return {}, None  # removed or replaced under our eyes: the notebook will say so
        step, steps = summary["step"], summary["config"]["steps"]
        if not step or summary["status"] != "running":
            return {}, None
        figures = {"step": f"{step:,}/{steps:,}", "tok/s": f"{summary['tok_per_s']:,.0f}"}
        if summary["loss"] is not None:
            figures["loss"] = f"{summary['loss']:.4f}"
        return figures, summary["wall_seconds"] / step * (steps - step)
