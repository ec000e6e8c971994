"""What the notebooks say where their HTML is not shown: in a script, a PDF, on a code host."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbconvert import ScriptExporter

from gpt2_nb_utils.figures import html
from gpt2_nb_utils.report.mathml import markdown_to_html
from gpt2_nb_utils.report.notebooks import SOURCES
from gpt2_nb_utils.report.safe_html import in_order, safe_html
from gpt2_nb_utils.tokenization.bpe import encode

NAMES = sorted(path.stem for path in SOURCES.glob("*.ipynb"))


def script_of(name: str) -> tuple[str, str]:
    """The notebook as nbconvert makes a script of it, and the ending of its file name."""
    script, resources = ScriptExporter().from_filename(str(SOURCES / f"{name}.ipynb"))
    return script, resources["output_extension"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_exported_as_a_python_script_that_imports_what_it_uses(name, tmp_path):
    script, ending = script_of(name)
    assert ending == ".py"
    path = tmp_path / f"{name}.py"
    path.write_text(script, encoding="utf-8")
    undefined = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", path]
    checked = subprocess.run(undefined, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_the_script_of_the_results_runs_by_itself(finished, tmp_path):
    directory, _ = finished
    script, _ = script_of("04_results")
    script = re.sub(
        r"^out_dir: str = .+$", f"out_dir = {str(directory.path)!r}", script, flags=re.M
    )
    path = tmp_path / "results.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "A loss of" in done.stdout
    assert "HTML object" not in done.stdout and "image/png" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_output_has_a_plain_text_that_says_the_same(finished, name):
    directory, _ = finished
    notebook = nbformat.read(directory.notebooks / f"{name}.ipynb", as_version=4)
    shown = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert shown
    for data in shown:
        assert "IPython.core.display" not in data["text/plain"]
        assert data["text/plain"].strip()


def test_a_table_is_a_line_for_each_row():
    shown = html.table(("token", "id"), [(html.code(" the"), 262), ("a & b", 12_345)], "Two tokens")
    assert repr(shown) == "Two tokens\ntoken | id\n·the | 262\na & b | 12,345"


def test_without_styles_each_token_is_followed_by_its_id():
    shown = html.coloured_tokens(encode("First Citizen:\nBefore"))
    assert repr(shown) == "First 5962 ·Citizen 22307 : 25 ↵ 198\nBefore 8421"


HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((\w+\.ipynb)?(?:#([^\s]+))?\)")


def test_every_link_between_and_within_the_notebooks_leads_to_a_heading():
    texts = {
        name: "\n\n".join(
            cell.source
            for cell in nbformat.read(SOURCES / f"{name}.ipynb", as_version=4).cells
            if cell.cell_type == "markdown"
        )
        for name in NAMES
    }
    anchors = {
        name: {heading.replace(" ", "-") for heading in HEADING.findall(text)}
        for name, text in texts.items()
    }
    for name, text in texts.items():
        links = [(file, section) for file, section in LINK.findall(text) if file or section]
        assert len(links) > 4, name
        for file, section in links:
            target = file.removesuffix(".ipynb") or name
            assert target in anchors and (not section or section in anchors[target]), section


def test_the_links_of_a_notebook_lead_to_the_headings_of_its_page():
    text = (
        "# T\n\n[one](#1.-What-a-step-is) [other](02_model.ipynb#Glossary)\n\n## 1. What a step is"
    )
    pages = {"02_model.ipynb": "02_model.html"}
    body, _, _ = in_order(safe_html(markdown_to_html(text), pages))
    assert 'href="#1.-What-a-step-is"' in body and 'id="1.-What-a-step-is"' in body
    assert 'href="02_model.html#Glossary"' in body
