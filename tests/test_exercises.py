"""The exercises of the notebooks: something to predict, something to change, and an answer whose code runs and holds."""

import re
import shutil
import symtable
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from conftest import needs_browser

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import make_run  # noqa: E402

from gpt2_nb_utils.report.notebooks import SOURCES  # noqa: E402
from gpt2_nb_utils.report.report import build_report  # noqa: E402
from gpt2_nb_utils.run_directory import RunDirectory  # noqa: E402

NOTEBOOKS = ("01_tokenization", "02_model", "03_training", "04_results", "05_space")
SHAPE = re.compile(
    r"### Try this (\d) · [^\n]+\n\n\*\*Predict:\*\* .+?\n\n\*\*Then:\*\* .+?\n\n"
    r"<details>\n<summary>Answer (\d)</summary>\n\n(.+)\n\n</details>",
    re.DOTALL,
)
CODE = re.compile(r"^```python\n(.+?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """One exercise as it stands in a notebook; `solution` is the code inside its folded answer."""

    id: str
    number: int
    solution: str
    learners_cell: nbformat.NotebookNode


def source_cells(name: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(SOURCES / f"{name}.ipynb", as_version=4).cells


def exercises_of(name: str) -> list[Exercise]:
    cells, found = source_cells(name), []
    for cell, following in zip(cells, [*cells[1:], None]):
        if cell["cell_type"] == "markdown" and cell["id"].startswith("try-"):
            shape = SHAPE.fullmatch(cell["source"])
            assert shape, f"{name}, cell {cell['id']}: not in the form of an exercise"
            assert shape[1] == shape[2], (
                f"{name}, cell {cell['id']}: exercise {shape[1]} has answer {shape[2]}"
            )
            (solution,) = CODE.findall(shape[3])
            found.append(Exercise(cell["id"], int(shape[1]), solution, following))
    return found


def names_bound(source: str, imports: bool) -> set[str]:
    """The names that a cell binds for those after it."""
    symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    return {
        symbol.get_name()
        for symbol in symbols
        if symbol.is_assigned() or (imports and symbol.is_imported())
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_two_to_four_exercises_and_below_each_an_empty_cell_to_try_it_in(name):
    found = exercises_of(name)
    assert [exercise.number for exercise in found] == list(range(1, len(found) + 1)) and 2 <= len(
        found
    ) <= 4
    for exercise in found:
        cell = exercise.learners_cell
        # A comment only: the notebook runs to its end with nothing solved.
        assert (cell["cell_type"], cell["id"], cell["source"]) == (
            "code",
            f"{exercise.id}-code",
            f"# Try this {exercise.number}: your code",
        )
    headings = re.findall(
        r"Try this",
        "\n".join(cell["source"] for cell in source_cells(name) if cell["cell_type"] == "markdown"),
    )
    assert len(headings) == len(found)  # none that the tests do not see


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_solution_asserts_its_claim_and_leaves_the_notebooks_names_alone(name):
    taken = set().union(
        *(
            names_bound(cell["source"], imports=True)
            for cell in source_cells(name)
            if cell["cell_type"] == "code"
        )
    )
    for exercise in exercises_of(name):
        assert re.search(r"^assert ", exercise.solution, re.MULTILINE), exercise.id
        assert not names_bound(exercise.solution, imports=False) & taken, exercise.id


def solve(name: str, folder: Path) -> None:
    """Write a notebook into a folder with each solution pasted where a learner would, and all again below the last cell."""
    notebook = nbformat.read(SOURCES / f"{name}.ipynb", as_version=4)
    solutions = {f"{exercise.id}-code": exercise.solution for exercise in exercises_of(name)}
    for cell in notebook.cells:
        cell.source = solutions.get(cell.id, cell.source)
    notebook.cells += [
        nbformat.v4.new_code_cell(solution, id=f"{cell_id}-again")
        for cell_id, solution in solutions.items()
    ]
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_solution_holds_where_it_stands_and_again_after_the_last_cell(solved, name):
    project, done = solved
    executed = RunDirectory(project / "out" / "run").notebooks / f"{name}.ipynb"
    assert executed.exists(), done.stderr
    cells = {cell.id: cell for cell in nbformat.read(executed, as_version=4).cells}
    for exercise in exercises_of(name):
        for cell in (cells[f"{exercise.id}-code"], cells[f"{exercise.id}-code-again"]):
            assert cell.source == exercise.solution and cell.execution_count
            assert cell.outputs, f"{exercise.id}: shows nothing"
            assert cell.metadata.papermill.duration < 60, exercise.id


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The notebooks, as they are in the repository, as pages of a report."""
    run = make_run(tmp_path_factory.mktemp("exercises") / "run")
    run.notebooks.mkdir()
    for name in NOTEBOOKS:
        shutil.copy(SOURCES / f"{name}.ipynb", run.notebooks)
    return build_report(run).parent


@needs_browser
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_answer_is_folded_away_opens_by_keyboard_and_is_printed(browser, pages, name):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((pages / f"{name}.html").resolve().as_uri())
    for exercise in exercises_of(name):
        code = page.locator(f"#cell-{exercise.id} details pre")
        assert not code.is_visible()
        for _ in range(300):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches('#cell-{exercise.id} summary')"):
                break
        page.keyboard.press("Enter")
        assert code.is_visible() and code.inner_text().strip() == exercise.solution.strip()
        page.keyboard.press("Enter")
        assert not code.is_visible()
    page.emulate_media(media="print")
    for exercise in exercises_of(name):
        assert page.locator(f"#cell-{exercise.id} details pre").is_visible(), exercise.id
    page.close()
