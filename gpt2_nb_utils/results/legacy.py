"""The records of runs that have no `logs/events.jsonl`: tables and samples, read back as far as
they go.

    === step 15 · prompt 1 of 3 · temperature 0.8 · top_k 40 ===
    PROMPT: "First Citizen:"
    SAMPLE:
    | First Citizen:
    | Before we proceed any further, hear me speak.

Every line of a sample carries a prefix, so that no text can imitate a header. A line with
characters that a terminal or an editor would act on is a JSON string after `|= ` instead.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.training.records import RecallRow, Row, Sample

_SAMPLE = re.compile(
    r"=== step (\d{1,15}) · prompt (\d{1,15})(?: of (\d{1,15}))?((?: · [a-z_]\w* \S+)*) ===\n"
    r"PROMPT: (.*)\n"
    r"SAMPLE:\n"
    r"(\|(?:=? .*)?(?:\n\|(?:=? .*)?)*)"  # an editor may have cut the space after a bar
)
_Line = TypeVar("_Line")
_Cells = dict[str, str]


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `train_metrics.csv`, without lines that were cut short or have no step."""
    return _read_table(path, Row, lambda cells: cells)


def read_recall(path: Path) -> list[RecallRow]:
    """The rows of a `recall.csv`, without lines that were cut short or cannot be right."""
    rows = _read_table(
        path, RecallRow, lambda cells: {"step": cells.pop("step"), "recalled": cells}
    )
    return [row for row in rows if 0 <= row.recalled.verbatim <= row.recalled.openings > 0]


def _read_table(path: Path, kind: type[_Line], content: Callable[[_Cells], Any]) -> list[_Line]:
    rows, line = [], TypeAdapter(kind)
    for cells in csv.DictReader(io.StringIO(read_regular(path).decode("utf-8"), newline="")):
        with contextlib.suppress(ValueError, KeyError):
            filled = {name: cell for name, cell in cells.items() if cell}
            rows.append(line.validate_python(content(filled)))
    return rows


def read_samples(path: Path) -> list[Sample]:
    """All samples of a file, in its order, without a block that a killed run left unfinished.

    Raises:
        OSError, ValueError, TypeError: it cannot be read, is not UTF-8, or holds something else.
    """
    content = read_regular(path).replace(b"\r\n", b"\n")
    # A killed run may have left half a character, or half a block, at the end.
    whole = codecs.getincrementaldecoder("utf-8")().decode(content).rpartition("\n\n")[0]
    return [_sample(block.strip("\n")) for block in whole.split("\n\n") if block.strip("\n")]


def _sample(block: str) -> Sample:
    match = _SAMPLE.fullmatch(block)
    if match is None:
        raise ValueError(f"no sample: {block[:80]}")
    step, index, prompts, others, prompt, lines = match.groups()
    settings: dict[str, Any] = {"prompts": int(prompts)} if prompts else {}
    for item in others.split(" · ")[1:]:
        name, value = item.split(" ")
        settings[name] = value if value.isalpha() else json.loads(value)
    said = [
        json.loads(line[3:]) if line.startswith("|= ") else line[2:] for line in lines.split("\n")
    ]
    return TypeAdapter(Sample).validate_python(
        {
            "step": step,
            "prompt_index": index,
            "prompt": json.loads(prompt),
            "text": "\n".join(said),
            "settings": settings,
        }
    )
