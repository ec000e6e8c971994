"""The course's target as a list of conditions, each checked against what a run recorded.

What was recorded is trusted here (`verify` does not trust it). Notebook 04, the report and the
README all take the verdict from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from gpt2_nb_utils.config import TARGET_LOSS, RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.records import CorpusFacts, Summary, TrainingLoss
from gpt2_nb_utils.wording import MARKS, count, duration, loss_text

COURSE_MIN_PARAMS = 124_000_000
SMOKE_TEST = "sanity"
"""The preset that shows that everything works, and is not meant to reach the target."""
FULL_RUN = "python -m gpt2_nb_utils run --preset full --out_dir out/full"
MOST_POSITIONS = 1024
"""Positions that a window of GPT-2 can read: embeddings of more are no part of the model that the
course asks for."""
RANDOM_LOSS = math.log(VOCAB_SIZE)
"""Loss of a model that gives every token the same probability: ln 50257 = 10.825 nats."""
RANDOM_MARGIN = 0.5
"""Random weights start this near RANDOM_LOSS: their logits, and batches, scatter a little."""


@dataclass(frozen=True)
class Condition:
    """One condition of the course's target.

    Attributes:
        asks: what it asks for.
        holds: whether the run meets it, as far as the records show; None where they do not, which
            does not count.
        shows: what the run shows, in words.
        instead: what meets it, where the run was not meant to: a smoke test is none of the target.
    """

    asks: str
    holds: bool | None
    shows: str
    instead: str = ""

    @property
    def state(self) -> str:
        """`met`, `not met` or `unknown`."""
        return {True: "met", False: "not met", None: "unknown"}[self.holds]


def conditions(run: Record) -> tuple[Condition, ...]:
    """The conditions of the course's target: the loss itself, then whether it counts."""
    loss, corpus, max_tokens = run.summary.graded, run.summary.corpus, run.setting("max_tokens")
    covers = measured_on(run, loss)
    if loss is None:
        below, whole = None, None
        shows = (
            f"the training loss has not been measured yet, so nothing can be said about the target "
            f"of {TARGET_LOSS:g}"
        )
    else:
        below, whole = loss.loss < TARGET_LOSS, None if loss.windows is None else loss.whole
        shows = (
            f"the training loss is {loss_text(loss.loss)} ({covers}), "
            f"{'below' if below else 'not below'} the target of {TARGET_LOSS:g}"
        )
    if corpus.is_course_input is True and corpus.sha256 == COURSE_SHA256:
        max_tokens = 0  # which the record of the text includes
    excerpt = f"it saw an excerpt of {max_tokens:,} tokens (max_tokens)" if max_tokens else ""
    of_target = (
        Condition(f"training loss below {TARGET_LOSS:g}", below, shows),
        Condition(
            "measured on every prediction of its text",
            whole,
            f"the loss is only {covers}" if whole is False else covers,
        ),
        Condition("on the course's input.txt", *_on_the_course_file(corpus)),
        Condition(
            "on all of its tokens",
            None if max_tokens is None else not max_tokens,
            "no excerpt" if max_tokens == 0 else excerpt or "max_tokens is not recorded",
        ),
        Condition(f"at least {COURSE_MIN_PARAMS:,} parameters", *_large_enough(run)),
    )
    has_learned = loss is not None and loss.loss < RANDOM_LOSS - RANDOM_MARGIN
    instead = full_run(run.summary) if run.summary.preset == SMOKE_TEST and has_learned else ""
    return (
        *(replace(condition, instead=instead) for condition in of_target),
        Condition("from random weights", *_from_random_weights(run)),
        Condition("the run came to its end", *_ended(run)),
    )


def full_run(smoke_test: Summary) -> str:
    """The command that reaches the target, and how long it takes at the speed of a smoke test."""
    full, speed = RunConfig.resolve({"preset": "full", "device": "cpu"}), smoke_test.tok_per_s
    seconds = full.steps * full.tokens_per_step / speed if speed else 0
    takes = f", in about {duration(seconds)} at the speed of this run" if speed else ""
    return f"This command trains until the target is reached{takes}: {FULL_RUN}"


def reached(conditions: Sequence[Condition]) -> bool:
    """Whether every condition is met."""
    return all(condition.holds for condition in conditions)


def smoke_test_passed(conditions: Sequence[Condition]) -> bool:
    """Whether the run is a smoke test that meets all that it was meant to."""
    return not reached(conditions) and all(each.holds or each.instead for each in conditions)


def mark(conditions: Sequence[Condition]) -> str:
    """The sign of the verdict."""
    return MARKS[reached(conditions) or smoke_test_passed(conditions)]


def headline(conditions: Sequence[Condition]) -> str:
    """The verdict in a few words."""
    if smoke_test_passed(conditions):
        return "Smoke test passed"
    return "Course target reached" if reached(conditions) else "Course target not reached"


