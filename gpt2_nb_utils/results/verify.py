"""The command `verify`: an audit of a run that trusts nothing recorded, printed as a table and kept
as `verify.json`.

What each check looks at is in `audit_weights`, `audit_records` and `audit_outputs`; a replay is
made by `replay`.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.machine import command_line, environment, sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.results import audit_outputs, audit_records, audit_weights
from gpt2_nb_utils.results.audit import (
    CANNOT_BE_RIGHT,
    Audit,
    CannotCheck,
    Check,
    audit_table,
    audited_state,
    file_sha256,
    read_audit,
    records_sha256,
)
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.results.replay import replay
from gpt2_nb_utils.results.token_losses import keep
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision, check_device

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
    audit_weights.kinship,
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
"""So many of them, the first ones, can be made of runs of earlier versions too: without these nothing holds."""


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
    if sample:
        _refuse_all(sample, evidence)
    checks = tuple(check(evidence) for check in CHECKS)
    audit = _audit(evidence, checks, sample)
    title = f"Audit of {run.directory}{' (a quick look)' if sample else ''}"
    _show(f"{title}\n\n{audit_table(audit.every_check)}\n\n{audit.verdict}")
    missing = list(evidence.missing)
    if run.summary.status not in audit_records.ENDED:
        missing.insert(0, f"the run is unfinished ({checks[-1].found})")
    if missing:
        raise UserError(
            f"{run.directory}: {'; '.join(missing)}: what depends on that is not checked, the "
            f"rest stands above, and no verify.json is written; put back what is missing, continue "
            f"the run (--resume auto), or train its first steps again, which needs no checkpoint "
            f"(--replay 20)"
        )
    if sample:
        _show(
            f"A quick look on {sample:,} windows proves nothing and writes no verify.json: "
            f"leave --sample out."
        )
    elif _written(audit, run.directory):
        # For the report to paint, where they could be measured.
        with contextlib.suppress(CannotCheck, *CANNOT_BE_RIGHT):
            losses = evidence.measurement.losses
            keep(run.directory, run.summary, evidence.windows, losses)
    return audit


def _refuse_all(sample: int, evidence: Evidence) -> None:
    try:
        n_windows = len(evidence.windows)
    except (CannotCheck, *CANNOT_BE_RIGHT):
        return  # the checks tell
    if sample >= n_windows:
        raise UserError(
            f"sample {sample} is not below the {n_windows:,} windows of the text: leave it out to "
            f"measure all"
        )


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
    made = replay(run_dir, given, steps)
    directory = RunDirectory(run_dir)
    before = _audit_before(directory, made.state)
    audit = replace(
        before or Audit("", command_line(), {}, None, None, None, made.state),
        replay=made,
        records_sha256=records_sha256(directory),
    )
    _show(f"Replay of {directory}\n\n{audit_table((made.check,))}\n")
    _written(audit, directory)
    return audit


def _audit_before(directory: RunDirectory, state: dict[str, Any]) -> Audit | None:
    """The audit that is there already, if it is of this state of the run, and of the present checks."""
    with contextlib.suppress(UserError):
        audit = read_audit(directory.audit)
        present = [check.asks for check in CHECKS]
        if (
            audit.state == state
            and audit.records_sha256 == records_sha256(directory)
            and [check.asks for check in audit.checks] in ([], present)
        ):
            return audit
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


def _audit(evidence: Evidence, checks: tuple[Check, ...], sample: int) -> Audit:
    """The audit as verify.json keeps it, with the replay of this state of the run that was made
    before."""
    best, loss, n_predictions = evidence.directory.best, None, None
    with contextlib.suppress(CannotCheck, *CANNOT_BE_RIGHT):
        mean = evidence.measurement.mean()
        if not sample and mean == mean:  # JSON knows no NaN
            loss, n_predictions = mean, evidence.windows.n_targets
    precision, state = evidence.precision, audited_state(evidence.run.summary)
    before = _audit_before(evidence.directory, state)
    return Audit(
        datetime.now(UTC).isoformat(timespec="seconds"),
        command_line(),
        {**environment(), "device": precision.device_name, "amp": precision.amp},
        file_sha256(best) if best.is_file() else None,
        loss,
        n_predictions,
        state,
        checks,
        sources_sha256(),
        before and before.replay,
        records_sha256(evidence.directory),
    )


def _show(text: str) -> None:
    """Print, on a terminal that has no ✓ as well: the word stands beside it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
