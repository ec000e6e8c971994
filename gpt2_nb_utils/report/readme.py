"""The results of a run inside a README: the text between its AUTO markers, and not a byte beside it.

It reads and writes bytes: a README's line ends, encoding mark and everything outside the blocks are
its author's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular, write_atomically
from gpt2_nb_utils.report.bench_table import bench_block
from gpt2_nb_utils.report.figures import figures
from gpt2_nb_utils.results.facts import RunFacts, read_facts
from gpt2_nb_utils.results.runs_table import runs_table
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import markdown_table, markdown_text, visible
from gpt2_nb_utils.wording import MARKS, count

_MARKER = re.compile(rb"<!--AUTO:([A-Z]+):(START|END)-->")
_LOG_LINES = (12, 8)  # how many of the first and of the last lines of a log are shown
_LONGEST_LINE = 1500
_METRICS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".3f"),
    "batch loss": ("loss", ".4f"),
    "training loss": ("train_loss", ".4f"),
    "learning rate": ("lr", ".2e"),
    "gradient norm": ("grad_norm", ".2f"),
    "tokens/s": ("tok_per_s", ",.0f"),
}
"""Columns: what each shows of a row, and in which form."""
_SCREENSHOTS = {
    "page.png": "The page of the app as a visitor finds it",
    "generation.png": "The page after an example generation",
    "phone.png": "The same page on a phone",
}


def fill_readme(run: RunDirectory, readme: Path) -> bool:
    """Write the results of a run, finished or not, into the AUTO blocks of a README.

    Args:
        run: the run whose results are shown.
        readme: a file with `<!--AUTO:NAME:START-->` and `<!--AUTO:NAME:END-->` once each, for NAME
            in SUMMARY, PLOT, LOGS, METRICS, SAMPLES and REPRO. Three may be absent: RUNS, a table
            of the runs under out/reference beside the README (or of those beside this run), BENCH,
            the speeds in the folder `bench` there, and SPACE, the pictures in `space`.

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
    places = _places(old, readme)
    facts = read_facts(run)
    new, end = b"", 0
    for name, start, stop in places:
        line_end = _line_end(old, start)
        # Text of a corpus, a model or a log must not open or close a block: a space breaks the imitation.
        content = _BLOCKS[name](facts, readme)
        if facts.caveat and name not in _OPTIONAL:  # those are not about this run alone
            content = f"*{markdown_text(facts.caveat)}*\n\n{content}"
        content = content.replace("<!--AUTO:", "<!-- AUTO:").strip("\n")
        inside = f"\n{content}\n".encode("utf-8", errors="replace").replace(b"\n", line_end)
        new, end = new + old[end:start] + inside, stop
    new += old[end:]
    if new == old:
        return False
    place = readme.resolve()
    write_atomically(place, new, mode=place.stat().st_mode & 0o7777)
    return True


def _places(content: bytes, readme: Path) -> list[tuple[str, int, int]]:
    """(name, first byte inside, first byte after) of each block, in the order of the file."""

    def refused(name: str, edge: str, why: str) -> UserError:
        return UserError(f"{readme}: marker <!--AUTO:{name}:{edge}--> {why}")

    markers = [(match[1].decode(), match[2].decode(), match) for match in _MARKER.finditer(content)]
    names = [marker[:2] for marker in markers]
    for name in _BLOCKS:
        for edge in ("START", "END"):
            found, absent = (
                names.count((name, edge)),
                not {(name, "START"), (name, "END")} & {*names},
            )
            if found != 1 and not (name in _OPTIONAL and absent):
                how = f"stands there {found} times" if found else "is missing"
                raise refused(name, edge, f"{how}: have it exactly once")
    places, opened, start = [], "", 0
    for name, edge, match in markers:
        if not opened:
            if name in _BLOCKS and edge == "END":
                raise refused(name, edge, "stands before its START: exchange the two")
            opened, start = name if name in _BLOCKS else "", match.end()
        elif (name, edge) == (opened, "END"):
            places.append((name, start, match.start()))
            opened = ""
        elif name in _BLOCKS:
            raise refused(
                name,
                edge,
                "stands inside another block: close each block before the next one starts",
            )
        else:
            raise refused(
                name, edge, f"stands inside the block {opened}, which is replaced: move it out"
            )
    return places


def _line_end(content: bytes, start: int) -> bytes:
    """The line end that follows the marker, or that of the file."""
    following = content[start : start + 2]
    if following == b"\r\n" or (not following.startswith(b"\n") and b"\r\n" in content):
        return b"\r\n"
    return b"\n"


