"""What a grader asks first about a run, as eight short answers: the first screen of the report.

It knows the order of the questions and how to be brief. The facts come from `run_facts`, which says them at length.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_nb_utils.report.run_facts import MARKS, STATUS, RunFacts
from gpt2_nb_utils.results.verdict import UNKNOWN, count, loss_text


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        asks: what is asked for, in a word or two.
        figure: the answer itself.
        besides: what belongs to it, in a few words.
    """

    asks: str
    figure: str
    besides: str


def answers(facts: RunFacts) -> list[Answer]:
    """The answers, in the order in which a grader asks."""
    return [
        _loss(facts),
        _corpus(facts),
        _parameters(facts),
        _epochs(facts),
        _time(facts),
        _machine(facts),
        _run(facts),
        _audit(facts),
    ]


def _loss(facts: RunFacts) -> Answer:
    which = "train_loss" if facts.summary.get("best_train_loss") is None else "best_train_loss"
    target = f"target: below {facts.target:g}"
    if facts.summary.get(which) is None:
        return Answer("Training loss", "not measured yet", target)
    return Answer(
        "Training loss", loss_text(facts.summary[which]), f"{facts.measured(which)}; {target}"
    )


def _corpus(facts: RunFacts) -> Answer:
    corpus = facts.summary.get("corpus") or {}
    sha256 = f"sha256 {corpus['sha256'][:8]}…" if corpus.get("sha256") else f"sha256 {UNKNOWN}"
    excerpt = facts.config.get("max_tokens")
    size = f"its first {excerpt:,} tokens" if excerpt else f"{count(corpus.get('tokens'))} tokens"
    return Answer(
        "Corpus",
        "demonstration corpus" if corpus.get("source") == "demo" else facts.course,
        f"{size}, {sha256}",
    )


def _parameters(facts: RunFacts) -> Answer:
    shape = [
        f"{facts.config[name]} {words}"
        for name, words in (("n_layer", "layers"), ("n_head", "heads"), ("n_embd", "wide"))
        if name in facts.config
    ]
    return Answer("Parameters", count(facts.summary.get("n_params")), ", ".join(shape))


def _epochs(facts: RunFacts) -> Answer:
    return Answer("Epochs", facts.epochs, f"{count(facts.summary.get('tokens_seen'))} tokens seen")


def _time(facts: RunFacts) -> Answer:
    seconds, wall, speed = (
        facts.summary.get(name) for name in ("seconds", "wall_seconds", "tok_per_s")
    )
    besides = ["of training"] + ([] if wall is None else [f"{_spelled(wall)} in all"])
    besides += [] if speed is None else [f"{speed:,.0f} tokens/s"]
    return (
        Answer("Time", UNKNOWN, "")
        if seconds is None
        else Answer("Time", _spelled(seconds), ", ".join(besides))
    )


def _machine(facts: RunFacts) -> Answer:
    summary = facts.summary
    besides = [str(facts.environment["processor"])] if facts.environment.get("processor") else []
    besides += [str(summary["amp"])] if summary.get("amp") else []
    besides += [f"torch {summary['torch']}"] if summary.get("torch") else []
    return Answer("Machine", str(summary.get("device") or UNKNOWN), ", ".join(besides))


def _run(facts: RunFacts) -> Answer:
    status = str(facts.summary.get("status") or UNKNOWN)
    short = STATUS.get(status, status).partition(":")[0].partition(",")[0]
    return Answer(
        "Run",
        short,
        f"step {count(facts.summary.get('step'))}{facts.of_steps}, seed {facts.summary.get('seed', UNKNOWN)}",
    )


def _audit(facts: RunFacts) -> Answer:
    if facts.audit is None:
        return Answer("Audit", "not made", "the command for it is at the end")
    state, word = ("met", "proved") if facts.audit.passed else ("not met", "not proved")
    return Answer("Audit", f"{MARKS[state]} {word}", facts.audit.tally)


def _spelled(seconds: float) -> str:
    """A time with the two largest of its units: `2 h 12 min`, `1 min 49 s`, `7 s`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
