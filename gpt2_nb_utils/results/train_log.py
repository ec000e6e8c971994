"""`train.log` read back: one section for each process that trained, with the steps and measurements that it wrote.

It knows the lines that `training.recorder` writes. It deliberately judges nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")
_NUMBER = r"([-+.\w]+)"
_NEW = re.compile(r"new run in ")
_RESUMED = re.compile(r"resumed at step (\d+) in ")
_MODEL = re.compile(r"model ([\d,]+) parameters, from (.*)")
_STEP = re.compile(rf"step (\d+)/\d+  loss {_NUMBER}  lr {_NUMBER}(?:  tok/s {_NUMBER})?  grad_norm {_NUMBER}(?:  .*)?")
_MEASURED = re.compile(rf"step (\d+)/\d+  training loss {_NUMBER} \((?:estimated on (\d+) windows|whole .*)\)  target .*")
_ENDED = re.compile(r"\w+ at step (\d+), .* of training, .*")


@dataclass(frozen=True)
class LoggedStep:
    """What the log says of one step: loss (4 decimals), learning rate and gradient norm."""

    loss: float
    lr: float
    grad_norm: float


@dataclass
class Section:
    """What one process wrote.

    Attributes:
        resumed_at: the step from which it went on; None for a new run.
        origin: where its weights came from, in the log's words.
        arguments: the line with its settings.
        steps: the steps that it logged.
        measured: training losses by step, (nats per token, windows: a number or "all"); the last one of each step.
        last: the last step that it speaks of.
    """

    resumed_at: int | None
    origin: str = ""
    arguments: str = ""
    steps: dict[int, LoggedStep] = field(default_factory=dict)
    measured: dict[int, tuple[float, int | str]] = field(default_factory=dict)
    last: int = 0

    def setting(self, name: str) -> str | None:
        """The value of a setting, as Python writes it; None where the line does not name it."""
        match = re.search(rf"  {name}=(\S+)(?=  |$)", self.arguments)
        return match[1] if match else None


def read_log(path: Path) -> list[Section]:
    """The sections of a `train.log`, in order; lines before the first one, and lines of other kinds, are left out.

    Raises:
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    sections: list[Section] = []
    # Split at the time of day, not at line ends: a power cut may have left a line without its end.
    for text in map(str.strip, _STAMP.split(path.read_text(encoding="utf-8"))):
        if _NEW.match(text):
            sections.append(Section(None))
        elif match := _RESUMED.match(text):
            sections.append(Section(int(match[1]), last=int(match[1])))
        elif sections:
            _take_in(sections[-1], text)
    return sections


def _take_in(section: Section, text: str) -> None:
    if text.startswith("arguments "):
        section.arguments = " " + text.removeprefix("arguments")
    elif match := _MODEL.fullmatch(text):
        section.origin = match[2]
    elif match := _STEP.fullmatch(text):
        step, loss, lr, _, grad_norm = match.groups()
        section.steps[int(step)] = LoggedStep(float(loss), float(lr), float(grad_norm))
        section.last = max(section.last, int(step))
    elif match := _MEASURED.fullmatch(text):
        step, loss, windows = match.groups()
        section.measured[int(step)] = (float(loss), int(windows) if windows else "all")
        section.last = max(section.last, int(step))
    elif match := _ENDED.fullmatch(text):
        section.last = max(section.last, int(match[1]))


def surviving(sections: list[Section]) -> tuple[dict[int, LoggedStep], dict[int, tuple[float, int | str]]]:
    """The steps and measurements that still count: a resumed run repeats what came after its checkpoint."""
    steps: dict[int, LoggedStep] = {}
    measured: dict[int, tuple[float, int | str]] = {}
    for section in sections:
        kept = -1 if section.resumed_at is None else section.resumed_at
        steps = {step: said for step, said in steps.items() if step <= kept} | section.steps
        measured = {step: said for step, said in measured.items() if step <= kept} | section.measured
    return steps, measured
