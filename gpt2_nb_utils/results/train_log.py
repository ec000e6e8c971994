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
_DEVICE = re.compile(r"device (.+)  amp (\S+)  torch (\S+)")
_CORPUS = re.compile(r"corpus .*: [\d,]+ characters, sha256 ([0-9a-f]+)…, .*")
_MODEL = re.compile(r"model ([\d,]+) parameters, from (.*)")
_STEP = re.compile(
    rf"step (\d+)/\d+  loss {_NUMBER}  lr {_NUMBER}(?:  tok/s {_NUMBER})?  grad_norm {_NUMBER}(?:  .*)?"
)
_MEASURED = re.compile(
    rf"step (\d+)/\d+  training loss {_NUMBER} \((?:estimated on (\d+) windows|whole .*)\)  target .*"
)
_ENDED = re.compile(r"(\w+) at step (\d+), ([\d:]+) of training, ([\d:]+) with .*")

_SETTING = re.compile(
    r"""  (\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)(?=  |$)"""
)  # a quoted value may hold two blanks, and what looks like another setting


@dataclass(frozen=True)
class LoggedStep:
    """What the log says of one step: loss (4 decimals), learning rate, gradient norm, and tokens per second where it could tell."""

    loss: float
    lr: float
    grad_norm: float
    tok_per_s: float | None = None


@dataclass(frozen=True)
class LoggedEnd:
    """The last line of a process that was not killed: its status, its step, and the run's time up to then as it writes it."""

    status: str
    step: int
    training: str
    wall: str


@dataclass
class Section:
    """What one process wrote.

    Attributes:
        resumed_at: the step from which it went on; None for a new run.
        origin: where its weights came from, in the log's words.
        n_params: parameters, as it counted them.
        machine: device, number format and version of torch.
        sha256: the start of that of its text.
        arguments: the line with its settings.
        steps: the steps that it logged.
        measured: training losses by step, (nats per token, windows: a number or "all"); the last one of each step.
        measurements: all of them in order, (step, windows): an estimate near the target is followed by a whole one.
        last: the last step that it speaks of.
        end: how it ended; None where it was killed.
    """

    resumed_at: int | None
    origin: str = ""
    n_params: int | None = None
    machine: tuple[str, str, str] | None = None
    sha256: str = ""
    arguments: str = ""
    steps: dict[int, LoggedStep] = field(default_factory=dict)
    measured: dict[int, tuple[float, int | str]] = field(default_factory=dict)
    measurements: list[tuple[int, int | str]] = field(default_factory=list)
    last: int = 0
    end: LoggedEnd | None = None

    def setting(self, name: str) -> str | None:
        """The value of a setting, as Python writes it; None where the line does not name it."""
        return dict(_SETTING.findall(self.arguments)).get(name)


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
    elif match := _DEVICE.fullmatch(text):
        section.machine = match.groups()
    elif match := _CORPUS.fullmatch(text):
        section.sha256 = match[1]
    elif match := _MODEL.fullmatch(text):
        section.n_params, section.origin = int(match[1].replace(",", "")), match[2]
    elif match := _STEP.fullmatch(text):
        step, loss, lr, speed, grad_norm = match.groups()
        section.steps[int(step)] = LoggedStep(
            float(loss), float(lr), float(grad_norm), float(speed) if speed else None
        )
        section.last = max(section.last, int(step))
    elif match := _MEASURED.fullmatch(text):
        step, loss, windows = match.groups()
        section.measured[int(step)] = (float(loss), int(windows) if windows else "all")
        section.measurements.append((int(step), section.measured[int(step)][1]))
        section.last = max(section.last, int(step))
    elif match := _ENDED.fullmatch(text):
        section.end = LoggedEnd(match[1], int(match[2]), match[3], match[4])
        section.last = max(section.last, section.end.step)


def surviving_measurements(sections: list[Section]) -> list[tuple[int, int | str]]:
    """All measurements that still count, in order, (step, windows)."""
    kept: list[tuple[int, int | str]] = []
    for section in sections:
        kept = [
            each
            for each in kept
            if section.resumed_at is not None and each[0] <= section.resumed_at
        ] + section.measurements
    return kept


def surviving(
    sections: list[Section],
) -> tuple[dict[int, LoggedStep], dict[int, tuple[float, int | str]]]:
    """The steps and measurements that still count: a resumed run repeats what came after its checkpoint."""
    steps: dict[int, LoggedStep] = {}
    measured: dict[int, tuple[float, int | str]] = {}
    for section in sections:
        kept = -1 if section.resumed_at is None else section.resumed_at
        steps = {step: said for step, said in steps.items() if step <= kept} | section.steps
        measured = {
            step: said for step, said in measured.items() if step <= kept
        } | section.measured
    return steps, measured
