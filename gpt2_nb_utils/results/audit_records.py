"""What log and metrics of a run show: that it began with random weights, that its steps add up, that it came to its end.

A forger would have to change all records in step (`audit_agreement`), and weights that did not grow from the seed still tell
(`audit_weights`). Who trains honestly for a step and then forges weights and records together cannot be found out but by training again.
"""

from __future__ import annotations

import contextlib
import math
from itertools import groupby, pairwise
from typing import Any

from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.train_log import surviving
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, RANDOM_MARGIN
from gpt2_nb_utils.training.resume import KEPT
from gpt2_nb_utils.training.run_log import Row

ENDED = ("target_reached", "steps_done")
"""What a summary says of a run that came to its end."""


@asks(
    "the run came to its end", "a status that says that the target was reached, or all steps done"
)
def ended(evidence: Evidence) -> tuple[bool, str]:
    summary, steps = evidence.summary, evidence.settings.steps
    status, step = str(summary.get("status")), summary.get("step")
    said = f"{status.replace('_', ' ')} at step {step} of {steps:,}"
    if status not in ENDED:
        return False, said
    problems = (
        [said]
        if status == "steps_done"
        and step < steps
        or status == "target_reached"
        and not summary.get("target_reached")
        else []
    )
    with contextlib.suppress(CannotCheck):
        end = evidence.sections[-1].end
        if end is None or (end.status, end.step) != (status, step):
            how = (
                "without its line"
                if end is None
                else f"with {end.status.replace('_', ' ')} at step {end.step}"
            )
            problems.append(f"{said}, but the log ends {how}")
    return problems_or(problems, said)


@asks(
    "the log starts with the loss of random weights",
    f"step 0 and step 1 within {RANDOM_MARGIN:g} of ln 50257 = {RANDOM_LOSS:.3f}, the loss of a random guess",
)
def random_start(evidence: Evidence) -> tuple[bool, str]:
    rows = {row.step: row for row in evidence.rows[:2]}
    losses = [
        ("training loss of step 0", rows[0].train_loss if 0 in rows else None),
        ("batch loss of step 1", rows[1].loss if 1 in rows else None),
    ]
    problems = [
        f"{name} is {'not on record' if loss is None else f'{loss:.4f}'}"
        for name, loss in losses
        if loss is None or not abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN
    ]
    return problems_or(problems, ", ".join(f"{name} {loss}" for name, loss in losses))


@asks(
    "steps, tokens and time add up",
    "rows in order without gaps, each with the tokens and epochs that its steps train on",
)
def arithmetic(evidence: Evidence) -> tuple[bool, str]:
    rows, summary, n_targets = evidence.rows, evidence.summary, evidence.windows.n_targets
    widest = max(whole(section.setting("log_every")) for section in evidence.sections)
    problems = [] if rows[0].step == 0 else [f"the metrics start with step {rows[0].step}"]
    for before, row in pairwise(rows):
        if not 0 < row.step - before.step <= widest:
            problems.append(f"step {row.step} follows step {before.step}")
        if not row.elapsed_s >= before.elapsed_s:
            problems.append(f"the time runs backwards at step {row.step}")
    for row in rows:
        tokens = evidence.tokens_after(row.step)
        if row.tokens != tokens:
            problems.append(f"step {row.step} has {row.tokens:,} tokens instead of {tokens:,}")
        elif not same(row.epoch, tokens / n_targets):
            problems.append(
                f"step {row.step} has epoch {row.epoch:g} instead of {tokens / n_targets:.5f}"
            )
    problems += [
        f"step {row.step} has {row.tok_per_s:g} tokens/s, by its time {_speed(before, row):.4g}"
        for before, row in pairwise(rows)
        if not _is_speed(row.tok_per_s, before, row, evidence)
    ]
    step, tokens = summary["step"], evidence.tokens_after(summary["step"])
    if not 0 <= step - rows[-1].step < widest and summary.get("status") in ENDED:
        problems.append(f"the summary ends at step {step}, the metrics at step {rows[-1].step}")
    if summary["tokens_seen"] != tokens or not same(summary["epoch"], tokens / n_targets):
        problems.append(
            f"the summary has {summary['tokens_seen']:,} tokens in {summary['epoch']:.4f} epochs, "
            f"instead of {tokens:,} in {tokens / n_targets:.4f}"
        )
    speed, by_time = (
        summary.get("tok_per_s"),
        tokens / summary["seconds"] if summary["seconds"] else 0.0,
    )
    if speed is not None and abs(speed - by_time) > 0.06 + 1e-3 * by_time / (
        summary["seconds"] or 1
    ):  # both are rounded
        problems.append(f"the summary has {speed:g} tokens/s, by its time {by_time:.4g}")
    last = rows[-1]
    return problems_or(
        problems,
        f"{len(rows):,} rows up to step {last.step:,}, {last.tokens:,} tokens, {last.epoch:.3f} epochs",
    )


