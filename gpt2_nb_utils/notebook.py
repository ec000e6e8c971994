"""What every notebook does first and often: start, read its parameters, show a figure.

It knows Jupyter and papermill. It deliberately does not know what any notebook is about.
"""

from __future__ import annotations

import ast
import base64
import io
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_nb_utils import config as _config
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.text import one_line


def enter_project() -> None:
    """Work from the project's folder: JupyterLab starts a notebook in `notebooks`, and paths are relative to the project."""
    if Path("01_tokenization.ipynb").exists() and Path("../gpt2_nb_utils").is_dir():
        os.chdir("..")


def start() -> None:
    """Print the versions in use, work from the project's folder, and tell missing names in a line.

    Started from another folder than the project's, a notebook stays there, as a command does, and says so. Call this before the first tensor is made.
    """
    keep_large_blocks()
    enter_project()
    packages = "  ".join(
        f"{name} {version(name)}" for name in ("torch", "numpy", "matplotlib", "tiktoken")
    )
    print(f"Python {platform.python_version()}  {packages}")
    if not Path("gpt2_nb_utils").is_dir():
        print(
            f"working directory {one_line(str(Path.cwd()))}: data/input.txt and out/run are looked for here, not in the project's folder"
        )
    if (shell := _shell()) is not None:
        shell.set_custom_exc((NameError,), _tell_missing_name)


def _shell() -> Any:
    """The IPython session in which this runs, or None."""
    from IPython import get_ipython

    return get_ipython()


def _tell_missing_name(
    shell: Any, kind: type, error: NameError, traceback: Any, tb_offset: int | None = None
) -> None:
    """A cell without the cells above it (after a restart, or out of order) misses a name: say that, in place of a traceback."""
    innermost = traceback
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    if (
        innermost.tb_frame.f_globals is shell.user_ns
    ):  # else a mistake in a package, which a traceback tells better
        line = f"NameError: {error}: run the cells above first (Run > Run All Above Selected Cell), or check the spelling"
        error._render_traceback_ = lambda: [line]
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)


def settings(namespace: dict[str, Any]) -> RunConfig:
    """The config that a notebook's parameters describe.

    Args:
        namespace: `globals()` of the notebook, after its parameters cell (and after the cell that papermill
            injects below it).

    Raises:
        UserError: a parameter that no setting has (papermill itself would only warn), or a bad value.
    """
    parameters, injected = _assigned_names()
    if _shell() is not None and "out_dir" not in namespace and "preset" not in namespace:
        raise UserError("the parameters are not set: run the cell above first, which sets them")
    _config.check_names([*parameters, *injected])
    for name in injected:
        if parameters and name not in parameters:
            raise UserError(
                f"this notebook has no parameter {name!r}: it takes {', '.join(parameters)}"
            )
    given = {}
    for name in RunConfig.model_fields:
        value = namespace.get(name)
        by_hand = name in injected or value != _config.notebook_default(name)
        if value is not None and (by_hand or name == "resume"):
            given[name] = value
    return RunConfig.resolve(given)


def _assigned_names() -> tuple[list[str], list[str]]:
    """The names that the parameters cell of this session assigned, and those that papermill's cell below it did."""
    shell = _shell()
    if shell is None:
        return [], []
    latest = {_config.PARAMETERS_HEADER: "", "# Parameters": ""}
    for source in shell.history_manager.input_hist_raw:
        first_line = source.lstrip().partition("\n")[0].strip()
        if first_line in latest:
            latest[first_line] = source
    parameters, injected = map(_targets, latest.values())
    return parameters, injected


def _targets(source: str) -> list[str]:
    names = []
    for statement in ast.parse(source).body:
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [getattr(statement, "target", None)]
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def figure_data(figure: Any, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """A matplotlib figure as the data and metadata of a display message; the figure is closed.

    Args:
        alt: what the figure says, in a sentence; it becomes the image's alternative text in the report.
    """
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"image/png": image, "text/plain": f"[figure] {alt}"}, {"image/png": {"alt": alt}}


def show(figure: Any, alt: str, save_as: Path | None = None) -> None:
    """Show a matplotlib figure with a text for those who cannot see it, and close it.

    Args:
        figure: a matplotlib `Figure`.
        alt: what the figure says, in a sentence.
        save_as: also write the picture there as PNG.
    """
    from IPython.display import display

    data, metadata = figure_data(figure, alt)
    if save_as is not None:
        save_as.parent.mkdir(parents=True, exist_ok=True)
        save_as.write_bytes(base64.b64decode(data["image/png"]))
    display(data, metadata=metadata, raw=True)
