"""The notebooks in a real kernel as people use them: restarted halfway, cells out of order or twice, from another folder."""

import ast
import contextlib
import re
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.report.notebooks import NAMES
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

    def execute(self, source: str) -> str:
        """What a cell of the learner's own shows."""
        self.client.nb.cells.append(nbformat.v4.new_code_cell(source))
        self.cells["own"], self.places["own"] = (
            self.client.nb.cells[-1],
            len(self.client.nb.cells) - 1,
        )
        return self.run("own")

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


def settings_of(notebook) -> dict:
    """What the settings cell gives, from the parameters as they stand in the session."""
    shown = notebook.execute("print(notebook.settings(globals()).given)")
    assert "Error" not in shown, shown
    return ast.literal_eval(shown)


def test_only_the_parameters_cell_sets_anything(session):
    notebook = session("02_model", n_layer=2)
    notebook.run("start", "parameters")
    notebook.execute("optimizer, learner = object(), 1")
    notebook.execute("# Parameters\nalpha, lr, n_layer = 3, 5, 7")
    assert settings_of(notebook) == {"n_layer": 2}


@pytest.mark.parametrize(
    "above", ["# my settings\n", "%matplotlib inline\n", "!true\n", "%%time\n", "\n\n# a\n%pwd\n"]
)
def test_a_comment_or_a_magic_in_the_parameters_cell_changes_nothing(session, above):
    notebook = session("02_model")
    own = notebook.cells["parameters"].source
    notebook.cells["parameters"].source = (
        above + own + "\nn_layer = 1 + 1\nif True:\n    n_head = 3"
    )
    assert notebook.errors("start", "parameters") == []
    assert settings_of(notebook) == {"n_layer": 2, "n_head": 3}
    notebook.cells["parameters"].source = above + own + "\nn_layers = 2"
    notebook.run("parameters")
    said = notebook.run("settings")
    assert "unknown setting 'n_layers': did you mean 'n_layer'?" in said and one_line(said)


def test_the_cell_that_papermill_injects_counts_where_it_stands(session):
    notebook = session("02_model", n_head=3)
    notebook.run("start", "parameters")
    notebook.execute("# Parameters\nn_layer = 2\nPAPERMILL_OUTPUT_PATH = 'x.ipynb'")
    assert settings_of(notebook) == {"n_layer": 2, "n_head": 3}
    notebook.run("parameters")  # without the cell below: it is not wanted any more
    assert settings_of(notebook) == {"n_head": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_run_all_twice_in_one_kernel(session, finished, tmp_path, settings, name):
    given = settings(steps=2, out_dir=str(tmp_path / "run"))
    if name in NAMES[3:]:
        shutil.copytree(finished[0].path, given["out_dir"])
    known = papermill.inspect_notebook(str(PROJECT / "notebooks" / f"{name}.ipynb"))
    notebook = session(name, **{key: value for key, value in given.items() if key in known})
    code = [id for id, cell in notebook.cells.items() if cell.cell_type == "code"]
    assert notebook.errors(*code) == []
    assert notebook.errors(*code) == []
    if "settings" in code:
        assert notebook.errors("settings") == []  # with every name of the notebook around


def test_what_can_be_refused_is_refused_in_the_settings_cell_with_papermills_flag(
    session, settings, tmp_path
):
    given = settings(steps=1, sample_every=0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    notebook = session("03_training", **given)
    said = notebook.run("start", "parameters", "settings")
    assert "holds files but no run: name a new or empty folder (-p out_dir)" in said
    assert one_line(said)
    (tmp_path / "run" / "thesis.txt").unlink()
    assert notebook.errors("settings") == []
    train(RunConfig.resolve(given))
    for name, value, words in (
        ("resume", "", "-p resume auto.*-p out_dir.*-p overwrite True"),
        ("seed", 5, "seed 5 differs from 1337.* in another -p out_dir"),
        ("device", "cuda", "cuda.*-p device cpu"),
    ):
        notebook = session("03_training", **{**given, name: value})
        said = notebook.run("start", "parameters", "settings")
        assert re.search(words, said) and one_line(said), said


def test_a_name_that_a_package_misses_keeps_its_traceback(session):
    notebook = session("01_tokenization")
    notebook.cells[
        "settings"
    ].source = "import textwrap\nexec('def f(): return nowhere', textwrap.__dict__)\ntextwrap.f()"
    said = notebook.run("start", "settings")
    assert "textwrap.f()" in said and "nowhere" in said and not LINE.search(said)