def _is_speed(speed: float | None, before: Row, row: Row, evidence: Evidence) -> bool:
    """Whether a row's tokens per second are those of its tokens and its time, as far as the digits of the metrics go."""
    if speed is None or any(
        before.step < (section.resumed_at or 0) < row.step for section in evidence.sections
    ):
        return True  # a run that went on counts from its checkpoint, which has no row here
    tokens, took = row.tokens - before.tokens, row.elapsed_s - before.elapsed_s
    digit = (
        10.0 ** (math.floor(math.log10(row.elapsed_s)) - 6) if row.elapsed_s > 0 else 0.0
    )  # the last of seven
    return tokens <= speed * (took + digit) * (1 + 1e-6) and speed * (took - digit) <= tokens * (
        1 + 1e-6
    )


def _speed(before: Row, row: Row) -> float:
    took = row.elapsed_s - before.elapsed_s
    return (row.tokens - before.tokens) / took if took > 0 else math.inf


@asks(
    "log and metrics tell the same",
    "each row of train_metrics.csv in train.log, with the same numbers, and the other way round",
)
def log_and_metrics(evidence: Evidence) -> tuple[bool, str]:
    rows, (steps, measured) = {row.step: row for row in evidence.rows}, surviving(evidence.sections)
    if evidence.summary.get("status") not in ENDED:  # a run at work writes the one before the other
        last = min(max(rows), max([*steps, *measured], default=0))
        rows, steps, measured = (
            {step: each for step, each in part.items() if step <= last}
            for part in (rows, steps, measured)
        )
    problems = [
        f"step {step} is not in the metrics" for step in sorted({*steps, *measured} - set(rows))
    ]
    for step, row in sorted(rows.items()):
        problems += [
            f"{what} of step {step}: {_number(ours)} in the metrics, {_number(theirs)} in the log"
            for what, ours, theirs, places in _pairs(row, steps.get(step), measured.get(step))
            if not same(ours, theirs, places)
        ]
    return problems_or(
        problems, f"{len(steps):,} steps and {len(measured):,} measurements, the same in both"
    )


def _pairs(
    row: Row, said: Any, measured: tuple[float, Any] | None
) -> list[tuple[str, float | None, float | None, float]]:
    """(what, in the metrics, in the log, how far the log's rounding may take it)."""
    pairs = [("training loss", row.train_loss, measured and measured[0], 1e-6)]
    if row.step > 0 or said is not None:
        pairs += [
            ("batch loss", row.loss, said and said.loss, 1e-4),
            ("learning rate", row.lr, said and said.lr, 1e-3 * abs(row.lr or 0)),
            ("gradient norm", row.grad_norm, said and said.grad_norm, 1e-3),
            ("speed", row.tok_per_s, said and said.tok_per_s, 0.051),
        ]
    return pairs


@asks(
    "the chain of resumed runs is unbroken",
    "one new run from random weights, then each process from a step that the one before it reached",
)
def chain(evidence: Evidence) -> tuple[bool, str]:
    sections, settings = evidence.sections, evidence.settings
    origin = f"random weights (seed {settings.seed})"
    problems = []
    if sections[0].resumed_at is not None or sections[0].origin != origin:
        problems.append(
            f"the log begins with weights from {sections[0].origin or 'nowhere'}, not from {origin}"
        )
    for before, section in pairwise(sections):
        if section.resumed_at is None:
            problems.append("a new run begins in the middle of the log")
        elif section.resumed_at >= before.last + whole(before.setting("log_every")):
            problems.append(
                f"it was resumed at step {section.resumed_at}, but had reached step {before.last} only"
            )
        elif section.origin != f"the checkpoint of step {section.resumed_at}":
            problems.append(
                f"resumed at step {section.resumed_at} with weights from {section.origin or 'nowhere'}"
            )
    logged = [step for step, _ in groupby(section.resumed_at for section in sections[1:])]
    recorded = [
        step
        for step, _ in groupby(each["step"] for each in evidence.summary.get("resumed_with") or [])
    ]
    if logged != recorded:
        problems.append(
            f"resumed at {_steps(logged)} by the log, at {_steps(recorded)} by the summary"
        )
    problems += [
        f"{name} is {section.setting(name)} in the log and {getattr(settings, name)!r} in config.json"
        for section in sections
        for name in KEPT
        if section.setting(name) not in (None, repr(getattr(settings, name)))
    ]
    return problems_or(
        problems,
        f"a new run from {origin}"
        + (f", resumed at {_steps(logged)}" if logged else ", never resumed"),
    )


def same(one: float | None, other: float | None, within: float = 0.0) -> bool:
    """Whether two numbers are equal, but for the seven digits of the metrics and a rounding of `within`."""
    if one is None or other is None:
        return one is other
    if not (math.isfinite(one) and math.isfinite(other)):
        return repr(float(one)) == repr(float(other))
    return abs(one - other) <= within + 1e-6 * max(abs(one), abs(other))


def whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.7g}"


def _steps(steps: list[int | None]) -> str:
    return f"step {', '.join(map(str, steps))}" if steps else "no step"
