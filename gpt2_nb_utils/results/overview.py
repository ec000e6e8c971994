"""What notebook 04 says in words and tables: which run this is, how far it came, its samples and the verdict."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

from IPython.display import HTML

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures.html import beside, box, note, say, table
from gpt2_nb_utils.results.facts import RunFacts
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.results.verdict import (
    RANDOM_LOSS,
    Condition,
    corpus_caveat,
    explanation,
    headline,
    reached,
)
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.tokenization.lower_bound import loss_lower_bound
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.wording import MARKS, count, loss_text, plural

_FLOOR_LENGTHS = (128, 256, 512, 1024)
_UNFINISHED = {
    "failed": "ended in an error",
    "interrupted": "was interrupted",
    "running": "is still running, or was killed",
}


def caveats(run: Record) -> list[str]:
    """What must be said before any figure of this run is read, a sentence each."""
    summary, config = run.summary, run.config
    caveat, how = corpus_caveat(run), _UNFINISHED.get(summary.status or "")
    said = [caveat] if caveat else []
    if how:
        said.append(f"This run {how} at step {count(summary.step)} of {config.steps:,}.")
    best, epoch = summary.best_train_loss, summary.epoch
    if not summary.step:
        said.append("Not one step of training was done: what follows shows random weights.")
    elif best is not None and best > config.target_loss and epoch is not None and epoch < 1:
        share = f"{epoch:.1%}" if epoch < 0.995 else "nearly all"
        said.append(
            f"This was a short run: {count(summary.step)} steps saw {share} of the text once. It "
            f"has learned only a little, and samples and recall below will be poor. That is no error: "
            f"training to the target takes many epochs."
        )
    return said + list(run.missing)


def notes(sentences: Sequence[str]) -> HTML:
    """Sentences that should not be missed, a box each."""
    if not sentences:
        return say("A finished run on the whole of the course's input.txt.")
    return HTML("".join(map(note, sentences)))


def facts(run: Record) -> HTML:
    """The run in a table: data, model, time, losses."""
    rows = [("Run directory", str(run.directory)), *RunFacts(run).table()]
    return table(("", "this run"), rows)


def lower_bounds(run: Record) -> HTML:
    """The lower bound of the training loss by length of the windows, on the tokens of this run; its own `seq_len` in bold."""
    try:
        tokens = run.windows.tokens
    except UserError as error:
        return say(f"The lower bound is not shown: {error}.")
    own, target = run.config.seq_len, run.config.target_loss
    lengths = {own, *(length for length in _FLOOR_LENGTHS if length <= len(tokens))}
    bound_of = {
        length: loss_lower_bound(TokenDataset(tokens, length)) for length in sorted(lengths)
    }
    rows: list[list[Any]] = [
        [f"{length:,}", loss_text(bound), f"{bound / target:.1%}"]
        for length, bound in bound_of.items()
    ]
    here = list(bound_of).index(own)
    rows[here] = [HTML(f"<b>{cell}</b>") for cell in (f"{own:,} (this run)", *rows[here][1:])]
    shown = table(("seq_len", "lower bound (nats per token)", "share of the target"), rows)
    if bound_of[own] < target:
        return shown
    return HTML(
        note(f"Windows of {own:,} tokens cannot reach the target of {target:g}: raise seq_len.")
        + shown.data
    )


def yardsticks(run: Record, frequencies: float, loss: float, extent: str) -> HTML:
    """The run's loss among losses that mean something, highest first.

    Args:
        frequencies: the loss of a model that knows token frequencies only
            (`measure.unigram_entropy`).
        loss: the training loss of the run's model.
        extent: on what that was measured.
    """
    known = [
        ("blind guess among 50,257 tokens", RANDOM_LOSS),
        ("knows how often each token occurs, nothing else", frequencies),
        ("the right token gets probability ½ each time", math.log(2)),
        ("target", run.config.target_loss),
    ]
    rows = [(name, f"{value:.4f}", f"{math.exp(-value):.3%}") for name, value in known]
    here = (
        HTML(f"<b>this run's model</b> on {extent}"),
        HTML(f"<b>{loss:.4f}</b>"),
        HTML(f"<b>{math.exp(-loss):.3%}</b>"),
    )
    rows.insert(sum(value >= loss for _, value in known), here)
    return table(("model", "loss (nats per token)", "probability of the right token"), rows)


def what_it_learned(loss: float, frequencies: float, target: float) -> str:
    """What a training loss says about a model, in a sentence.

    Args:
        loss: nats per token.
        frequencies: the loss of a model that knows token frequencies only.
        target: the training loss to reach.
    """
    start = f"A loss of {loss:.3f} nats"
    if loss > RANDOM_LOSS - 0.5:
        return f"{start} is that of a blind guess: the model has learned nothing yet."
    if loss > frequencies:
        return (
            f"{start} is below a blind guess ({RANDOM_LOSS:.3f}), but above {frequencies:.3f}: the model does "
            f"not even know yet how often each token occurs. It has learned only a little."
        )
    if loss > frequencies / 2:
        return (
            f"{start} is below {frequencies:.3f}: the model has learned how often tokens occur, and something "
            f"about which token follows which. It is far from knowing the text."
        )
    if loss > math.log(2):
        return (
            f"{start} shows that the model knows much of how this text goes on, but not by heart."
        )
    if loss >= target:
        return f"{start}: the model knows most of these tokens by heart; the target is {target:g}, over the whole text."
    return f"{start} is below the target of {target:g}: the model knows these tokens by heart."


def samples_shown(samples: Sequence[Sample]) -> HTML:
    """The first and the last generation for each prompt, side by side, the prompt in bold; below them the greedy one."""
    if not samples:
        return say("This run has no samples.")
    steps = sorted({sample.step for sample in samples})
    names = {steps[0]: "first", steps[-1]: "last"}
    if len(steps) == 1:
        names = {steps[0]: "the only ones"}
    columns: dict[int, dict[int, tuple[str, str]]] = {}
    for one in samples:
        if one.step in names:
            prompt = (
                "prompt 1, the greedy continuation" if one.final else f"prompt {one.prompt_index}"
            )
            caption = f"{prompt}, after {plural(one.step, 'step')} ({names[one.step]})"
            columns.setdefault(one.prompt_index, {})[one.step] = caption, box(_continued(one))
    return HTML(
        "".join(
            beside(of_prompt[step] for step in sorted(of_prompt))
            for _, of_prompt in sorted(columns.items())
        )
    )


def _continued(sample: Sample) -> str:
    given = sample.prompt if sample.text.startswith(sample.prompt) else ""
    # A model that has just begun may say little else than line ends: many in a row are counted instead.
    said = re.sub(
        r"\n{4,}", lambda ends: f"\n\n⋮ ({len(ends[0])} line ends)\n\n", sample.text[len(given) :]
    )
    return f"<b>{html.escape(visible(given))}</b>{html.escape(visible(said))}"


def verdict_table(conditions: Sequence[Condition]) -> HTML:
    """The verdict in a line, its reasons, and every condition with what the run shows."""
    mark = "✓" if reached(conditions) else "✗"
    rows = [
        (
            condition.asks,
            f"{MARKS[condition.state]} {condition.state}".replace(" ", "\u00a0"),
            condition.shows,
        )
        for condition in conditions
    ]
    return HTML(
        note(f"{mark} {headline(conditions)}. {explanation(conditions)}")
        + table(("condition", "", "what the run shows"), rows).data
    )
