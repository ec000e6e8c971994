"""What notebook 04 says in words and tables: which run, how far it came, samples, the verdict."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures.html import HTML, beside, note, say, table
from gpt2_nb_utils.results.facts import RunFacts
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.results.verdict import (
    RANDOM_LOSS,
    Condition,
    corpus_caveat,
    explanation,
    headline,
    mark,
)
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.tokenization.lower_bound import loss_lower_bound
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.wording import MARKS, count, loss_text, plural

_LENGTHS = (128, 256, 512, 1024)
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
            f"has learned only a little, and samples and recall below will be poor. That is no "
            f"error: training to the target takes many epochs."
        )
    return said + run.notes + list(run.missing)


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
    """The lower bound of the training loss by length of the windows, on the tokens of this run.

    Its own `seq_len` is in bold.
    """
    try:
        tokens = run.windows.tokens
    except UserError as error:
        return say(f"The lower bound is not shown: {error}.")
    own, target = run.config.seq_len, run.config.target_loss
    shown, rows = "", []
    for length in sorted({own, *(each for each in _LENGTHS if each <= len(tokens))}):
        bound = loss_lower_bound(TokenDataset(tokens, length))
        row = [f"{length:,}", loss_text(bound), f"{bound / target:.1%}"]
        if length == own:
            row[0] += " (this run)"
            row = [HTML(f"<b>{cell}</b>") for cell in row]
            if bound >= target:
                shown = note(
                    f"Windows of {own:,} tokens cannot reach the target of {target:g}: raise "
                    f"seq_len."
                )
        rows.append(row)
    head = ("seq_len", "lower bound (nats per token)", "share of the target")
    return HTML(shown + table(head, rows).data)


def yardsticks(run: Record, frequencies: float, loss: float, extent: str) -> HTML:
    """The run's loss among losses that mean something, highest first.

    Args:
        frequencies: the loss of a model that knows token frequencies only
            (`measure.unigram_entropy`).
        loss: the training loss of the run's model.
        extent: on what that was measured.
    """
    own = f"this run's model on {extent}"
    losses = {
        "blind guess among 50,257 tokens": RANDOM_LOSS,
        "knows how often each token occurs, nothing else": frequencies,
        "the right token gets probability ½ each time": math.log(2),
        "target": run.config.target_loss,
        own: loss,
    }
    rows = []
    for name in sorted(losses, key=losses.__getitem__, reverse=True):
        cells = (name, f"{losses[name]:.4f}", f"{math.exp(-losses[name]):.3%}")
        rows.append([HTML(f"<b>{cell}</b>") for cell in cells] if name == own else cells)
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
            f"{start} is below a blind guess ({RANDOM_LOSS:.3f}), but above {frequencies:.3f}: the "
            f"model does not even know yet how often each token occurs. It has learned only a "
            f"little."
        )
    if loss > frequencies / 2:
        return (
            f"{start} is below {frequencies:.3f}: the model has learned how often tokens occur, "
            f"and something about which token follows which. It is far from knowing the text."
        )
    if loss > math.log(2):
        return f"{start} shows that the model knows much of how this text continues, but has not memorised it."
    if loss >= target:
        return (
            f"{start}: the model has memorised most of these tokens; the target is {target:g}, "
            f"over the whole text."
        )
    return f"{start} is below the target of {target:g}: the model has memorised these tokens."


def samples_shown(samples: Sequence[Sample]) -> HTML:
    """The first and the last generation for each prompt, side by side, the prompt in bold.

    The greedy one stands below them.
    """
    if not samples:
        return say("This run has no samples.")
    steps = [sample.step for sample in samples]
    names = {min(steps): "first", max(steps): "last"}
    if len(names) == 1:
        names = {steps[0]: "the only ones"}
    columns: dict[int, list[tuple[str, str]]] = {}
    for one in sorted(samples, key=lambda sample: (sample.prompt_index, sample.step)):
        if one.step in names:
            prompt = (
                "prompt 1, the greedy continuation" if one.final else f"prompt {one.prompt_index}"
            )
            caption = f"{prompt}, after {plural(one.step, 'step')} ({names[one.step]})"
            columns.setdefault(one.prompt_index, []).append((caption, _continued(one)))
    return HTML("".join(map(beside, columns.values())))


def _continued(sample: Sample) -> str:
    given = sample.prompt if sample.text.startswith(sample.prompt) else ""
    # A model that has just begun may write little but line breaks: many in a row are counted.
    written = re.sub(
        r"\n{4,}",
        lambda breaks: f"\n\n⋮ ({len(breaks[0])} line breaks)\n\n",
        sample.text.removeprefix(given),
    )
    return f"<b>{html.escape(visible(given))}</b>{html.escape(visible(written))}"


def verdict_table(conditions: Sequence[Condition]) -> HTML:
    """The verdict in a line, its reasons, and every condition with what the run shows."""
    rows = [
        (
            condition.asks,
            MARKS[condition.state]
            + ("" if condition.holds else f"\u00a0{condition.state}".replace(" ", "\u00a0")),
            condition.shows,
        )
        for condition in conditions
    ]
    return HTML(
        note(f"{mark(conditions)} {headline(conditions)}. {explanation(conditions)}")
        + table(("condition", "", "what the run shows"), rows).data
    )
