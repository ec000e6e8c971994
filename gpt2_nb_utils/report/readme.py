"""The results of a run inside a README: the text between its AUTO markers, and not a byte beside it.

It knows Markdown and the blocks. It deliberately reads and writes bytes: a README's line ends, encoding mark
and everything outside the blocks are its author's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from gpt2_nb_utils import markdown
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.report.bench_table import bench_block
from gpt2_nb_utils.report.figures import figures
from gpt2_nb_utils.report.run_facts import MARKS, RunFacts, read_run
from gpt2_nb_utils.report.runs_table import runs_table
from gpt2_nb_utils.results.verdict import count
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import visible

_MARKER = re.compile(rb"<!--AUTO:([A-Z]+):(START|END)-->")
_LOG_LINES = (12, 8)  # how many of the first and of the last lines of a log are shown
_LONGEST_LINE = 1500
_SCREENSHOTS = {
    "page.png": "The page of the app as a visitor finds it",
    "generation.png": "The page after an example generation",
    "phone.png": "The same page on a phone",
}


def fill_readme(run: RunDirectory, readme: Path) -> bool:
    """Write the results of a run, finished or not, into the AUTO blocks of a README.

    Args:
        run: the run whose results are shown.
        readme: a file with `<!--AUTO:NAME:START-->` and `<!--AUTO:NAME:END-->` once each, for NAME in SUMMARY,
            PLOT, LOGS, METRICS, SAMPLES and REPRO. Three may be absent: RUNS, a table of the runs under out/reference beside the
            README (or of those beside this run), BENCH, the speeds in the folder `bench` there, and SPACE, the pictures in `space`.

    Returns:
        whether the file changed (a second call changes nothing).

    Raises:
        UserError: no such file or run, or a marker that is missing, doubled, reversed or inside another block;
            nothing is written then.
    """
    readme = Path(readme)
    try:
        if readme.exists() and not readme.is_file():
            raise UserError(
                f"README {readme} is no regular file: name one that is"
            )  # a pipe or a device might never end
        old = readme.read_bytes()
    except OSError as error:
        raise UserError(
            f"README {readme} cannot be read ({error.strerror}): name an existing file"
        ) from None
    places = _places(old, readme)
    facts = read_run(run)
    new, end = b"", 0
    for name, start, stop in places:
        line_end = _line_end(old, start)
        # Text of a corpus, a model or a log must not open or close a block: a space breaks the imitation.
        content = _BLOCKS[name](facts, readme)
        if facts.caveat and name not in _OPTIONAL:  # those are not about this run alone
            content = f"*{markdown.text(facts.caveat)}*\n\n{content}"
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
    markers = [(match[1].decode(), match[2].decode(), match) for match in _MARKER.finditer(content)]
    for name in _BLOCKS:
        for edge in ("START", "END"):
            found = sum(marker[:2] == (name, edge) for marker in markers)
            if found != 1 and not (
                name in _OPTIONAL and not any(marker[0] == name for marker in markers)
            ):
                how = f"stands there {found} times" if found else "is missing"
                raise UserError(
                    f"{readme}: marker <!--AUTO:{name}:{edge}--> {how}: have it exactly once"
                )
    places = []
    ours = [marker for marker in markers if marker[0] in _BLOCKS]
    for (name, edge, opening), (next_name, next_edge, closing) in zip(ours[::2], ours[1::2]):
        if edge == "END" and next_name == name:
            raise UserError(
                f"{readme}: marker <!--AUTO:{name}:END--> stands before its START: exchange the two"
            )
        wrong = (name, edge) if edge == "END" else (next_name, next_edge)
        if edge == "END" or (next_name, next_edge) != (name, "END"):
            raise UserError(
                f"{readme}: marker <!--AUTO:{wrong[0]}:{wrong[1]}--> stands inside another block: "
                f"close each block before the next one starts"
            )
        for other, other_edge, match in markers:
            if opening.end() <= match.start() < closing.start():
                raise UserError(
                    f"{readme}: marker <!--AUTO:{other}:{other_edge}--> stands inside the block {name}, "
                    f"which is replaced: move it out"
                )
        places.append((name, opening.end(), closing.start()))
    return places


def _line_end(content: bytes, start: int) -> bytes:
    """The line end that follows the marker, or that of the file."""
    following = content[start : start + 2]
    if following == b"\r\n" or (not following.startswith(b"\n") and b"\r\n" in content):
        return b"\r\n"
    return b"\n"


def _summary(facts: RunFacts, readme: Path) -> str:
    mark = "✓" if facts.reached else "✗"
    conditions = [
        f"{markdown.text(condition.asks)}: {MARKS[condition.state]} {condition.state}"
        for condition in facts.conditions
    ]
    return "\n".join(
        [
            f"**{mark} {markdown.text(facts.headline)}.** {markdown.text(facts.explanation)}",
            "",
            "Conditions: " + "; ".join(conditions) + ".",
            "",
            markdown.table(("", "this run"), facts.table()),
        ]
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
    return f"![{markdown.text(alt)}]({quote(Path(target).as_posix())})"


def _logs(facts: RunFacts, readme: Path) -> str:
    if not facts.run.log.exists():
        return "No log was written for this run."
    lines = visible(facts.run.log.read_text(encoding="utf-8", errors="replace")).splitlines()
    lines = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} …" for line in lines]
    first, last = _LOG_LINES
    if len(lines) > first + last:
        lines = [
            *lines[:first],
            f"… {len(lines) - first - last:,} more lines in logs/train.log …",
            *lines[-last:],
        ]
    return _fenced("\n".join(lines))


def _metrics(facts: RunFacts, readme: Path) -> str:
    if not facts.metrics:
        return "No metrics were written for this run."
    forms = {
        "step": ",.0f",
        "epoch": ".3f",
        "loss": ".4f",
        "train_loss": ".4f",
        "lr": ".2e",
        "grad_norm": ".2f",
        "tok_per_s": ",.0f",
    }
    heads = (
        "step",
        "epoch",
        "batch loss",
        "training loss",
        "learning rate",
        "gradient norm",
        "tokens/s",
    )
    rows = [
        [
            "–" if getattr(row, name) is None else format(getattr(row, name), form)
            for name, form in forms.items()
        ]
        for row in facts.metric_rows(12)
    ]
    return f"{markdown.table(heads, rows)}\n\nTraining loss: {markdown.text(facts.last_training_loss)}."


def _samples(facts: RunFacts, readme: Path) -> str:
    before, after = facts.before_and_after()
    if not before:
        return "No samples were written for this run."
    parts = []
    for samples in (before, after):
        for sample in samples[:1]:
            settings = ", ".join(
                f"{name} {value}" for name, value in sample.settings.items() if name != "prompts"
            )
            how = f" ({markdown.text(settings)})" if settings else ""
            parts += [
                f"Step {count(sample.step)}, prompt {_code(sample.prompt)}{how}:",
                _fenced(visible(sample.text)),
            ]
    return "\n\n".join(parts)


def _repro(facts: RunFacts, readme: Path) -> str:
    rows = [
        ("Seed", str(facts.summary.get("seed", "not recorded"))),
        ("Best training loss", facts.best_training_loss),
        ("Best batch loss", facts.best_batch_loss),
        *facts.machine,
    ]
    return "\n\n".join(
        [
            "The command of this run, exactly as it was given:",
            _fenced(visible(facts.command), "sh"),
            markdown.table(("", "this run"), rows),
        ]
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
    return reference if reference.is_dir() else facts.run.path.resolve().parent


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
