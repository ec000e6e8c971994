"""What a grader asks first about a run, as eight short answers: the first screen of the report."""

from __future__ import annotations

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
    run, record = facts.summary, facts.record
    loss, corpus, excerpt = run.graded, run.corpus, record.setting("max_tokens")
    measured = f"{verdict.measured_on(record, loss)}; " if loss else ""
    tokens = f"its first {excerpt:,} tokens" if excerpt else f"{count(corpus.tokens)} tokens"
    sha256 = f"{corpus.sha256[:8]}…" if corpus.sha256 else NOT_RECORDED
    training, in_all = (
        None if seconds is None else duration_in_words(seconds)
        for seconds in (run.seconds, run.wall_seconds)
    )
    shape = _listed(
        ("{} layers", record.setting("n_layer")),
        ("{} heads", record.setting("n_head")),
        ("{} wide", record.setting("n_embd")),
    )
    pace = _listed(
        ("of training", training), ("{} in all", in_all), ("{:,.0f} tokens/s", run.tok_per_s)
    )
    machine = _listed(
        ("{}", record.environment.get("processor")), ("{}", run.amp), ("torch {}", run.torch)
    )
    return [
        (
            "Training loss",
            loss_text(loss.loss) if loss else "not measured yet",
            f"{measured}target: below {facts.target:g}",
        ),
        (
            "Corpus",
            "demonstration corpus" if corpus.source == "demo" else facts.course,
            f"{tokens}, sha256 {sha256}",
        ),
        ("Parameters", count(run.n_params), shape),
        ("Epochs", facts.epochs, f"{count(run.tokens_seen)} tokens seen"),
        ("Time", training or NOT_RECORDED, pace),
        ("Machine", run.device or NOT_RECORDED, machine),
        (
            "Run",
            status_text(run.status, short=True),
            f"step {count(run.step)}{facts.of_steps}, seed {facts.seed}",
        ),
        ("Audit", *facts.proof),
    ]


def _listed(*parts: tuple[str, object]) -> str:
    """What was recorded, each in its form."""
    return ", ".join(form.format(value) for form, value in parts if value is not None)
