"""What notebook 02 shows besides figures: the table of parameters, and highlighted source code."""

from __future__ import annotations

import inspect
import textwrap

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from gpt2_nb_utils.figures.html import HTML, table
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_parts


def code_of(*things: object) -> HTML:
    """The source code of classes or functions as it stands in the package, highlighted."""
    source = "\n\n".join(textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in things)
    # Colours in the elements themselves, on a background of their own: the same on every page,
    # light or dark.
    formatter = HtmlFormatter(
        noclasses=True,
        cssstyles="background:#ffffff; color:#1a1a1a; overflow-x:auto; padding:.1em .8em;",
        prestyles="font-family:monospace; white-space:pre; color:#1a1a1a; background:transparent;",
    )
    return HTML(highlight(source, PythonLexer(), formatter))


def parts_table(config: GPT2Config) -> HTML:
    """Each part of the network with its arithmetic and its parameters, and their sum."""
    parts = parameter_parts(config)
    total = sum(count for _, _, count in parts)
    rows = [(*part, f"{part[2] / total:.1%}") for part in parts]
    return table(
        ("part", "arithmetic", "parameters", "share"),
        [*rows, (HTML("<b>together</b>"), "", total, "100.0%")],
    )
