"""The course's target as a list of conditions, each held against what a run recorded.

It knows the conditions and the words for them. It deliberately does not read files, and trusts what was recorded
(`verify` does not). Notebook 04, the report and the README all take the verdict from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.run_log import Row

COURSE_MIN_PARAMS = 124_000_000
RANDOM_LOSS = math.log(VOCAB_SIZE)
"""Loss of a model that gives every token the same probability: ln 50257 = 10.825 nats."""
RANDOM_MARGIN = 0.5
"""Random weights start this near RANDOM_LOSS: their logits scatter a little, and so does a single batch."""
UNKNOWN = "not recorded"

State = Literal["met", "not met", "unknown"]


@dataclass(frozen=True)
class Condition:
    """One condition of the course's target.

    Attributes:
        asks: what it asks for.
        state: whether the run meets it, as far as the records tell.
        shows: what the run shows, in words.
    """

    asks: str
    state: State
    shows: str

    @property
    def holds(self) -> bool:
        """Whether the condition is met; one that is unknown does not count."""
        return self.state == "met"


def conditions(
    summary: dict[str, Any], config: dict[str, Any], rows: Sequence[Row]
) -> tuple[Condition, ...]:
    """The conditions of the course's target; the first is the loss itself, the others say whether it counts.

    Args:
        summary, config: the content of summary.json and config.json, with anything missing or null.
        rows: the metrics.
    """
    max_tokens = config.get("max_tokens")
    loss, windows = _judged_loss(summary)
    n_params = summary.get("n_params")
    below = "unknown" if loss is None else _state(loss < TARGET_LOSS)
    shows = (
        f"the training loss has not been measured yet, so nothing can be said about the target of {TARGET_LOSS:g}"
        if loss is None
        else f"the training loss is {loss_text(loss)} ({extent(windows, max_tokens)}), "
        f"{'below' if loss < TARGET_LOSS else 'not below'} the target of {TARGET_LOSS:g}"
    )
    whole = "unknown" if loss is None or windows is None else _state(windows == "all")
    covers = "not measured yet" if loss is None else extent(windows, max_tokens)
    big = "unknown" if n_params is None else _state(n_params >= COURSE_MIN_PARAMS)
    return (
        Condition(f"training loss below {TARGET_LOSS:g}", below, shows),
        Condition(
            "measured on every prediction of its text",
            whole,
            f"the loss is only {covers}" if whole == "not met" else covers,
        ),
        _on_the_course_file(summary.get("corpus") or {}),
        _on_all_tokens(summary.get("corpus") or {}, max_tokens),
        Condition(
            f"at least {COURSE_MIN_PARAMS:,} parameters",
            big,
            "the model size is not recorded"
            if n_params is None
            else f"the model has {count(n_params)} parameters",
        ),
        _from_random_weights(config, rows),
        _ended(summary),
    )


def reached(conditions: Sequence[Condition]) -> bool:
    """Whether every condition is met."""
    return all(condition.holds for condition in conditions)


def headline(conditions: Sequence[Condition]) -> str:
    """The verdict in a few words."""
    return "Course target reached" if reached(conditions) else "Course target not reached"


def explanation(conditions: Sequence[Condition]) -> str:
    """The verdict in a sentence or two: the figure, and what keeps it from counting."""
    loss, others = conditions[0], conditions[1:]
    missing = "; ".join(condition.shows for condition in others if not condition.holds)
    figure = f"{loss.shows[:1].upper()}{loss.shows[1:]}."
    if reached(conditions):
        return f"{figure} The model was trained from random weights on the course's whole file."
    if not missing:
        return figure
    if not loss.holds:
        return f"{figure} Besides, it could not count: {missing}."
    return f"{figure} It does not count as the course's target: {missing}."


def _state(holds: bool) -> State:
    return "met" if holds else "not met"


def _judged_loss(summary: dict[str, Any]) -> tuple[float | None, str | int | None]:
    """The loss of best.pt, the checkpoint that is graded, and how it was measured."""
    which = "best_train_loss" if summary.get("best_train_loss") is not None else "train_loss"
    return summary.get(which), summary.get(f"{which}_windows")


def _on_the_course_file(corpus: dict[str, Any]) -> Condition:
    asks = "on the course's input.txt"
    if corpus.get("is_course_input") is True or corpus.get("sha256") == COURSE_SHA256:
        return Condition(asks, "met", "the sha256 is that of the course's file")
    if corpus.get("source") == "demo":
        return Condition(asks, "not met", "it was trained on the demonstration corpus")
    if corpus.get("is_course_input") is None and corpus.get("sha256") is None:
        return Condition(asks, "unknown", "its corpus is not recorded")
    return Condition(asks, "not met", "its corpus is not the course's input.txt")


def _on_all_tokens(corpus: dict[str, Any], max_tokens: int | None) -> Condition:
    asks = "on all of its tokens"
    if corpus.get("is_course_input") is True or max_tokens == 0:
        return Condition(asks, "met", "no excerpt")
    if max_tokens is None:
        return Condition(asks, "unknown", "max_tokens is not recorded")
    return Condition(asks, "not met", f"it saw an excerpt of {max_tokens:,} tokens (max_tokens)")


def _from_random_weights(config: dict[str, Any], rows: Sequence[Row]) -> Condition:
    """Whether the log starts where random weights start (`verify` looks closer)."""
    asks = "from random weights"
    resume = config.get("resume") or "auto"
    own = PurePath(str(config.get("out_dir") or "."), "checkpoints")
    if resume != "auto" and PurePath(str(resume)).parent != own:
        return Condition(asks, "unknown", "it went on from a named checkpoint (resume)")
    # The batch loss of step 1 is that of the weights before their first update.
    start = next(
        (
            (kind, row.step, loss)
            for row in rows
            if row.step <= 1
            for kind, loss in (
                ("training", row.train_loss if row.step == 0 else None),
                ("batch", row.loss),
            )
            if loss is not None
        ),
        None,
    )
    if start is None:
        return Condition(asks, "unknown", "no log shows that it started from random weights")
    kind, step, loss = start
    return Condition(
        asks,
        _state(abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN),
        f"the log starts with a {kind} loss of {loss_text(loss)} at step {step} (random guess: "
        f"{RANDOM_LOSS:.3f})",
    )


def _ended(summary: dict[str, Any]) -> Condition:
    status, step = summary.get("status"), count(summary.get("step"))
    states: dict[Any, tuple[State, str]] = {
        "target_reached": ("met", f"it stopped at step {step} because the target was reached"),
        "steps_done": ("met", f"all {step} steps are done"),
        "running": ("unknown", f"it is still running at step {step}, or was killed without notice"),
        "interrupted": ("not met", f"it was interrupted at step {step} and can be resumed"),
        "failed": ("not met", f"it failed at step {step}; train.log says why"),
    }
    return Condition(
        "the run came to its end", *states.get(status, ("unknown", "its status is not recorded"))
    )


def measured_on(summary: dict[str, Any]) -> str:
    """How much of the corpus the last training loss covers."""
    if summary.get("train_loss") is None:
        return "not measured yet"
    return extent(
        summary.get("train_loss_windows"), (summary.get("config") or {}).get("max_tokens")
    )


def extent(windows: str | int | None, max_tokens: int | None) -> str:
    """How much of the corpus (or of its first `max_tokens` tokens) a measurement on these windows covers."""
    if windows == "all":
        return "measured on the whole excerpt" if max_tokens else "measured on the whole corpus"
    return (
        f"estimated on {windows:,} windows"
        if isinstance(windows, int)
        else "on an unrecorded part of the corpus"
    )


def corpus_caveat(summary: dict[str, Any]) -> str | None:
    """What must be said beside every result of a run that was not trained on the course's whole file; else None."""
    corpus, max_tokens = (
        summary.get("corpus") or {},
        (summary.get("config") or {}).get("max_tokens"),
    )
    if corpus.get("source") == "demo":
        return (
            "This run was trained on the demonstration corpus (Python's own documentation), because no input.txt was "
            "there: it does not count for the course."
        )
    if corpus.get("is_course_input") is False and not max_tokens:
        return (
            f"This run was trained on another text ({corpus.get('path')}), not on the course's input.txt: it does not "
            f"count for the course."
        )
    if max_tokens and corpus.get("is_course_input") is not True:
        return (
            f"This run saw an excerpt only: the first {count(corpus.get('tokens'))} tokens of {corpus.get('path')} "
            f"(max_tokens). It does not count for the course."
        )
    return None


def count(value: Any) -> str:
    """A whole number with thousands separators, or that it is not recorded."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def loss_text(value: float | None) -> str:
    """A loss with as many digits as it takes to tell it from the target."""
    if value is None:
        return UNKNOWN
    if abs(value - TARGET_LOSS) < 1e-5:
        return f"{value:.8f}"
    return f"{value:.6f}" if value < 1 else f"{value:.4f}"
