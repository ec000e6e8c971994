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
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.verdict import RANDOM_LOSS, RANDOM_MARGIN
from gpt2_nb_utils.training.events import rendered
from gpt2_nb_utils.training.open_run import KEPT
from gpt2_nb_utils.training.optimizer import learning_rate_factor

ENDED = ("target_reached", "steps_done")
"""What a summary says of a run that came to its end."""
_STEEPEST = 4.0
"""Nats by which a batch loss cannot fall in one step, below that of random weights. The steepest
falls of the reference runs are 1.7 nats in the first steps and, where a new epoch shows what the
one before taught, 1.4 and 1.7."""
_MACHINE = ("python", "platform", "processor", "packages")
_RENDERED = ("logs/train_metrics.csv", "logs/recall.csv", "samples/samples.txt", "summary.json")


@asks(
    "the run came to its end", "a status that says that the target was reached, or all steps done"
)
def ended(evidence: Evidence) -> tuple[bool, str]:
    summary, steps = evidence.summary, evidence.settings.steps
    status, step = str(summary.get("status")), summary.get("step")
    said = f"{status.replace('_', ' ')} at step {step} of {steps:,}"
    come_to_it = step == steps if status == "steps_done" else summary["target_reached"]
    return status in ENDED and come_to_it and evidence.history.end["step"] == step, said


@asks(
    "the losses start with those of random weights and fall as steps can make them",
    f"step 0 and step 1 within {RANDOM_MARGIN:g} of ln 50257 = {RANDOM_LOSS:.3f}, the loss of a random "
    f"guess, and no fall of more than {_STEEPEST:g} in a step",
)
def random_start(evidence: Evidence) -> tuple[bool, str]:
    steps = list(evidence.steps.values())
    losses = [
        ("training loss of step 0", evidence.first_measured["train_loss"]),
        ("batch loss of step 1", evidence.steps.get(1, {}).get("loss")),
    ]
    problems = [
        f"{name} is {'not on record' if loss is None else f'{loss:.4f}'}"
        for name, loss in losses
        if loss is None or not abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN
    ]
    problems += [
        f"batch loss {one['loss']:.4f} at step {one['step']}, {two['loss']:.4f} at {two['step']}"
        for one, two in pairwise(steps)
        if min(one["loss"], RANDOM_LOSS) - two["loss"] > _STEEPEST * (two["step"] - one["step"])
    ]
    return problems_or(problems, ", ".join(f"{name} {loss}" for name, loss in losses))


@asks(
    "steps, tokens and time add up",
    "steps in order without gaps, each with the tokens and epochs of the text that it trained on",
)
def arithmetic(evidence: Evidence) -> tuple[bool, str]:
    summary, n_targets = evidence.summary, evidence.windows.n_targets
    widest = evidence.settings.log_every if evidence.earlier else 1
    rows = [{"step": 0, "tokens": 0, "epoch": 0.0, "elapsed_s": 0.0}, *evidence.steps.values()]
    problems = [
        f"step {row['step']} follows step {before['step']}, "
        f"{row['elapsed_s'] - before['elapsed_s']:g} s later"
        for before, row in pairwise(rows)
        if not 0 < row["step"] - before["step"] <= widest
        or not row["elapsed_s"] >= before["elapsed_s"]
    ]
    end = {name: summary[name] for name in ("step", "epoch")} | {"tokens": summary["tokens_seen"]}
    for row in (*rows, end):
        tokens = evidence.tokens_after(row["step"])
        if row["tokens"] != tokens or not same(row["epoch"], tokens / n_targets):
            problems.append(
                f"step {row['step']} has {row['tokens']:,} tokens in {row['epoch']:.5f} epochs "
                f"instead of {tokens:,} in {tokens / n_targets:.5f}"
            )
    text, seen = evidence.corpus, len(evidence.windows.tokens)
    there = {
        "sha256": text.sha256,
        "chars": text.chars,
        "tokens": seen,
        "is_course_input": text.is_course_input and seen == len(evidence.tokens),
    }
    problems += [
        f"{name} of the text is {evidence.recorded_corpus.get(name)} on record, {value} in the text"
        for name, value in there.items()
        if evidence.recorded_corpus.get(name) != value
    ]
    step = rows[-1]["step"]
    if not 0 <= end["step"] - step < widest and summary["status"] in ENDED:
        problems.append(f"the summary ends at step {end['step']}, the steps on record at {step}")
    return problems_or(
        problems, f"{end['step']:,} steps, {end['tokens']:,} tokens, {end['epoch']:.3f} epochs"
    )


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
    if evidence.events[0]["event"] != "start":
        problems.append("the events do not begin with a new run")
    for event in evidence.events[1:]:
        kind, step = event["event"], event.get("step")
        if kind == "start":
            problems.append("a new run begins in the middle of the events")
        elif kind == "resume":
            if step > reached:
                problems.append(
                    f"it was resumed at step {step}, but had reached step {reached} only"
                )
            reached = step
        elif kind == "step":
            if step != reached + 1:
                problems.append(f"step {step} follows step {reached}")
            reached = step
    problems += [
        f"what was resumed at step {event['step']} is another run, or has other sizes or text"
        for event in resumed
        if _identity(event) != _identity(first)
    ]
    said = f"a new run from random weights (seed {first['config']['seed']})"
    steps = ", ".join(str(event["step"]) for event in resumed)
    return problems_or(
        problems, f"{said}, {f'resumed at step {steps}' if steps else 'never resumed'}"
    )


