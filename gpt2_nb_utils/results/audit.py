"""The form of an audit: checks with what was found and what was expected, for a person and as `verify.json`.

It knows words and the file. It deliberately does not know how anything is checked (the modules `audit_…` do).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory

MARKS = {True: "✓", False: "✗", None: "–"}
"""The signs of a check; each always stands beside the word."""
WORDS = {True: "holds", False: "fails", None: "not checked"}


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
        return WORDS[self.ok]


@dataclass(frozen=True)
class Audit:
    """What an audit found: the content of `verify.json`.

    Attributes:
        made: date and time, UTC, ISO 8601.
        command: the command that made it.
        machine: what it was made on, with the device and the number format (`amp`).
        best_sha256: of the file best.pt.
        training_loss: measured anew over every prediction, nats per token; None where that could not be done.
        n_predictions: how many predictions that was.
        state: step and best training loss that the run had on record then, by which an older audit is told from one of
            these weights.
        checks: in the order in which they are shown.
        unclaimed: what was not asked, and why: the run claims nothing of it.
    """

    made: str
    command: str
    machine: dict[str, Any]
    best_sha256: str | None
    training_loss: float | None
    n_predictions: int | None
    state: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    unclaimed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check holds; one that could not be made does not."""
        measured = self.training_loss is not None and self.n_predictions is not None
        return measured and bool(self.checks) and all(check.ok is True for check in self.checks)

    @property
    def tally(self) -> str:
        """How many checks hold, fail and could not be made."""
        n, failed, unknown = (
            len(self.checks),
            *(sum(check.ok is state for check in self.checks) for state in (False, None)),
        )
        said = [
            f"{failed} of {n} checks fail" if failed else "",
            f"{unknown} of {n} could not be made" if unknown else "",
        ]
        return ", ".join(filter(None, said)) or f"all {n} checks hold"

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        if self.passed:
            return f"Proved: training loss {self.training_loss:.6f} over all {self.n_predictions:,} predictions, and {self.tally}."
        failed = [check.asks for check in self.checks if check.ok is False]
        return f"Not proved: {self.tally}{' (fails: ' + '; '.join(failed) + ')' if failed else ''}."

    def is_of(self, summary: dict[str, Any], best: Path) -> bool:
        """Whether the run still has the weights that were audited; a `best.pt` that is not there contradicts nothing, for not every copy of a run has it."""
        unmoved = bool(self.state) and self.state == audited_state(summary)
        return unmoved and (not best.exists() or file_sha256(best) == self.best_sha256)

    def write(self, run: RunDirectory) -> None:
        """Write `verify.json`, whole or not at all."""
        run.write_json(run.audit, {"passed": self.passed, "verdict": self.verdict, **asdict(self)})


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def audited_state(summary: dict[str, Any]) -> dict[str, Any]:
    """What tells one state of a run from another."""
    return {name: summary.get(name) for name in ("step", "best_train_loss", "best_train_loss_step")}


def read_audit(path: Path) -> Audit:
    """The audit in a `verify.json`. Its verdict follows from its checks, whatever else the file says.

    Raises:
        UserError: the file cannot be read, or is no audit.
    """
    try:
        return TypeAdapter(Audit).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):  # pydantic's errors are ValueErrors
        raise UserError(
            f"{path} is not a readable audit: make it again with `python -m gpt2_nb_utils verify "
            f"{path.parent}`, or remove it to do without"
        ) from None


def asks(
    what: str, expected: str
) -> Callable[[Callable[..., tuple[bool, str]]], Callable[..., Check]]:
    """Make a check of a function that says whether something holds and what it found.

    The function may raise CannotCheck. Records that were edited can hold anything, so a value of the wrong type is a
    check that fails, never a traceback.
    """

    def decorate(find: Callable[..., tuple[bool, str]]) -> Callable[..., Check]:
        @wraps(find)
        def check(*evidence: Any) -> Check:
            try:
                ok, found = find(*evidence)
            except CannotCheck as reason:
                return Check(what, None, _one_line(str(reason)), expected)
            except (
                TypeError,
                ValueError,
                KeyError,
                AttributeError,
                IndexError,
                OverflowError,
                RuntimeError,
            ) as error:
                ok, found = (
                    False,
                    f"a recorded value cannot be right ({type(error).__name__}: {error})",
                )
            return Check(what, bool(ok), _one_line(found), expected)

        check.asks = what
        return check

    return decorate


def _one_line(text: str) -> str:
    """What may go to a terminal: what a forged record holds may not."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def problems_or(problems: list[str], fine: str, at_most: int = 3) -> tuple[bool, str]:
    """A check that holds where there is no problem.

    Args:
        problems: what is wrong, in words.
        fine: what to say where nothing is.
        at_most: how many problems are named; the others are counted.
    """
    if not problems:
        return True, fine
    more = f"; and {len(problems) - at_most:,} more" if len(problems) > at_most else ""
    return False, "; ".join(problems[:at_most]) + more


def audit_table(checks: tuple[Check, ...]) -> str:
    """The checks as lines of text: sign, word and question, and below it what was found (and expected, where it fails)."""
    lines = []
    for check in checks:
        lines.append(f"{check.mark} {check.word:<11} {check.asks}")
        lines.append(f"{'':14}{check.found}")
        if check.ok is not True:
            lines.append(f"{'':14}expected: {check.expected}")
    return "\n".join(lines)
