"""What every notebook does first and often: start, read its parameters, show a figure."""

from __future__ import annotations

import ast
import base64
import os
import platform
from importlib.metadata import version
from pathlib import Path
from traceback import walk_tb
from typing import Any

from gpt2_nb_utils.config import PARAMETERS_HEADER, RunConfig, check_names, notebook_default
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


def settings(namespace: dict[str, Any]) -> RunConfig:
    """The config that a notebook's parameters describe.

    Args:
        namespace: `globals()` of the notebook, after its parameters cell (and after the cell that
            papermill injects below it).

    Raises:
        UserError: a parameter that no setting has (papermill itself would only warn), or a bad
            value.
    """
    parameters, injected = _assigned_names(PARAMETERS_HEADER), _assigned_names("# Parameters")
    if _shell() is not None and "out_dir" not in namespace and "preset" not in namespace:
        raise UserError("the parameters are not set: run the cell above first, which sets them")
    check_names([*parameters, *injected])
    for name in injected:
        if parameters and name not in parameters:
            raise UserError(
                f"this notebook has no parameter {name!r}: it takes {', '.join(parameters)}"
            )
    return RunConfig.resolve(
        {
            name: namespace[name]
            for name in RunConfig.model_fields
            if namespace.get(name) is not None
            and (name in (*injected, "resume") or namespace[name] != notebook_default(name))
        }
    )


def _assigned_names(header: str) -> list[str]:
    """The names that this session's cell with such a first line assigned; when last run, if it was
    run more than once."""
    shell = _shell()
    for source in reversed(shell.history_manager.input_hist_raw if shell else []):
        if source.lstrip().partition("\n")[0].strip() == header:
            return [
                node.id
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            ]
    return []


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