def _identity(start: dict[str, Any]) -> list[Any]:
    return [
        start["run_id"],
        start["corpus"]["sha256"],
        *(start["config"][name] for name in KEPT),
    ]


@asks(
    "the records are what the events render",
    "train_metrics.csv, recall.csv, samples.txt and summary.json to the letter, the settings of "
    "config.json and the machine of environment.json",
)
def records(evidence: Evidence) -> tuple[bool, str]:
    evidence.need_events()
    directory, last = evidence.directory, evidence.history.starts[-1]
    texts = rendered(evidence.events)
    problems = [
        f"{name} is another text, or missing"
        for name in _RENDERED
        if texts.get(name, "").encode("utf-8") != _content(directory.path / name)
    ]
    machines = directory.read_json(directory.environment)
    machine = [machines, *machines.get("resumed", [])][-1]
    problems += [
        f"{path.name} has another {key}"
        for path, ours, there, keys in (
            (directory.config, last["config"], directory.read_config(), last["config"]),
            (directory.environment, last["environment"], machine, _MACHINE),
        )
        for key in keys
        if ours.get(key) != there.get(key)
    ]
    claimed = evidence.run.summary.status, evidence.summary["status"]
    if problems and not set(claimed) & set(ENDED):
        raise CannotCheck(f"{problems[0]}, but the run is unfinished: it may lag behind the events")
    return problems_or(problems, f"rendered again from {len(evidence.events):,} events")


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError:
        return b""


@asks(
    "best.pt belongs to this run",
    "beside the weights, the identity, settings, sizes, text, tokens and losses on record",
)
def best_belongs(evidence: Evidence) -> tuple[bool, str]:
    best, settings, summary = evidence.best, evidence.settings, evidence.summary
    state, step = best["state"], best["state"]["step"]
    of_step = [each for each in evidence.events if each.get("step") == step]
    on_record = {
        "run_id": evidence.history.starts[0]["run_id"],
        "corpus_sha256": evidence.recorded_corpus.get("sha256"),
        **{name: getattr(settings, name) for name in KEPT},
        **GPT2Config.of(settings).to_dict(),
        **dict.fromkeys(("train_loss_step", "best_train_loss_step"), step),
        "best_train_loss": state["train_loss"],
        "best_train_loss_windows": state["train_loss_windows"],
    }
    if summary.get("status") in ENDED:  # a run at work may be a step ahead of its summary
        names = ("best_train_loss", "best_train_loss_windows", "best_train_loss_step")
        on_record |= {name: summary.get(name) for name in names}
    there = {**best, **best["config"], **best["model_config"], **state}
    problems = [
        f"{name} is {value} on record, {there.get(name)} in best.pt"
        for name, value in on_record.items()
        if there.get(name) != value and not same(there.get(name), value)
    ]
    # A run that was killed right after saving best.pt has done its step a second time, maybe with
    # another result.
    problems += [
        f"{name} of step {step}, {state[name]} in best.pt, is not on record"
        for name, kind, field in (
            ("tokens_seen", "step", "tokens"),
            ("loss", "step", "loss"),
            ("train_loss", "measured", "train_loss"),
        )
        if not any(each["event"] == kind and same(each[field], state[name]) for each in of_step)
    ]
    return problems_or(problems, f"{len(on_record) + 3} values of step {step}")


def same(one: Any, other: Any) -> bool:
    """Whether two numbers are equal, but for the seven digits of the metrics."""
    try:
        return f"{one:.6e}" == f"{other:.6e}" or math.isclose(one, other, rel_tol=1e-6)
    except (TypeError, ValueError):  # not two numbers
        return False
