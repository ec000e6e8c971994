"""What the records of a run show: that it began with random weights, that its steps add up, that it
came to its end.

The records are rendered from the events of the run, so these are held against the seed, the text
and arithmetic, and the files against what the events render. Who trains honestly for a step and
then forges weights and events together is found out by training again (`replay`).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence, windows_per_step
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, RANDOM_MARGIN
from gpt2_nb_utils.training.events import Event, history, rendered
from gpt2_nb_utils.training.open_run import KEPT
from gpt2_nb_utils.training.optimizer import learning_rate_factor

ENDED = ("target_reached", "steps_done")
"""What a summary says of a run that came to its end."""
_STEEPEST = 4.0
"""Nats by which a batch loss cannot fall in one step, below that of random weights. The steepest
falls of the reference runs are 1.7 nats in the first steps and, where a new epoch shows what the
one before taught, 1.4 and 1.7."""
_OF_BEST = (
    "tokens_seen",
    "loss",
    "train_loss",
    "train_loss_windows",
    "train_loss_step",
    "best_train_loss",
    "best_train_loss_windows",
    "best_train_loss_step",
)
"""What a run knew of best.pt when it wrote it."""


@asks(
    "the run came to its end", "a status that says that the target was reached, or all steps done"
)
def ended(evidence: Evidence) -> tuple[bool, str]:
    summary, steps = evidence.summary, evidence.settings.steps
    at_end = summary.step == steps if summary.status == "steps_done" else summary.target_reached
    ok = summary.status in ENDED and at_end and evidence.history.end["step"] == summary.step
    return ok, f"{str(summary.status).replace('_', ' ')} at step {summary.step} of {steps:,}"


@asks(
    "the losses start with those of random weights and fall as steps can make them",
    f"step 0 and step 1 within {RANDOM_MARGIN:g} of ln 50257 = {RANDOM_LOSS:.3f}, the loss of a "
    f"random guess, and no fall of more than {_STEEPEST:g} in a step",
)
def random_start(evidence: Evidence) -> tuple[bool, str]:
    steps = list(evidence.steps.values())
    losses = {
        "training loss of step 0": evidence.first_measured["train_loss"],
        "batch loss of step 1": evidence.steps.get(1, {}).get("loss"),
    }
    problems = [
        f"{name} is {'not on record' if loss is None else f'{loss:.4f}'}"
        for name, loss in losses.items()
        if loss is None or not abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN
    ]
    problems += [
        f"batch loss {one['loss']:.4f} at step {one['step']}, {two['loss']:.4f} at {two['step']}"
        for one, two in pairwise(steps)
        if min(one["loss"], RANDOM_LOSS) - two["loss"] > _STEEPEST * (two["step"] - one["step"])
    ]
    for event in evidence.history.measurements:  # of the weights after that step
        step, loss = event["step"], event["train_loss"]
        if step in evidence.steps and evidence.steps[step]["loss"] - loss > _STEEPEST:
            problems.append(
                f"batch loss {evidence.steps[step]['loss']:.4f}, training loss {loss:.4f} at step "
                f"{step}"
            )
    if problems and evidence.too_few_tokens:
        raise CannotCheck(f"{problems[0]}, which decides nothing: {evidence.too_few_tokens}")
    return problems_or(problems, ", ".join(f"{name} {loss}" for name, loss in losses.items()))


@asks(
    "steps, tokens and time add up",
    "steps in order without gaps, each with the tokens and epochs of the text that it trained on",
)
def arithmetic(evidence: Evidence) -> tuple[bool, str]:
    summary, text, windows = evidence.summary, evidence.corpus, evidence.windows
    rows = [{"step": 0, "tokens": 0, "epoch": 0.0, "elapsed_s": 0.0}, *evidence.steps.values()]
    problems = [
        f"step {row['step']} follows step {before['step']}, "
        f"{row['elapsed_s'] - before['elapsed_s']:g} s later"
        for before, row in pairwise(rows)
        if row["step"] != before["step"] + 1 or not row["elapsed_s"] >= before["elapsed_s"]
    ]
    end = {"step": summary.step, "tokens": summary.tokens_seen, "epoch": summary.epoch}
    for row in (*rows, end):
        tokens = _tokens_after(evidence, row["step"])
        if row["tokens"] != tokens or not same(row["epoch"], tokens / windows.n_targets):
            problems.append(
                f"step {row['step']} has {row['tokens']:,} tokens in {row['epoch']:.5f} epochs "
                f"instead of {tokens:,} in {tokens / windows.n_targets:.5f}"
            )
    seen = len(windows.tokens)
    there = {
        "chars": text.chars,
        "tokens": seen,
        "is_course_input": text.is_course_input and seen == len(evidence.tokens),
    }
    problems += [
        f"{name} of the text is {getattr(summary.corpus, name)} on record, {value} in the text"
        for name, value in there.items()
        if getattr(summary.corpus, name) != value
    ]
    best = evidence.history.state.best_train_loss
    if summary.status in ENDED and not same(summary.best_train_loss, best):
        problems.append(
            f"the best training loss is {summary.best_train_loss} in the summary, {best} in the "
            f"metrics"
        )
    if summary.step != (last := rows[-1]["step"]) and summary.status in ENDED:
        problems.append(f"the summary ends at step {summary.step}, the steps on record at {last}")
    return problems_or(
        problems, f"{end['step']:,} steps, {end['tokens']:,} tokens, {end['epoch']:.3f} epochs"
    )


def _tokens_after(evidence: Evidence, steps: int) -> int:
    """Predictions that so many steps train on: the last window of each epoch is shorter than the
    others."""
    windows = evidence.windows
    epochs, rest = divmod(steps * windows_per_step(evidence.settings), len(windows))
    short = windows.seq_len * len(windows) - windows.n_targets
    begun = evidence.order.take(epochs * len(windows), rest)  # of the epoch that is not complete
    missing = short if len(windows) - 1 in begun else 0
    return epochs * windows.n_targets + rest * windows.seq_len - missing


@asks(
    "the learning rates are those of the schedule",
    "at each step the rate that the settings of its process plan",
)
def schedule(evidence: Evidence) -> tuple[bool, str]:
    evidence.need_events()
    problems = []
    for step, row in evidence.steps.items():
        settings = evidence.settings_at(step)
        planned = settings.lr * learning_rate_factor(step - 1, settings)
        if not same(row["lr"], planned):
            problems.append(f"{row['lr']:.7g} at step {step} instead of {planned:.7g}")
    return problems_or(problems, f"{len(evidence.steps):,} rates")


@asks(
    "the chain of resumed runs is unbroken",
    "one new run from random weights, then each process from a step that the one before it "
    "reached, with the same identity, text and sizes",
)
def chain(evidence: Evidence) -> tuple[bool, str]:
    evidence.need_events()
    first, *resumed = evidence.history.starts
    reached, problems = 0, []
    for place, event in enumerate(evidence.events):
        kind, step = event["event"], event.get("step")
        if (kind == "start") != (place == 0):
            problems.append(
                f"event {place + 1} is a {kind}: a run starts once, with its first event"
            )
        elif kind == "resume" and step > reached:
            problems.append(f"it was resumed at step {step}, but had reached step {reached} only")
        elif kind == "step" and step != reached + 1:
            problems.append(f"step {step} follows step {reached}")
        if kind in ("resume", "step"):
            reached = step
    problems += [
        f"what was resumed at step {event['step']} is another run, or has other sizes or text"
        for event in resumed
        if _identity(event) != _identity(first)
    ]
    steps = ", ".join(str(event["step"]) for event in resumed)
    return problems_or(
        problems,
        f"a new run from random weights (seed {first['config']['seed']}), "
        + (f"resumed at step {steps}" if steps else "never resumed"),
    )


def _identity(start: Event) -> list[Any]:
    return [start["run_id"], start["corpus"]["sha256"], *(start["config"][name] for name in KEPT)]


@asks(
    "the records are what the events render",
    "config.json, environment.json, train_metrics.csv, recall.csv, samples.txt and summary.json "
    "to the letter",
)
def records(evidence: Evidence) -> tuple[bool, str]:
    evidence.need_events()
    directory, texts = evidence.run.directory, rendered(evidence.events)
    del texts["logs/train.log"]  # which a person reads, and no program
    texts.setdefault("samples/samples.txt", "")
    problems = [
        f"{name} {problem}"
        for name, text in texts.items()
        if (problem := _differs(directory.path / name, text))
    ]
    claimed = evidence.run.summary.status, evidence.summary.status
    if problems and not {*claimed} & {*ENDED}:
        raise CannotCheck(f"{problems[0]}, but the run is unfinished: it may lag behind the events")
    return problems_or(problems, f"rendered again from {len(evidence.events):,} events")


def _differs(path: Path, text: str) -> str:
    try:
        return "" if read_regular(path) == text.encode("utf-8") else "is another text"
    except FileNotFoundError:
        return text and "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@asks(
    "best.pt belongs to this run",
    "beside the weights, the identity, settings, sizes, text, tokens and losses on record",
)
def best_belongs(evidence: Evidence) -> tuple[bool, str]:
    best, settings, summary = evidence.best, evidence.settings, evidence.summary
    state, step = best["state"], best["state"]["step"]
    # A copy of a run that was resumed by itself has the same identity: its losses tell it apart.
    on_record = {
        "run_id": evidence.history.starts[0]["run_id"],
        "corpus_sha256": summary.corpus.sha256,
        **{name: getattr(settings, name) for name in KEPT},
        **GPT2Config.of(settings).to_dict(),
    }
    there = {**best, **best["config"], **best["model_config"]}
    problems = [
        f"{name} is {value} on record, {there.get(name)} in best.pt"
        for name, value in on_record.items()
        if there.get(name) != value
    ]
    # A run that was killed right after saving best.pt has done its step a second time, maybe with
    # another result: each measurement of that step counts.
    reached = [
        vars(history(evidence.events[: place + 1]).state)
        for place, event in enumerate(evidence.events)
        if event["event"] == "measured" and event["step"] == step
    ]
    if not any(all(same(state[name], at[name]) for name in _OF_BEST) for at in reached):
        problems.append(f"its losses and tokens at step {step} are not on record")
    # A run at work may be a step ahead of its summary.
    if summary.status in ENDED and not same(summary.best_train_loss, state["best_train_loss"]):
        problems.append(f"the best training loss on record is {summary.best_train_loss}")
    return problems_or(problems, f"{len(on_record) + len(_OF_BEST)} values of step {step}")


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers but for the seven digits of the metrics."""
    try:
        return one == other or math.isclose(one, other, rel_tol=1e-6)
    except TypeError:  # not two numbers
        return False
