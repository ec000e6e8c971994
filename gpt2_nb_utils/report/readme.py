"""The results of a run inside a README: the text between its AUTO markers, and not a byte beside it.

It reads and writes bytes: a README's line ends, encoding mark and everything outside the blocks are
its author's.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import quote

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular, write_atomically
from gpt2_nb_utils.report.figures import figures, metrics_table
from gpt2_nb_utils.report.html_page import TEMPLATES
from gpt2_nb_utils.results.facts import RunFacts, read_facts
from gpt2_nb_utils.results.runs_table import runs_table
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.space.rendering import environment
from gpt2_nb_utils.text import markdown_text, visible

_MARKER = re.compile(rb"<!--AUTO:([A-Z]+):(?:START|END)-->")
_BLOCK = re.compile(  # the inside holds no other marker
    rb"(?P<start><!--AUTO:(?P<name>[A-Z]+):START-->)"
    rb"(?:(?!<!--AUTO:[A-Z]+:(?:START|END)-->).)*"
    rb"(?P<end><!--AUTO:(?P=name):END-->)",
    re.DOTALL,
)
_OPTIONAL = {"RUNS"}
_LOG_LINES = (4, 2)  # how many of the first and of the last lines of a log are shown
_LONGEST_LINE = 100


def fill_readme(run: RunDirectory, readme: Path) -> bool:
    """Write the results of a run, finished or not, into the AUTO blocks of a README.

    Args:
        run: the run whose results are shown.
        readme: a file with `<!--AUTO:NAME:START-->` and `<!--AUTO:NAME:END-->` once each, for NAME
            in SUMMARY, PLOT, LOGS, METRICS, SAMPLES and REPRO. RUNS may be absent: a table of the
            runs under out/reference beside the README, or of those beside this run.

    Returns:
        whether the file changed (a second call changes nothing).

    Raises:
        UserError: no such file or run, or a marker that is missing, doubled, reversed or inside
            another block; nothing is written then.
    """
    readme = Path(readme)
    try:
        old = read_regular(readme)
    except OSError as error:
        raise UserError(
            f"README {readme} cannot be read ({error.strerror}): name an existing file"
        ) from None
    _check_markers(old, readme)
    facts = read_facts(run)
    context = _TEMPLATE.new_context(
        {
            "facts": facts,
            "picture": partial(_picture, readme),
            "reference": _reference(facts, readme),
        }
    )
    line_end = b"\r\n" if b"\r\n" in old else b"\n"

    def filled(block: re.Match[bytes]) -> bytes:
        name = block["name"].decode()
        if name not in _BLOCKS:
            return block[0]
        content = "".join(_BLOCKS[name](context)).strip("\n")
        if facts.caveat and name not in _OPTIONAL:  # that is not about this run alone
            content = f"*{markdown_text(facts.caveat)}*\n\n{content}"
        # Text of a corpus, a model or a log must not open or close a block.
        content = content.replace("<!--AUTO:", "<!-- AUTO:")
        inside = f"\n{content}\n".encode("utf-8", errors="replace").replace(b"\n", line_end)
        return block["start"] + inside + block["end"]

    new = _BLOCK.sub(filled, old)
    if new == old:
        return False
    place = readme.resolve()
    write_atomically(place, new, mode=place.stat().st_mode & 0o7777)
    return True


def _check_markers(content: bytes, readme: Path) -> None:
    whole = [block["name"] for block in _BLOCK.finditer(content)]
    stray = _MARKER.findall(_BLOCK.sub(b"\n", content))
    for name in _BLOCKS:
        n = whole.count(name.encode())
        if name.encode() in stray or n > 1 or (n == 0 and name not in _OPTIONAL):
            raise UserError(
                f"{readme}: have <!--AUTO:{name}:START--> and after it <!--AUTO:{name}:END--> "
                f"exactly once each, and no other marker between them"
            )


def _picture(readme: Path, path: Path, alt: str) -> str:
    try:
        target = os.path.relpath(path.resolve(), readme.resolve().parent)
    except ValueError:
        raise UserError(
            f"{path} and {readme} are on different drives: keep the run beside the README"
        ) from None
    return f"![{markdown_text(alt)}]({quote(Path(target).as_posix())})"


def _log_excerpt(facts: RunFacts) -> str:
    log = facts.record.directory.log
    text = read_regular(log).decode("utf-8", errors="replace") if log.is_file() else ""
    lines = [_cut(line, _LONGEST_LINE) for line in visible(text).splitlines()]
    first, last = _LOG_LINES
    if left_out := len(lines[first:-last]):
        note = f"… {left_out:,} more lines in logs/train.log …"
        lines = [*lines[:first], note, *lines[-last:]]
    return "\n".join(lines)


def _reference(facts: RunFacts, readme: Path) -> Path:
    """The folder of the runs that a README shows: the committed ones, or those beside this run."""
    reference = readme.resolve().parent / "out" / "reference"
    return reference if reference.is_dir() else facts.record.directory.path.resolve().parent


def _inline_code(text: str) -> str:
    """The beginning of a text as one line of code inside another text."""
    line = " ".join(visible(text).split()).replace("`", "'")
    return f"`{_cut(line, 80)}`"


def _cut(line: str, longest: int) -> str:
    return line if len(line) <= longest else f"{line[:longest]}…"


_ENVIRONMENT = environment(TEMPLATES)
_ENVIRONMENT.filters["inline_code"] = _inline_code
_ENVIRONMENT.globals |= {
    "figures": figures,
    "log_excerpt": _log_excerpt,
    "metrics_table": metrics_table,
    "runs_table": runs_table,
}
_TEMPLATE = _ENVIRONMENT.get_template("readme.md.j2")
_BLOCKS = _TEMPLATE.blocks
