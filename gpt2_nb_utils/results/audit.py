"""The form of an audit: checks with what was found and what was expected, for a person and as
`verify.json`.

How anything is checked is in `audit_weights`, `audit_records`, `audit_outputs` and `replay`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.machine import environment
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import Summary
from gpt2_nb_utils.wording import MARKS

_WORDS = {True: "holds", False: "fails", None: "not checked"}


class CannotCheck(Exception):
    """What a check needs is not there; says what."""


@dataclass(frozen=True)
class Check:
    """One thing that an audit asks.

    Attributes:
        asks: what it asks for.
        ok: whether it holds; None where that could not be checked, which never counts as holding.
        found: what the audit found.
        expected: what it should have found.
    """

    asks: str
    ok: bool | None
    found: str
    expected: str

    @property
    def mark(self) -> str:
        """✓, ✗ or –."""
        return MARKS[self.ok]

    @property
    def word(self) -> str:
        """The mark in a word."""
        return _WORDS[self.ok]


@dataclass(frozen=True)
class Replay:
    """The first steps of a run, trained again from its seed, and how far the losses on record
    differ.

    Attributes:
        check: the outcome.
        made: date and time, UTC, ISO 8601.
        machine: what it was made on, with the device and the number format (`amp`).
        sources_sha256: of the package that made it.
        steps: steps that were trained again.
        largest_difference: relative; None where no loss could be compared.
        at_step: where that was.
        bound: that of the last step, relative; 0 where the digits of the records must be the same.
    """

    check: Check
    made: str
    machine: dict[str, Any]
    sources_sha256: str
    steps: int
    largest_difference: float | None
    at_step: int
    bound: float


@dataclass(frozen=True)
class Audit:
    """What an audit found: the content of `verify.json`.

    Attributes:
        made: date and time, UTC, ISO 8601; empty where only a replay was made.
        command: the command that made it.
        machine: what it was made on, with the device and the number format (`amp`).
        best_sha256: of the file best.pt.
        training_loss: measured over every prediction, nats per token; None where that could not be
            done.
        n_predictions: how many predictions that was.
        state: step and best training loss that the run had on record then, by which an older audit
            is distinguished from one of these weights.
        checks: in the order in which they are shown.
        sources_sha256: of the package that made it.
        replay: the replay of this state of the run, where one was made.
        records_sha256: of the records that the run had then (`records_sha256`).
    """

    made: str
    command: str
    machine: dict[str, Any]
    best_sha256: str | None
    training_loss: float | None
    n_predictions: int | None
    state: dict[str, Any]
    checks: tuple[Check, ...] = ()
    sources_sha256: str | None = None
    replay: Replay | None = None
    records_sha256: str | None = None

    @property
    def every_check(self) -> tuple[Check, ...]:
        """The checks, and the replay where there is one."""
        return (*self.checks, *([self.replay.check] if self.replay else []))

    @property
    def passed(self) -> bool:
        """Whether every check holds; one that were not possible does not."""
        measured = self.training_loss is not None and self.n_predictions is not None
        return (
            measured and bool(self.checks) and all(check.ok is True for check in self.every_check)
        )

    @property
    def tally(self) -> str:
        """How many checks hold, fail and were not possible."""
        outcomes = [check.ok for check in self.every_check]
        counted = {"checks fail": outcomes.count(False), "were not possible": outcomes.count(None)}
        said = [f"{n} of {len(outcomes)} {what}" for what, n in counted.items() if n]
        return ", ".join(said) or f"all {len(outcomes)} checks hold"

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        if self.passed:
            return (
                f"Proved: training loss {self.training_loss:.6f} over all "
                f"{self.n_predictions:,} predictions, and {self.tally}."
            )
        if not self.checks and self.replay is not None:
            return f"Only a replay was made, which {self.replay.check.word}."
        failed = [check.asks for check in self.every_check if check.ok is False]
        return f"Not proved: {self.tally}{' (fails: ' + '; '.join(failed) + ')' if failed else ''}."

    def is_of(self, summary: Summary, directory: RunDirectory) -> bool:
        """Whether the run still has the records and the weights that were audited.

        A `best.pt` that is not there contradicts nothing: not every copy of a run has it.
        """
        best = directory.best
        return (
            self.state == audited_state(summary)
            and self.records_sha256 == records_sha256(directory)
            and (not self.checks or not best.exists() or file_sha256(best) == self.best_sha256)
        )

    def write(self, run: RunDirectory) -> None:
        """Write `verify.json`, whole or not at all."""
        run.write_json(run.audit, {"passed": self.passed, "verdict": self.verdict, **asdict(self)})


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():  # a pipe or a device would never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def records_sha256(directory: RunDirectory) -> str | None:
    """The sha256 of what a run recorded of its steps: its events, or the metrics of an earlier
    version."""
    for path in (directory.events, directory.metrics):
        if path.is_file():
            return file_sha256(path)
    return None


def machine_of(precision: Precision) -> dict[str, Any]:
    """What an audit is made on, with the `time`."""
    return {**environment(), "device": precision.device_name, "amp": precision.amp}


def audited_state(summary: Summary) -> dict[str, Any]:
    """What tells one state of a run from another."""
    return summary.model_dump(include={"step", "best_train_loss", "best_train_loss_step"})


def read_audit(path: Path) -> Audit:
    """The audit in a `verify.json`. Its verdict follows from its checks, whatever else the file
    says.

    Raises:
        UserError: the file cannot be read, or is no audit.
    """
    try:
        return TypeAdapter(Audit).validate_json(read_regular(path), strict=True)
    except (OSError, ValueError):  # pydantic's errors are ValueErrors
        raise UserError(
            f"{path} is not a readable audit: make it again with `python -m gpt2_nb_utils verify "
            f"{path.parent}`, or remove it to do without"
        ) from None


def asks(
    what: str, expected: str
) -> Callable[[Callable[..., tuple[bool, str]]], Callable[..., Check]]:
    """Make a check of a function that says whether something holds and what it found.

    The function may raise CannotCheck. Records that were edited can hold anything, so a value of
    the wrong type is a check that fails, never a traceback.
    """

    def decorate(find: Callable[..., tuple[bool, str]]) -> Callable[..., Check]:
        @wraps(find)
        def check(*evidence: Any) -> Check:
            try:
                ok, found = find(*evidence)
            except CannotCheck as reason:
                return Check(what, None, one_line(str(reason)), expected)
            except Exception as error:
                ok = False
                found = f"a recorded value cannot be right ({type(error).__name__}: {error})"
            return Check(what, bool(ok), one_line(found), expected)

        check.asks = what
        return check

    return decorate


def problems_or(problems: list[str], fine: str) -> tuple[bool, str]:
    """A check that holds where there is no problem.

    Args:
        problems: what is wrong, in words.
        fine: what to say where nothing is.
    """
    if not problems:
        return True, fine
    more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
    return False, "; ".join(problems[:3]) + more


def audit_table(checks: tuple[Check, ...]) -> str:
    """The checks as lines of text: sign, word and question, and below it what was found.

    Where a check does not hold, what was expected follows.
    """
    lines = []
    for check in checks:
        lines.append(f"{check.mark} {check.word:<11} {check.asks}")
        lines.append(f"{'':14}{check.found}")
        if check.ok is not True:
            lines.append(f"{'':14}expected: {check.expected}")
    return "\n".join(lines)
