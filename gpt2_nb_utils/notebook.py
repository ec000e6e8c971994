"""What every notebook does first and often: start, read its parameters, show a figure."""

from __future__ import annotations

import ast
import base64
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from traceback import walk_tb
from typing import Any

from gpt2_nb_utils.config import RunConfig, check_names, notebook_default
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.text import one_line


def enter_project() -> None:
    """Work from the project's folder: JupyterLab starts a notebook in `notebooks`, and paths are
    relative to the project."""
    if Path("01_tokenization.ipynb").exists() and Path("../gpt2_nb_utils").is_dir():
        os.chdir("..")


def start() -> None:
    """Print the versions in use, work from the project's folder, and explain missing names in one
    line.

    Started from another folder than the project's, a notebook stays there, as a command does, and
    says so. Call this before the first tensor is made.
    """
    keep_large_blocks()
    enter_project()
    packages = "  ".join(
        f"{name} {version(name)}" for name in ("torch", "numpy", "matplotlib", "tiktoken")
    )
    print(f"Python {platform.python_version()}  {packages}")
    if not Path("gpt2_nb_utils").is_dir():
        print(
            f"working directory {one_line(str(Path.cwd()))}: data/input.txt and out/run are looked "
            f"for here, not in the project's folder"
        )
    if (shell := _shell()) is not None:
        shell.set_custom_exc((NameError,), _explain_missing_name)
        shell.events.register("post_run_cell", _note_parameters)


def _shell() -> Any:
    """The IPython session in which this runs, or None."""
    from IPython import get_ipython

    return get_ipython()


def _explain_missing_name(
    shell: Any, kind: type, error: NameError, traceback: Any, tb_offset: int | None = None
) -> None:
    """A cell without the cells above it (after a restart, or out of order) misses a name: say that,
    in place of a traceback."""
    *_, (innermost, _) = walk_tb(traceback)
    if innermost.f_globals is shell.user_ns:  # else a mistake in a package: its traceback says more
        line = (
            f"NameError: {error}: run the cells above first (Run > Run All Above Selected Cell), "
            f"or check the spelling"
        )
        error._render_traceback_ = lambda: [line]
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)


@dataclass
class _Parameters:
    """What the parameters cell assigned when it was last run, and papermill's cell below it.

    Attributes:
        own: the names that the parameters cell assigned, with their values.
        injected: likewise for the cell that papermill injects.
        count: the execution count of the parameters cell.
        injected_id: the id of papermill's cell, where the frontend tells it.
    """

    own: dict[str, Any] = field(default_factory=dict)
    injected: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    injected_id: str | None = None


_latest = _Parameters()


def _note_parameters(result: Any) -> None:
    """After each cell: keep what it assigned, if it is the parameters cell, which declares `preset`
    or `out_dir` with its type, or papermill's, which is run directly after that."""
    global _latest
    shell, source, cell_id = _shell(), result.info.raw_cell.lstrip(), result.info.cell_id
    first_line, _, rest = source.partition("\n")
    try:  # a magic becomes a call; one for the whole cell, such as %%time, leaves the rest as it is
        tree = ast.parse(shell.transform_cell(rest if first_line.startswith("%%") else source))
    except SyntaxError:
        return
    values = {
        node.id: shell.user_ns[node.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        if node.id in shell.user_ns
    }
    declared = {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)}
    if declared & {"preset", "out_dir"}:
        _latest = _Parameters(values, count=result.execution_count)
    elif first_line.strip() == "# Parameters" and (
        result.execution_count == _latest.count + 1 or cell_id == (_latest.injected_id or 0)
    ):
        _latest.injected, _latest.injected_id = values, cell_id


def settings(namespace: dict[str, Any]) -> RunConfig:
    """The config that a notebook's parameters describe.

    Args:
        namespace: `globals()` of the notebook, after its parameters cell (and after the cell that
            papermill injects below it). It counts where no parameters cell was seen: in a script.

    Raises:
        UserError: a parameter that no setting has (papermill itself would only warn), or a bad
            value.
    """
    own = _latest.own
    injected = {n: v for n, v in _latest.injected.items() if not n.startswith("PAPERMILL_")}
    if not own:
        if _shell() is not None and "out_dir" not in namespace and "preset" not in namespace:
            raise UserError("the parameters are not set: run the cell above first, which sets them")
        own = {name: namespace[name] for name in RunConfig.model_fields if name in namespace}
    check_names([*own, *injected])
    for name in injected:
        if name not in own:
            raise UserError(f"this notebook has no parameter {name!r}: it takes {', '.join(own)}")
    return RunConfig.resolve(
        {
            name: value
            for name, value in {**own, **injected}.items()
            if value is not None
            and (name in injected or name == "resume" or value != notebook_default(name))
        }
    )


def show(figure: Any, alt: str, save_as: Path | None = None) -> None:
    """Show a matplotlib figure with a text for those who cannot see it, and close it.

    Args:
        figure: a matplotlib `Figure`.
        alt: what the figure says, in a sentence.
        save_as: also write the picture there as PNG.
    """
    from IPython.display import display

    from gpt2_nb_utils.figures.style import display_data

    data, metadata = display_data(figure, alt)
    if save_as is not None:
        save_as.parent.mkdir(parents=True, exist_ok=True)
        save_as.write_bytes(base64.b64decode(data["image/png"]))
    if _shell() is None:  # a script made of the notebook
        print(alt)
    else:
        display(data, metadata=metadata, raw=True)
