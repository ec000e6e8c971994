"""The notebooks in the real JupyterLab, driven in a real browser as a student drives it: run, watch, stop, restart, save."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import needs_browser

from gpt2_nb_utils.report.notebooks import NAMES, SOURCES
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import read_checkpoint

pytestmark = needs_browser
SCREENSHOTS = os.environ.get("GPT2_NB_UTILS_SCREENSHOTS")
"""Where pictures of what the browser shows are kept for a person to look at; a folder of the test otherwise."""
# The progress line of the run, not of the eight steps that the notebook takes before it.
_LINE_OF_THE_RUN = """[...document.querySelectorAll('.gpt2-progress')].find(line => line.textContent.includes('/400'))"""
_PATIENCE = 900
"""Seconds that a busy machine may take for a notebook."""


class JupyterLab:
    """A JupyterLab server on a folder of notebooks, and the page that shows it.

    Args:
        folder: holds the notebooks; whatever Jupyter keeps for a user goes beside it, so that nobody's own settings matter.
        page: of the browser.
        pictures: folder of the screenshots.
    """

    def __init__(self, folder: Path, page, pictures: Path):
        self.folder, self.page, self._pictures = folder, page, pictures
        home = folder.with_name("jupyter")
        settings = (
            home
            / "settings"
            / "@jupyterlab"
            / "apputils-extension"
            / "notification.jupyterlab-settings"
        )
        settings.parent.mkdir(parents=True)
        settings.write_text(
            '{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8"
        )  # it would ask the network
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url, self._token = f"http://127.0.0.1:{port}", "a token of the test"
        places = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        self._log = (home / "server.log").open("w")
        self._server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                str(folder),
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                "--ServerApp.port_retries=0",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **{name: str(home / place) for name, place in places.items()},
                "JUPYTER_TOKEN": self._token,
            },
        )
        self.until(lambda: self._answers(port), "a server that answers")

    def close(self) -> None:
        self._server.terminate()  # it ends its kernels
        self._server.wait(60)
        self._log.close()

    def open(self, name: str) -> None:
        """Open a notebook in an empty workspace and wait for its kernel."""
        self.page.goto(
            f"{self._url}/lab/tree/{name}.ipynb?reset&token={self._token.replace(' ', '%20')}"
        )
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=1000 * _PATIENCE)
        self.until_idle()

    def menu(self, menu: str, item: str) -> None:
        """Choose an item of the menu bar."""
        self.page.locator("#jp-MainMenu").get_by_text(menu, exact=True).click()
        self.page.locator(".lm-Menu").get_by_text(item, exact=True).click()

    def run_all(self) -> None:
        """Run all cells and wait for the last one."""
        self.menu("Run", "Run All Cells")
        self.until_all_ran()

    def until_idle(self) -> None:
        # What the status bar says: the toolbar shows an idle circle before there is a kernel, too.
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=1000 * _PATIENCE)

    def until_all_ran(self) -> None:
        """Wait until no cell runs or waits for its turn."""
        done = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(e => /\\[\\d+\\]/.test(e.textContent))"
        self.page.wait_for_function(done, timeout=1000 * _PATIENCE)
        self.until_idle()

    def save(self) -> nbformat.NotebookNode:
        """Save the notebook and read back what lies on the disk."""
        path = (
            self.folder
            / self.page.locator(".jp-mod-current .lm-TabBar-tabLabel").first.inner_text()
        )
        before = path.stat().st_mtime_ns
        self.menu("File", "Save Notebook")
        self.until(lambda: path.stat().st_mtime_ns > before, "a saved notebook")
        time.sleep(0.5)
        return nbformat.read(path, as_version=4)

    def progress(self) -> str:
        """The progress line of the training, or nothing where there is none yet."""
        lines = [
            line
            for line in self.page.locator(".gpt2-progress code").all_text_contents()
            if line.startswith("training  ") and "/400" in line  # not the eight steps above it
        ]
        return lines[0] if lines else ""

    def figure(self) -> str:
        """What tells one state of the live figure from another, or nothing where there is none yet."""
        source = self.page.evaluate(f"""() => {{ const line = {_LINE_OF_THE_RUN};
            const figure = line && line.closest('.jp-CodeCell').querySelector('img'); return figure && figure.src; }}""")
        return hashlib.sha256(source.encode()).hexdigest() if source else ""

    def look(self, name: str, at_progress: bool = False) -> None:
        """Keep a picture of what the page shows.

        Args:
            at_progress: scroll to the progress line of the training.
        """
        for _ in range(
            3 * at_progress
        ):  # by script, for the line is drawn anew all the time; cells get their height when they come into sight
            self.page.evaluate(
                f"{_LINE_OF_THE_RUN}.closest('.jp-Cell-outputWrapper').scrollIntoView()"
            )
            time.sleep(0.2)
        self._pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self._pictures / f"{name}.png")

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    @staticmethod
    def until(happened, what: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not happened():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.1)


def set_parameters(notebook: Path, **values) -> None:
    """Change lines of the parameters cell, as a student would."""
    content = nbformat.read(notebook, as_version=4)
    (cell,) = (cell for cell in content.cells if cell.id == "parameters")
    for name, value in values.items():
        changed = re.sub(
            rf"(?m)^({name}: \w+) = .*?(  #|$)",
            lambda line: f"{line[1]} = {value!r}{line[2]}",
            cell.source,
        )
        assert changed != cell.source or f"\n{name}: " not in cell.source, name
        cell.source = changed
    nbformat.write(content, notebook)


@pytest.fixture(scope="module")
def seen(tmp_path_factory, browser, text_file):
    """What a student sees who runs the notebooks, and stops and restarts the third in the midst of its training."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    run = RunDirectory(folder.with_name("run"))
    folder.mkdir()
    for name in NAMES:
        shutil.copy(SOURCES / f"{name}.ipynb", folder)
        set_parameters(
            folder / f"{name}.ipynb",
            preset="tiny",
            input_file=str(text_file),
            out_dir=str(run),
            device="cpu",
        )
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    lab = JupyterLab(
        folder, page, Path(SCREENSHOTS) if SCREENSHOTS else folder.with_name("pictures")
    )
    seen = {"run": run, "notebooks": {}}
    try:
        for name in NAMES:
            lab.open(name)
            if name == "03_training":
                lab.menu("Run", "Run All Cells")
                train_with_interruptions(lab, run, seen)
            else:
                lab.run_all()
            seen["notebooks"][name] = lab.save()
            lab.look(name)
        yield seen
    except BaseException:
        lab.look("failed")
        raise
    finally:
        lab.close()
        page.close()


