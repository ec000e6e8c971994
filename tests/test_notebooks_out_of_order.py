"""The notebooks in a real kernel as people use them: restarted halfway, cells out of order or twice, from another folder."""

import contextlib
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.training.train import train

PROJECT = Path(__file__).parents[1]
LINE = re.compile(r"run the cells? above first")


class Session:
    """A kernel with a notebook's cells, to be run by their ids in any order."""

    def __init__(self, name: str, folder: Path, **parameters):
        notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
        self.cells = {cell.id: cell for cell in notebook.cells}
        given = "".join(f"\n{setting} = {value!r}" for setting, value in parameters.items())
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += given
        self.places = {cell.id: place for place, cell in enumerate(notebook.cells)}
        self.client = NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": str(folder)}},
        )

    def run(self, *ids: str) -> str:
        """What the last of these cells showed as text; an error as the lines that a reader sees of it."""
        for each in ids:
            self.client.execute_cell(self.cells[each], self.places[each])
        outputs = self.cells[ids[-1]].outputs
        return "\n".join(
            "\n".join(output.traceback)
            if output.output_type == "error"
            else output.get("text") or output.get("data", {}).get("text/plain", "")
            for output in outputs
        )

    def errors(self, *ids: str) -> list[str]:
        """The errors that these cells end in, one after the other."""
        return [
            said
            for each in ids
            if (said := self.run(each))
            and any(output.output_type == "error" for output in self.cells[each].outputs)
        ]


@pytest.fixture
def session():
    """Starts a notebook in a kernel of its own."""
    with contextlib.ExitStack() as kernels:

        def begin(name, folder=PROJECT / "notebooks", **parameters):
            started = Session(name, folder, **parameters)
            kernels.enter_context(started.client.setup_kernel())
            return started

        yield begin


def one_line(said: str) -> bool:
    return "\n" not in said.strip() and "Traceback" not in said


def test_notebook_03_out_of_order_restarted_and_twice(session, settings):
    small = settings(max_new_tokens=2, num_prompts=1, steps=2)
    notebook = session("03_training", **small)
    notebook.run("start")
    said = notebook.run("settings")
    assert "run the cell above first" in said and one_line(said), said
    for early in ("outcome", "files", "small-model"):
        said = notebook.run(early)
        assert LINE.search(said) and one_line(said) and "NameError" in said, said
    assert not Path(small["out_dir"]).exists()
    assert (
        notebook.errors(
            "parameters",
            "settings",
            "run",
            "outcome",
            "run",
            "settings",
            "run",
            "outcome",
            "files",
            "log",
            "samples",
            "checkpoint",
        )
        == []
    )
    assert "steps_done at step 2" in notebook.run("outcome")

    restarted = session("03_training", **{**small, "steps": 3})
    assert restarted.errors("start", "parameters", "settings", "run", "outcome") == []
    assert "steps_done at step 3" in restarted.run("outcome")


def test_notebook_04_says_what_to_run_first_and_then_works_in_any_order(
    session, settings, tmp_path
):
    given = settings(steps=1, sample_every=1, max_new_tokens=2, num_prompts=1)
    notebook = session("04_results", folder=tmp_path, out_dir=given["out_dir"], device="cpu")
    assert f"working directory {tmp_path}" in notebook.run("start")
    said = notebook.run("parameters", "settings")
    assert (
        said
        == f"UserError: {given['out_dir']} holds no run (summary.json is missing): run notebook 03 with this out_dir first, or name the out_dir of a run"
    )
    said = notebook.run("paint")
    assert LINE.search(said) and one_line(said), said
    train(RunConfig.resolve(given))
    assert (
        notebook.errors(
            "settings",
            "verdict",
            "measure",
            "recall",
            "samples",
            "measure",
            "recall",
            "facts",
            "caveats",
            "paint",
            "paint",
        )
        == []
    )


def test_a_name_that_a_package_misses_keeps_its_traceback(session):
    notebook = session("01_tokenization")
    notebook.cells[
        "settings"
    ].source = "import textwrap\nexec('def f(): return nowhere', textwrap.__dict__)\ntextwrap.f()"
    said = notebook.run("start", "settings")
    assert "textwrap.f()" in said and "nowhere" in said and not LINE.search(said)