def explanation(conditions: Sequence[Condition]) -> str:
    """The verdict in a sentence or two: the figure, and what keeps it from counting."""
    loss, *others = conditions
    missing = "; ".join(condition.shows for condition in others if not condition.holds)
    figure = f"{loss.shows[:1].upper()}{loss.shows[1:]}."
    if reached(conditions):
        return f"{figure} The model was trained from random weights on the course's whole file."
    if smoke_test_passed(conditions):
        return (
            f"{figure} A smoke test shows that everything works; it is not meant to reach the "
            f"target. {loss.instead}"
        )
    if not missing:
        return figure
    if not loss.holds:
        return f"{figure} It could not count anyway: {missing}."
    return f"{figure} It does not count as the course's target: {missing}."


def _on_the_course_file(corpus: CorpusFacts) -> tuple[bool | None, str]:
    if corpus.sha256 == COURSE_SHA256:
        return True, "the sha256 is that of the course's file"
    if corpus.source == "demo":
        return False, "it was trained on the demonstration corpus"
    if corpus.is_course_input is None and corpus.sha256 is None:
        return None, "its corpus is not recorded"
    return False, "its corpus is not the course's input.txt"


def _large_enough(run: Record) -> tuple[bool | None, str]:
    n_params = run.summary.n_params
    if n_params is None:
        return None, "the model size is not recorded"
    sizes = [run.setting(name) for name in ("block_size", "n_layer", "n_head", "n_embd")]
    if None in sizes:
        return None, f"{count(n_params)} parameters on record, without sizes"
    model = GPT2Config(*sizes)
    if n_params != (of_sizes := parameter_count(model)):
        return False, (
            f"{count(n_params)} parameters are on record, its sizes give {count(of_sizes)}"
        )
    n_params = counted_parameters(n_params, model.block_size, model.n_embd)
    return n_params >= COURSE_MIN_PARAMS, f"the model has {count(n_params)} parameters"


def counted_parameters(n_params: int, block_size: int, n_embd: int) -> int:
    """The parameters that count, of so many: without the embeddings of positions that no window of
    GPT-2 reads."""
    return n_params - n_embd * max(0, block_size - MOST_POSITIONS)


def _from_random_weights(run: Record) -> tuple[bool | None, str]:
    """Whether the log starts where random weights start (`verify` looks closer)."""
    # As recorded: `run.config` says how the *next* command would resume.
    resume, out_dir = (str(run.summary.config.get(name) or "") for name in ("resume", "out_dir"))
    if resume not in ("", "auto") and PurePath(resume).parent != PurePath(out_dir, "checkpoints"):
        return None, "it was resumed from a named checkpoint (resume)"
    for row in run.rows:
        # The batch loss of step 1 is that of the weights before their first update.
        kind, loss = "batch", row.loss
        if row.step == 0 and row.train_loss is not None:
            kind, loss = "training", row.train_loss
        if row.step <= 1 and loss is not None:
            return abs(loss - RANDOM_LOSS) <= RANDOM_MARGIN, (
                f"the log starts with a {kind} loss of {loss_text(loss)} at step {row.step} "
                f"(random guess: {RANDOM_LOSS:.3f})"
            )
    return None, "no log shows that it started from random weights"


def _ended(run: Record) -> tuple[bool | None, str]:
    step = count(run.summary.step)
    states = {
        "target_reached": (True, f"it stopped at step {step} because the target was reached"),
        "steps_done": (True, f"all {step} steps are done"),
        "running": (None, f"it is still running at step {step}, or was killed without notice"),
        "interrupted": (False, f"it was interrupted at step {step} and can be resumed"),
        "failed": (False, f"it failed at step {step}; train.log says why"),
    }
    return states.get(run.summary.status, (None, "its status is not recorded"))


def measured_on(run: Record, loss: TrainingLoss | None) -> str:
    """How much of the corpus, or of the excerpt that the run trained on, a training loss covers."""
    if loss is None:
        return "not measured yet"
    extent = loss.extent(run.setting("max_tokens"))
    return f"measured on the {extent}" if loss.whole else extent


def corpus_caveat(run: Record) -> str | None:
    """What must be said beside every result of a run that did not see the course's whole file."""
    corpus, max_tokens = run.summary.corpus, run.setting("max_tokens")
    if corpus.source == "demo":
        return (
            "This run was trained on the demonstration corpus (Python's own documentation), "
            "because no input.txt was there: it does not count for the course."
        )
    if max_tokens and corpus.is_course_input is not True:
        return (
            f"This run saw an excerpt only: the first {count(corpus.tokens)} tokens of "
            f"{corpus.path} (max_tokens). It does not count for the course."
        )
    if corpus.is_course_input is False:
        return (
            f"This run was trained on another text ({corpus.path}), not on the course's input.txt: "
            f"it does not count for the course."
        )
    return None