def train_with_interruptions(lab: JupyterLab, run: RunDirectory, seen: dict) -> None:
    """Watch the training, stop it, go on with it, restart its kernel in the midst of it, and let it end."""
    lab.until(lab.progress, "a progress line")
    lab.until(lab.figure, "a live figure")
    lab.look("03_at_first", at_progress=True)
    first = lab.progress(), lab.figure()
    lab.until(
        lambda: lab.progress() != first[0] and lab.figure() != first[1],
        "a line and a figure that move",
    )
    seen["watched"] = [first, (lab.progress(), lab.figure())]
    lab.look("03_later", at_progress=True)

    lab.page.locator("[data-command='notebook:interrupt-kernel']").first.click()
    lab.until_all_ran()
    seen["stopped"] = {
        "summary": run.read_summary(),
        "saved": read_checkpoint(run.last)["state"]["step"],
        "line": lab.progress(),
        "notebook": lab.save(),
    }
    lab.look("03_stopped", at_progress=True)

    lab.page.locator(".jp-CodeCell .cm-content", has_text="live.finish()").click()
    lab.page.keyboard.press("Control+Enter")
    lab.until(
        lambda: run.read_summary()["step"] > seen["stopped"]["saved"] + 10, "a run that goes on"
    )
    lab.menu("Kernel", "Restart Kernel and Run All Cells…")
    lab.look("03_restart")
    lab.page.locator(".jp-Dialog button.jp-mod-accept").click()
    lab.until_all_ran()
    lab.look("03_finished", at_progress=True)


def errors(notebook: nbformat.NotebookNode) -> list[str]:
    return [
        str(output.get("text") or output.get("ename"))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_and_none_fails_or_warns(seen, name):
    notebook = seen["notebooks"][name]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert errors(notebook) == []


def test_the_progress_line_and_the_live_figure_move_while_the_model_trains(seen):
    (line, figure), (later_line, later_figure) = seen["watched"]
    first, later = (int(re.match(r"training  (\d+)/400  ", text)[1]) for text in (line, later_line))
    assert first < later < 400 and figure != later_figure


def test_the_stop_button_finishes_the_step_and_saves_without_a_traceback(seen):
    stopped = seen["stopped"]
    assert stopped["summary"]["status"] == "interrupted"
    assert 0 < stopped["saved"] == stopped["summary"]["step"] < 400
    assert (
        stopped["line"].endswith("interrupted") and f"  {stopped['saved']}/400  " in stopped["line"]
    )
    assert errors(stopped["notebook"]) == []


def test_run_again_and_after_a_restart_of_the_kernel_the_training_goes_on_where_it_was(seen):
    summary = seen["run"].read_summary()
    first, second = (each["step"] for each in summary["resumed_with"])
    assert first == seen["stopped"]["saved"] < second < summary["step"]
    assert summary["status"] == "target_reached"


def test_a_saved_notebook_shows_the_finished_progress_and_the_last_figure(seen):
    step = seen["run"].read_summary()["step"]
    (cell,) = (cell for cell in seen["notebooks"]["03_training"].cells if cell.id == "run")
    shown = json.dumps(cell.outputs, ensure_ascii=False)
    assert (
        f"training  {step}/400" in shown
        and "target reached" in shown
        and f"at step {step}" in shown
        and "400 steps at most" in shown
    )
    assert all(stale not in shown for stale in (" left", "interrupted", "widget"))
