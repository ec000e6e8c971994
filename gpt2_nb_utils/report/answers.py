"""What a grader asks first about a run, as eight short answers: the first screen of the report."""

from __future__ import annotations

from collections.abc import Iterable

from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.results.facts import RunFacts
from gpt2_nb_utils.wording import (
    NOT_RECORDED,
    count,
    duration_in_words,
    loss_text,
    status_text,
)


def answers(facts: RunFacts) -> list[tuple[str, str, str]]:
    """(what is asked, the answer, what belongs to it), in the order in which a grader asks."""
    run = facts.summary
    return [
        ("Training loss", *_loss(facts)),
        ("Corpus", *_corpus(facts)),
        ("Parameters", count(run.n_params), _shape(facts)),
        ("Epochs", facts.epochs, f"{count(run.tokens_seen)} tokens seen"),
        ("Time", *_time(facts)),
        ("Machine", run.device or NOT_RECORDED, _machine(facts)),
        (
            "Run",
            status_text(run.status, short=True),
            f"step {count(run.step)}{facts.of_steps}, seed {facts.seed}",
        ),
        ("Audit", *facts.proof),
    ]


def _loss(facts: RunFacts) -> tuple[str, str]:
    loss, target = facts.summary.graded, f"target: below {facts.target:g}"
    if loss is None:
        return "not measured yet", target
    return loss_text(loss.loss), f"{verdict.measured_on(facts.record, loss)}; {target}"


def _corpus(facts: RunFacts) -> tuple[str, str]:
    corpus, excerpt = facts.summary.corpus, facts.record.setting("max_tokens")
    name = "demonstration corpus" if corpus.source == "demo" else facts.course
    size = f"its first {excerpt:,} tokens" if excerpt else f"{count(corpus.tokens)} tokens"
    sha256 = f"{corpus.sha256[:8]}…" if corpus.sha256 else NOT_RECORDED
    return name, f"{size}, sha256 {sha256}"


def _shape(facts: RunFacts) -> str:
    units = {"n_layer": "layers", "n_head": "heads", "n_embd": "wide"}
    sizes = {name: facts.record.setting(name) for name in units}
    return _listed(f"{size} {units[name]}" for name, size in sizes.items() if size is not None)


def _time(facts: RunFacts) -> tuple[str, str]:
    run = facts.summary
    if run.seconds is None:
        return NOT_RECORDED, ""
    in_all = "" if run.wall_seconds is None else f"{duration_in_words(run.wall_seconds)} in all"
    pace = "" if run.tok_per_s is None else f"{run.tok_per_s:,.0f} tokens/s"
    return duration_in_words(run.seconds), _listed(("of training", in_all, pace))


def _machine(facts: RunFacts) -> str:
    run, processor = facts.summary, facts.record.environment.get("processor")
    return _listed((processor, run.amp, run.torch and f"torch {run.torch}"))


def _listed(parts: Iterable[str | None]) -> str:
    return ", ".join(str(part) for part in parts if part)
