"""The command `verify`: an audit of a run that trusts nothing recorded, told as a table and kept as `verify.json`.

It knows the order of the checks and what to say at the end. What each check looks at is in `audit_weights`, `audit_records`,
`audit_agreement` and `audit_outputs`.
"""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.machine import command_line, environment
from gpt2_nb_utils.results import audit_agreement, audit_outputs, audit_records, audit_weights
from gpt2_nb_utils.results.audit import (
    Audit,
    CannotCheck,
    Check,
    audit_table,
    audited_state,
    file_sha256,
)
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.run import load_run
from gpt2_nb_utils.results.token_losses import keep
from gpt2_nb_utils.training.precision import Precision

_CHECKS = (
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
    audit_records.log_and_metrics,
    audit_records.chain,
    audit_agreement.records_agree,
    audit_agreement.best_agrees,
    audit_outputs.samples,
    audit_outputs.recall,
    audit_records.ended,
)
"""In the order in which a grader asks: the weights, the text, the loss, from scratch, the records."""


def verify(run_dir: str, given: dict[str, Any], sample: int = 0) -> Audit:
    """Audit a run, print what was found, and write `verify.json` (and `token_losses.npz`) where everything could be looked at.

    Args:
        run_dir: a run directory.
        given: `device` and `amp`, where given by hand; fp32 is the default, whatever the run trained in.
        sample: measure only so many windows: a quick look, which is no audit and is never written down.

    Raises:
        UserError: no run there, or (after the table) a part of it is missing.
    """
    run = load_run(run_dir, to_audit=True)
    precision = Precision.of(
        RunConfig.resolve({"device": "auto", "amp": "fp32", **given}, saved=run.config.model_dump())
    )
    evidence = Evidence(run, precision, sample)
    unclaimed = {check: why for check, (claims, why) in _CLAIMED.items() if not claims(evidence)}
    checks = tuple(check(evidence) for check in _CHECKS if check not in unclaimed)
    audit = _audit(
        evidence, checks, tuple(f"{check.asks} ({why})" for check, why in unclaimed.items())
    )
    _show(
        f"Audit of {run.directory}{' (a quick look)' if sample else ''}\n\n{audit_table(checks)}\n\n{audit.verdict}"
    )
    for what in audit.unclaimed:
        _show(f"Not asked, for the run claims nothing of it: {what}.")
    missing = _missing(evidence)
    if missing:
        raise UserError(
            f"{run.directory}: {'; '.join(missing)}: what depends on that is not checked, the rest stands above, and "
            f"no verify.json is written; put back what is missing, or go on with the run (--resume auto)"
        )
    if sample:
        _show(
            f"A quick look on {sample:,} windows proves nothing and writes no verify.json: leave --sample out."
        )
    else:
        audit.write(run.directory)
        _show(f"{run.directory.audit}")
        _keep_losses(evidence)
    return audit


def _claims_samples(evidence: Evidence) -> bool:
    """Whether there are samples to check: a run that was told to draw none claims nothing."""
    return bool(evidence.run.samples) or evidence.settings.sample_every > 0


def _claims_recall(evidence: Evidence) -> bool:
    """Whether there is recall to check: runs of earlier versions counted none."""
    return bool(evidence.run.recall) or evidence.directory.counted_recall


_CLAIMED = {
    audit_outputs.samples: (_claims_samples, "it was told to draw none"),
    audit_outputs.recall: (
        _claims_recall,
        "logs/recall.csv is missing or empty, as runs of earlier versions leave it",
    ),
}
"""Checks of what not every run has: whether it claims anything, and why it may not."""


def _audit(evidence: Evidence, checks: tuple[Check, ...], unclaimed: tuple[str, ...]) -> Audit:
    """The audit as verify.json keeps it."""
    best, loss, n_predictions = evidence.directory.best, None, None
    try:
        if (
            evidence.measurement.whole and (mean := evidence.measurement.mean()) == mean
        ):  # JSON knows no NaN
            loss, n_predictions = mean, evidence.measurement.n_targets
    except CannotCheck:
        pass
    machine = {
        **environment(),
        "device": evidence.precision.device_name,
        "amp": evidence.precision.amp,
    }
    return Audit(
        datetime.now(UTC).isoformat(timespec="seconds"),
        command_line(),
        machine,
        file_sha256(best) if best.exists() else None,
        loss,
        n_predictions,
        audited_state(evidence.summary),
        checks,
        unclaimed,
    )


def _keep_losses(evidence: Evidence) -> None:
    """Keep the loss of every prediction, for the report to paint, where they could be measured."""
    with contextlib.suppress(CannotCheck):
        keep(evidence.directory, evidence.summary, evidence.windows, evidence.measurement.losses)


def _missing(evidence: Evidence) -> list[str]:
    """The parts of the run that are not there, in words."""
    parts = []
    if evidence.summary.get("status") not in audit_records.ENDED:
        parts.append(f"the run is unfinished ({audit_records.ended(evidence).found})")
    for look in ("config", "sections", "rows", "corpus"):
        try:
            getattr(evidence, look)
        except CannotCheck as reason:
            parts.append(str(reason))
    if not evidence.directory.best.exists():
        parts.append("checkpoints/best.pt is missing")
    return parts


def _show(text: str) -> None:
    """Print, on a terminal that has no ✓ as well: the word stands beside it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