def _summary(facts: RunFacts, readme: Path) -> str:
    conditions = "; ".join(
        f"{markdown_text(condition.asks)}: {MARKS[condition.state]} {condition.state}"
        for condition in facts.conditions
    )
    return (
        f"**{MARKS[facts.reached]} {markdown_text(facts.headline)}.** {markdown_text(facts.explanation)}\n\n"
        f"Conditions: {conditions}.\n\n{markdown_table(('', 'this run'), facts.table())}"
    )


def _plot(facts: RunFacts, readme: Path) -> str:
    main = next((figure for figure in figures(facts) if figure.is_main), None)
    if main is None:
        return "No loss figure was drawn for this run."
    return _picture(main.path, main.alt, readme)


def _picture(path: Path, alt: str, readme: Path) -> str:
    try:
        target = os.path.relpath(path.resolve(), readme.resolve().parent)
    except ValueError:
        raise UserError(
            f"{path} and {readme} are on different drives: keep the run beside the README"
        ) from None
    return f"![{markdown_text(alt)}]({quote(Path(target).as_posix())})"


def _logs(facts: RunFacts, readme: Path) -> str:
    log = facts.record.directory.log
    if not log.is_file():
        return "No log was written for this run."
    lines = visible(read_regular(log).decode("utf-8", errors="replace")).splitlines()
    lines = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} …" for line in lines]
    first, last = _LOG_LINES
    if len(lines) > first + last:
        left_out = f"… {len(lines) - first - last:,} more lines in logs/train.log …"
        lines = [*lines[:first], left_out, *lines[-last:]]
    return _fenced("\n".join(lines))


def _metrics(facts: RunFacts, readme: Path) -> str:
    rows = [
        [
            "–" if getattr(row, name) is None else format(getattr(row, name), form)
            for name, form in _METRICS.values()
        ]
        for row in facts.metric_rows(12)
    ]
    if not rows:
        return "No metrics were written for this run."
    loss = markdown_text(facts.last_training_loss)
    return f"{markdown_table(tuple(_METRICS), rows)}\n\nTraining loss: {loss}."


def _samples(facts: RunFacts, readme: Path) -> str:
    parts = []
    for samples in facts.before_and_after():
        for sample in samples[:1]:
            settings = ", ".join(
                f"{name} {value}" for name, value in sample.settings.items() if name != "prompts"
            )
            how = f" ({markdown_text(settings)})" if settings else ""
            parts += [
                f"Step {count(sample.step)}, prompt {_code(sample.prompt)}{how}:",
                _fenced(visible(sample.text)),
            ]
    return "\n\n".join(parts) or "No samples were written for this run."


def _repro(facts: RunFacts, readme: Path) -> str:
    rows = [
        ("Seed", facts.seed),
        ("Best training loss", facts.best_training_loss),
        ("Best batch loss", facts.best_batch_loss),
        *facts.machine,
    ]
    return (
        f"The command of this run, exactly as it was given:\n\n{_fenced(visible(facts.command), 'sh')}\n\n"
        f"{markdown_table(('', 'this run'), rows)}"
    )


def _runs(facts: RunFacts, readme: Path) -> str:
    return runs_table(_reference(facts, readme))


def _bench(facts: RunFacts, readme: Path) -> str:
    return bench_block(_reference(facts, readme) / "bench")


def _space(facts: RunFacts, readme: Path) -> str:
    folder = _reference(facts, readme) / "space"
    shown = [
        _picture(folder / name, alt, readme)
        for name, alt in _SCREENSHOTS.items()
        if (folder / name).is_file()
    ]
    return "\n\n".join(shown) or "No pictures of the app were taken yet."


def _reference(facts: RunFacts, readme: Path) -> Path:
    """The folder of the runs that a README shows: the committed ones, or those beside this run."""
    reference = readme.resolve().parent / "out" / "reference"
    return reference if reference.is_dir() else facts.record.directory.path.resolve().parent


_BLOCKS: dict[str, Callable[[RunFacts, Path], str]] = {
    "SUMMARY": _summary,
    "PLOT": _plot,
    "LOGS": _logs,
    "METRICS": _metrics,
    "SAMPLES": _samples,
    "REPRO": _repro,
    "RUNS": _runs,
    "BENCH": _bench,
    "SPACE": _space,
}
_OPTIONAL = {"RUNS", "BENCH", "SPACE"}


def _code(value: str) -> str:
    """One line of code inside a text: long and hostile ones too."""
    line = " ".join(visible(value).split())
    line = line if len(line) <= 80 else f"{line[:80]}…"
    ticks = "`" * (_longest_run(line) + 1)
    return f"{ticks} {line} {ticks}" if len(ticks) > 1 or not line else f"`{line}`"


def _fenced(text: str, language: str = "text") -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
