"""The real command in a process of its own, what it leaves in executed notebooks, and notebooks that stand in for ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from gpt2_nb_utils.report.notebooks import NAMES

PROJECT = Path(__file__).parents[1]


def command(
    *words: str, cwd: Path = PROJECT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpt2_nb_utils", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )


def flags(settings: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def outputs(notebook: Path, cell_id_or_text: str = "") -> str:
    cells = [
        cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"
    ]
    return json.dumps([cell.outputs for cell in cells if cell_id_or_text in (cell.id, "")])


def stand_ins(folder: Path, **sources: list[str]) -> None:
    folder.mkdir()
    for name in NAMES:
        cells = [
            nbformat.v4.new_code_cell(
                'out_dir: str = ""  # where', metadata={"tags": ["parameters"]}
            )
        ]
        cells += [nbformat.v4.new_markdown_cell("prose")]
        cells += [nbformat.v4.new_code_cell(source) for source in sources.get(f"nb_{name[:2]}", [])]
        metadata = {
            "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}
        }
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb"
        )


def clone(
    folder: Path, real: dict[str, tuple[str, ...]] | None = None, **sources: list[str]
) -> Path:
    """A project with a copy of this package, in which notebooks that are not `real` are stand-ins.

    Its commands need its folder as PYTHONPATH: the notebooks are then its own, too.

    Args:
        real: the notebooks that are ours, each with the cells that it keeps besides its first
            three; all of them where none is named.
        sources: the code cells of stand-ins, as `nb_01`; the others only start a kernel.
    """
    shutil.copytree(PROJECT / "gpt2_nb_utils", folder / "gpt2_nb_utils")
    stand_ins(folder / "notebooks", **sources)
    for name, kept in (real or {}).items():
        notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert set(kept) <= {cell.id for cell in notebook.cells}, name
        if kept:
            kept = ("start", "parameters", "settings", *kept)
            notebook.cells = [cell for cell in notebook.cells if cell.id in kept]
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


TRAINING = {"03_training": ("run", "outcome", "files", "log", "samples", "checkpoint")}
"""Notebook 03 without what it shows before it trains."""
