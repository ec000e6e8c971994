"""What the records of a run show: that it began with random weights, that its steps add up, that no two of them disagree.

The records are the metrics, the log, the summary, the config and what stands beside the weights in best.pt. A forger
would have to change all of them in step, and then the weights would still tell (`audit_weights`).
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.train_log import surviving
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, RANDOM_MARGIN
from gpt2_nb_utils.training.resume import KEPT
from gpt2_nb_utils.training.run_log import Row

_ENDED = ("target_reached", "steps_done")


@asks("the run came to its end", "a status that says that the target was reached, or all steps done")
def ended(evidence: Evidence) -> tuple[bool, str]:
    status = str(evidence.summary.get("status"))
    return status in _ENDED, f"{status.replace('_', ' ')} at step {evidence.summary.get('step')} of {evidence.settings.steps:,}"


@asks("the log starts with the loss of random weights",
      f"step 0 and step 1 within {RANDOM_MARGIN:g} of ln 50257 = {RANDOM_LOSS:.3f}, the loss of a random guess")
def random_start(evidence: Evidence) -> tuple[bool, str]:
    rows = {row.step: row for row in evidence.rows[:2]}
    losses = [("training loss of step 0", rows[0].train_loss if 0 in rows else None),
              ("batch loss of step 1", rows[1].loss if 1 in rows else None)]
    problems = [f"{name} is {'not on record' if loss is None else f'{loss:.4f}'}" for name, loss in losses
                if loss is None or not abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN]
    return problems_or(problems, ", ".join(f"{name} {loss}" for name, loss in losses))


@asks("steps, tokens and time add up", "rows in order without gaps, each with the tokens and epochs that its steps train on")
def arithmetic(evidence: Evidence) -> tuple[bool, str]:
    rows, summary, n_targets = evidence.rows, evidence.summary, evidence.windows.n_targets
    widest = max(_whole(section.setting("log_every")) for section in evidence.sections)
    problems = [] if rows[0].step == 0 else [f"the metrics start with step {rows[0].step}"]
    for before, row in zip(rows, rows[1:]):
        if not 0 < row.step - before.step <= widest:
            problems.append(f"step {row.step} follows step {before.step}")
        if not row.elapsed_s >= before.elapsed_s:
            problems.append(f"the time runs backwards at step {row.step}")
    for row in rows:
        tokens = evidence.tokens_after(row.step)
        if row.tokens != tokens:
            problems.append(f"step {row.step} has {row.tokens:,} tokens instead of {tokens:,}")
        elif not _same(row.epoch, tokens / n_targets):
            problems.append(f"step {row.step} has epoch {row.epoch:g} instead of {tokens / n_targets:.5f}")
    step, tokens = summary["step"], evidence.tokens_after(summary["step"])
    if not 0 <= step - rows[-1].step < widest and summary.get("status") in _ENDED:
        problems.append(f"the summary ends at step {step}, the metrics at step {rows[-1].step}")
    if summary["tokens_seen"] != tokens or not _same(summary["epoch"], tokens / n_targets):
        problems.append(f"the summary has {summary['tokens_seen']:,} tokens in {summary['epoch']:.4f} epochs, "
                        f"instead of {tokens:,} in {tokens / n_targets:.4f}")
    last = rows[-1]
    return problems_or(problems, f"{len(rows):,} rows up to step {last.step:,}, {last.tokens:,} tokens, {last.epoch:.3f} epochs")


@asks("log and metrics tell the same", "each row of train_metrics.csv in train.log, with the same numbers, and the other way round")
def log_and_metrics(evidence: Evidence) -> tuple[bool, str]:
    rows, (steps, measured) = {row.step: row for row in evidence.rows}, surviving(evidence.sections)
    if evidence.summary.get("status") not in _ENDED:  # a run at work writes the one before the other
        last = min(max(rows), max([*steps, *measured], default=0))
        rows, steps, measured = ({step: each for step, each in part.items() if step <= last} for part in (rows, steps, measured))
    problems = [f"step {step} is not in the metrics" for step in sorted({*steps, *measured} - set(rows))]
    for step, row in sorted(rows.items()):
        problems += [f"{what} of step {step}: {_number(ours)} in the metrics, {_number(theirs)} in the log"
                     for what, ours, theirs, places in _pairs(row, steps.get(step), measured.get(step))
                     if not _same(ours, theirs, places)]
    return problems_or(problems, f"{len(steps):,} steps and {len(measured):,} measurements, the same in both")


def _pairs(row: Row, said: Any, measured: tuple[float, Any] | None) -> list[tuple[str, float | None, float | None, float]]:
    """(what, in the metrics, in the log, how far the log's rounding may take it)."""
    pairs = [("training loss", row.train_loss, measured and measured[0], 1e-6)]
    if row.step > 0 or said is not None:
        pairs += [("batch loss", row.loss, said and said.loss, 1e-4),
                  ("learning rate", row.lr, said and said.lr, 1e-3 * abs(row.lr or 0)),
                  ("gradient norm", row.grad_norm, said and said.grad_norm, 1e-3)]
    return pairs


@asks("the chain of resumed runs is unbroken",
      "one new run from random weights, then each process from a step that the one before it reached")
def chain(evidence: Evidence) -> tuple[bool, str]:
    sections, settings = evidence.sections, evidence.settings
    origin = f"random weights (seed {settings.seed})"
    problems = []
    if sections[0].resumed_at is not None or sections[0].origin != origin:
        problems.append(f"the log begins with weights from {sections[0].origin or 'nowhere'}, not from {origin}")
    for before, section in zip(sections, sections[1:]):
        if section.resumed_at is None:
            problems.append("a new run begins in the middle of the log")
        elif section.resumed_at >= before.last + _whole(before.setting("log_every")):
            problems.append(f"it was resumed at step {section.resumed_at}, but had reached step {before.last} only")
        elif section.origin != f"the checkpoint of step {section.resumed_at}":
            problems.append(f"resumed at step {section.resumed_at} with weights from {section.origin or 'nowhere'}")
    logged = [step for step, _ in groupby(section.resumed_at for section in sections[1:])]
    recorded = [step for step, _ in groupby(each["step"] for each in evidence.summary.get("resumed_with") or [])]
    if logged != recorded:
        problems.append(f"resumed at {_steps(logged)} by the log, at {_steps(recorded)} by the summary")
    problems += [f"{name} is {section.setting(name)} in the log and {getattr(settings, name)!r} in config.json"
                 for section in sections for name in KEPT if section.setting(name) not in (None, repr(getattr(settings, name)))]
    return problems_or(problems, f"a new run from {origin}" + (f", resumed at {_steps(logged)}" if logged else ", never resumed"))


@asks("summary, config, metrics and text agree", "the same settings, text, steps and losses in all of them")
def records_agree(evidence: Evidence) -> tuple[bool, str]:
    summary, config = evidence.summary, evidence.config
    pairs = [("the settings", "summary.json", summary.get("config"), "config.json", config),
             ("seed", "summary.json", summary.get("seed"), "config.json", config.get("seed")),
             ("target_reached", "summary.json", summary.get("target_reached"), "its own loss", _reached(summary)),
             *_with_the_rows(evidence), *_with_the_text(evidence)]
    return _all_equal(pairs)


@asks("best.pt says what the records say", "the same settings, sizes, text, step and loss beside the weights")
def best_agrees(evidence: Evidence) -> tuple[bool, str]:
    summary, config, best = evidence.summary, evidence.config, evidence.best
    state, sizes = best["state"], best["model_config"]
    pairs = [(name, "config.json", config.get(name), "best.pt", best["config"].get(name)) for name in KEPT]
    pairs += [(name, "config.json", config.get(name), "the sizes in best.pt", sizes.get(name))
              for name in ("block_size", "n_layer", "n_head", "n_embd")]
    pairs += [("n_params", "summary.json", summary.get("n_params"), "the sizes in best.pt", parameter_count(GPT2Config(**sizes))),
              ("sha256 of the text", "summary.json", evidence.recorded_corpus.get("sha256"), "best.pt", best["corpus_sha256"]),
              ("windows_drawn", "best.pt", state["windows_drawn"], "its steps",
               state["step"] * evidence.settings.batch_size * evidence.settings.grad_accum),
              ("training loss", "best.pt", state["train_loss"], "the metrics and the log",
               _logged(evidence, state["step"], state["train_loss"]))]
    pairs += [(f"best_{name}", "best.pt", state[f"best_{name}"], "its last measurement", state[name])
              for name in ("train_loss", "train_loss_windows", "train_loss_step")]
    pairs += [("step", "best.pt", state["step"], "its best training loss", state["best_train_loss_step"])]
    if summary.get("status") in _ENDED:  # a run at work may be a step ahead of its summary
        pairs += [(name, "summary.json", summary.get(name), "best.pt", state[name])
                  for name in ("best_train_loss", "best_train_loss_windows", "best_train_loss_step")]
    return _all_equal(pairs)


def _all_equal(pairs: list[tuple[str, str, Any, str, Any]]) -> tuple[bool, str]:
    problems = [f"{name}: {_brief(one)} in {here}, {_brief(other)} in {there}" for name, here, one, there, other in pairs
                if not _equal(one, other)]
    return problems_or(problems, f"{len(pairs)} values, each the same in two places")


def _logged(evidence: Evidence, step: int, loss: float | None) -> float | None:
    """What metrics and log say of the training loss at a step: `loss` itself, or else what they say instead."""
    said = [row.train_loss for row in evidence.rows if row.step == step]
    # A run that was killed right after saving best.pt has done the step again, or has not come back to it.
    said += [section.measured[step][0] for section in evidence.sections if step in section.measured]
    return loss if any(_same(one, loss, 1e-6) for one in said) else said[0] if said else None


def _with_the_rows(evidence: Evidence) -> list[tuple[str, str, Any, str, Any]]:
    """What the summary says of its steps, beside their rows."""
    summary, rows = evidence.summary, {row.step: row for row in evidence.rows}
    best = summary.get("best_train_loss")
    pairs = [("best training loss", "summary.json", best, "the metrics and the log",
              _logged(evidence, summary.get("best_train_loss_step"), best))]
    if (row := rows.get(summary["step"])) is not None:
        pairs += [("last batch loss", "summary.json", summary.get("loss"), "the metrics", row.loss),
                  ("seconds", "summary.json", summary.get("seconds"), "the metrics", _as(summary.get("seconds"), row.elapsed_s, 1e-3))]
    if (row := rows.get(summary.get("train_loss_step"))) is not None:
        pairs += [("last training loss", "summary.json", summary.get("train_loss"), "the metrics", row.train_loss)]
    if (row := rows.get(summary.get("best_batch_step"))) is not None:
        pairs += [("best batch loss", "summary.json", summary.get("best_batch_loss"), "the metrics", row.loss)]
    lowest = min((row.loss for row in rows.values() if row.loss is not None and row.step <= summary["step"]), default=None)
    if lowest is not None and lowest < summary["best_batch_loss"] and not _same(lowest, summary["best_batch_loss"]):
        pairs += [("best batch loss", "summary.json", summary["best_batch_loss"], "the metrics", lowest)]
    return pairs


def _with_the_text(evidence: Evidence) -> list[tuple[str, str, Any, str, Any]]:
    """What the summary says of the text beside the text itself, where it is on this machine."""
    try:
        text, seen = evidence.corpus, len(evidence.windows.tokens)
    except CannotCheck:
        return []
    corpus = evidence.recorded_corpus
    counts = text.is_course_input and seen == len(evidence.tokens)
    return [(f"{name} of the text", "summary.json", corpus.get(name), "the text", value) for name, value in
            (("sha256", text.sha256), ("chars", text.chars), ("tokens", seen), ("is_course_input", counts))]


def _reached(summary: dict[str, Any]) -> bool:
    return (summary.get("best_train_loss_windows") == "all" and summary["best_train_loss"] is not None
            and summary["best_train_loss"] < summary["target_loss"])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)) and not isinstance(other, bool):
        return _same(one, other)
    return type(one) is type(other) and one == other


def _same(one: float | None, other: float | None, within: float = 0.0) -> bool:
    """Whether two numbers are equal, but for the seven digits of the metrics and a rounding of `within`."""
    if one is None or other is None:
        return one is other
    if not (math.isfinite(one) and math.isfinite(other)):
        return repr(float(one)) == repr(float(other))
    return abs(one - other) <= within + 1e-6 * max(abs(one), abs(other))


def _as(one: float | None, other: float | None, within: float) -> float | None:
    """`one` where the two are the same, else `other`: for pairs of which one is rounded."""
    return one if _same(one, other, within) else other


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.7g}"


def _steps(steps: list[int | None]) -> str:
    return f"step {', '.join(map(str, steps))}" if steps else "no step"


def _brief(value: Any) -> str:
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
