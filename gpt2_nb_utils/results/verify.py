"""The command `verify`: an audit of a run that trusts nothing recorded, printed as a table and kept
as `verify.json`.

What each check looks at is in `audit_weights`, `audit_records` and `audit_outputs`; a replay is
made by `replay`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.machine import command_line, sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.results import audit_outputs, audit_records, audit_weights
from gpt2_nb_utils.results.audit import (
    Audit,
    Check,
    audit_table,
    audited_state,
    file_sha256,
    machine_of,
    read_audit,
    records_sha256,
)
from gpt2_nb_utils.results.evidence import Evidence, losses_of
from gpt2_nb_utils.results.record import Record, read_record
from gpt2_nb_utils.results.replay import replay
from gpt2_nb_utils.results.token_losses import keep
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision, check_device

_Value = TypeVar("_Value")
CHECKS = (
    audit_weights.loads,
    audit_weights.architecture,
    audit_weights.parameters,
    audit_weights.course_text,
    audit_weights.whole_text,
    audit_weights.below_target,
    audit_weights.recorded_loss,
    audit_records.random_start,
    audit_weights.first_losses,
    audit_weights.from_seed,
    audit_records.arithmetic,
    audit_records.schedule,
    audit_records.chain,
    audit_records.records,
    audit_records.best_belongs,
    audit_outputs.samples,
    audit_outputs.recall,
    audit_records.ended,
)
"""In the order in which a grader asks: the weights, the text, the loss, from scratch, the
records."""
RECORD_CHECKS = (
    audit_records.random_start,
    audit_records.arithmetic,
    audit_records.schedule,
    audit_records.chain,
    audit_records.records,
)
"""Those that need no weights: they are made whenever a report is built."""
ANY_VERSION = 2
"""So many of them, the first ones, can be made of runs of earlier versions too: without these
nothing holds."""
QUICK_CHECKS = (
    audit_weights.loads,
    audit_weights.architecture,
    audit_weights.parameters,
    audit_weights.recorded_loss,
    audit_weights.from_seed,
    audit_records.best_belongs,
)
"""Those of the weights that take seconds: a report calls no run proved without having made them."""
_QUICK_TOKENS = 1024
"""Tokens whose losses are measured for it, in 4 windows at least."""


def verify(run_dir: str, given: dict[str, Any], sample: int = 0) -> Audit:
    """Audit a run, print what was found, and write `verify.json` (and `token_losses.npz`) where
    everything could be looked at.

    Args:
        run_dir: a run directory.
        given: `device` and `amp`, where given by hand; fp32 is the default, whatever the run
            trained in.
        sample: measure only so many windows: a quick look, which is no audit and is never written
            down.

    Raises:
        UserError: no run there, or (after the table) a part of it is missing.
    """
    run = read_record(run_dir, to_audit=True)
    config = RunConfig.resolve(
        {"device": "auto", "amp": "fp32", **given}, saved=run.config.model_dump()
    )
    precision = Precision.of(config)
    if warning := check_device(precision):
        print(warning, file=sys.stderr)
    n_params = parameter_count(GPT2Config.of(config))
    refuse_what_cannot_fit(config, n_params, precision.device, training=False)
    evidence = Evidence(run, precision, sample)
    n_windows = _or_none(lambda: len(evidence.windows)) or math.inf  # unknown: the checks say why
    if sample >= n_windows:
        raise UserError(
            f"sample {sample} is not below the {n_windows:,} windows of the text: leave it out to "
            f"measure all"
        )
    checks = tuple(check(evidence) for check in CHECKS)
    measured = _or_none(lambda: evidence.measurement)
    loss = measured and losses_of(measured).mean().item()
    whole = not sample and loss is not None and math.isfinite(loss)  # JSON knows no NaN
    before = _or_none(lambda: audit_of(run))
    best = run.directory.best
    machine = machine_of(precision)
    audit = Audit(
        machine["time"],
        command_line(),
        machine,
        file_sha256(best) if best.is_file() else None,
        loss if whole else None,
        evidence.windows.n_targets if whole else None,
        audited_state(run.summary),
        checks,
        sources_sha256(),
        before and before.replay,
        records_sha256(run.directory),
    )
    title = f"Audit of {run.directory}{' (a quick look)' if sample else ''}"
    _show(f"{title}\n\n{audit_table(audit.every_check)}\n\n{audit.verdict}")
    missing = list(evidence.missing)
    if run.summary.status not in audit_records.ENDED:
        missing.insert(0, f"the run is unfinished ({checks[-1].found})")
    if missing:
        raise UserError(
            f"{run.directory}: {'; '.join(missing)}: what depends on that is not checked, the "
            f"other results are above, and no verify.json is written; put back what is missing, continue "
            f"the run (--resume auto), or train its first steps again, which needs no checkpoint "
            f"(--replay 20)"
        )
    if sample:
        _show(
            f"A quick look on {sample:,} windows proves nothing and writes no verify.json: "
            f"leave --sample out."
        )
    elif _written(audit, run.directory) and measured:  # the losses, for the report to paint
        losses = {index: window.losses for index, window in measured.items()}
        try:
            keep(run.directory, run.summary, evidence.windows, losses)
        except NotWritten as error:
            _show(f"{run.directory.token_losses} was not written: {error.reason}.")
    return audit


def verify_by_replay(run_dir: str, given: dict[str, Any], steps: int = 0) -> Audit:
    """Train the first steps of a run again, print how far they give what is on record, and write
    that to `verify.json`.

    The checks of an audit that is there already stay, where it is of the same state of the run.

    Args:
        run_dir: a run directory; it needs no checkpoint.
        given: `device` and `amp`, where given by hand.
        steps: how many; 0 means all.

    Raises:
        UserError: no run there, or what a replay needs is missing.
    """
    run = read_record(run_dir, to_audit=True)
    made = replay(run, given, steps)
    state, records = audited_state(run.summary), records_sha256(run.directory)
    new = Audit("", command_line(), {}, None, None, None, state, records_sha256=records)
    audit = replace(_or_none(lambda: audit_of(run)) or new, replay=made)
    _show(f"Replay of {run.directory}\n\n{audit_table((made.check,))}\n")
    _written(audit, run.directory)
    return audit


def audit_of(run: Record) -> Audit:
    """The audit in a run's `verify.json`, if it is what `verify` writes about its present state.

    Raises:
        UserError: it cannot be read, or is about something else.
    """
    path, best = run.directory.audit, run.directory.best
    audit = read_audit(path)
    asked, reason = [check.asks for check in audit.checks], ""
    try:
        if asked and asked != [check.asks for check in CHECKS]:
            reason = "was not made with exactly the present checks"
        elif not asked and audit.replay is None:
            reason = "holds no check"
        elif asked and audit.n_predictions not in (None, (run.summary.corpus.tokens or 0) - 1):
            reason = "is not about every prediction of the text"
        elif not audit.is_of(run.summary, run.directory):
            reason = "is of another state of this run, or of another best.pt"
    except OSError as error:
        raise UserError(f"{best} cannot be read ({error.strerror}): restore it") from None
    if reason:
        raise UserError(
            f"The audit in {path.name} {reason}, and is not shown: make it again with verify."
        )
    return audit


def quick_checks(run: Record, weights: bool) -> tuple[Check, ...]:
    """What a report has checked itself while it was built, in seconds.

    Args:
        weights: also load best.pt, and hold it against the seed, the records and the text.
    """
    n_windows = max(4, _QUICK_TOKENS // run.config.seq_len)
    evidence = Evidence(run, Precision(torch.device("cpu"), "fp32"), n_windows)
    return tuple(check(evidence) for check in RECORD_CHECKS + (QUICK_CHECKS if weights else ()))


def _or_none(value: Callable[[], _Value]) -> _Value | None:
    """A value; None where what it needs is missing or was edited, which the checks say."""
    try:
        return value()
    except Exception:
        return None


def _written(audit: Audit, directory: RunDirectory) -> bool:
    """Write `verify.json`, or say why it could not be written: the verdict stands all the same."""
    try:
        audit.write(directory)
    except NotWritten as error:
        _show(f"{directory.audit} was not written: {error.reason}.")
        return False
    _show(f"{directory.audit}")
    return True


def _show(text: str) -> None:
    """Print, on a terminal that has no ✓ as well: the word stands beside it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
