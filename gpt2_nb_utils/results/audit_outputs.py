"""What a run wrote on its way beside losses: the samples in samples.txt and the counts of recall in recall.csv.

Those of best.pt's step are made again from its weights. Of the others the weights are gone: they can only be held against
the log, which says when something was written, and against what is possible.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.machine import environment
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.tokenization.bpe import decode
from gpt2_nb_utils.training.samples import draw_samples, sample_prompts
from gpt2_nb_utils.training.samples_file import Sample
from gpt2_nb_utils.training.verbatim import Recalled, counted, opening_of, recalled_of

_RECALL_AGREES = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.05}
"""The share of openings (one at least) whose count may differ between two measurements of one model.

Where two tokens are almost equally likely, the order of the sums decides in fp32, and the rounding in the other formats.
"""


@asks(
    "best.pt writes the recorded samples",
    "the same texts, drawn again with the run's seed; those of other steps where the run drew some",
)
def samples(evidence: Evidence) -> tuple[bool, str]:
    step = evidence.best["state"]["step"]
    of_step = [sample for sample in evidence.run.samples if sample.step == step]
    recorded = {sample.prompt_index: _claimed(sample) for sample in of_step}
    if not recorded and _may_have_drawn(evidence, step):
        raise CannotCheck(
            f"samples/samples.txt holds none of step {step}, at which best.pt was written"
        )
    misplaced = _misplaced(evidence)
    if misplaced or not recorded:
        return problems_or(
            misplaced,
            f"none of step {step}, at which best.pt was written, for the run drew none there; those of other steps where it drew some",
        )
    settings = RunConfig.resolve(
        {}, saved=evidence.best["config"]
    )  # a resumed run may have another prompt by now
    text = decode(evidence.windows.tokens.numpy()) if settings.max_tokens else evidence.corpus.text
    # Runs of earlier versions end without a greedy sample.
    try:
        again = draw_samples(
            evidence.model,
            settings,
            sample_prompts(settings, text),
            step,
            final=any(one.final for one in of_step),
        )
    except UserError as error:  # its logits are not finite
        return False, f"best.pt cannot write them: {error}"
    problems = [
        f"prompt {one.prompt_index} of step {step} goes on otherwise"
        for one in again
        if recorded.get(one.prompt_index) != _claimed(one)
    ]
    problems += [
        f"prompt {number} of step {step} is none of the run's"
        for number in recorded.keys() - {one.prompt_index for one in again}
    ]
    if problems and not _like_the_run(evidence):
        raise CannotCheck(
            f"{len(problems)} of {len(again)} texts differ, which decides nothing here: they were drawn on another "
            f"machine ({evidence.summary.get('device')}, torch {evidence.summary.get('torch')}), which may round a "
            f"draw the other way"
        )
    greedy = ", one of them greedy" if again[-1].final else ""
    return problems_or(problems, f"{len(again)} texts of step {step}{greedy}, to the letter")


def _claimed(sample: Sample) -> tuple[str, str, dict[str, Any]]:
    """What a sample says of itself, but for the name of a demonstration text."""
    return (
        sample.prompt,
        sample.text,
        {name: value for name, value in sample.settings.items() if name != "corpus"},
    )


def _misplaced(evidence: Evidence) -> list[str]:
    """Samples of steps at which the run drew none, or that do not go on with their prompt; and those that it drew and are not there."""
    written = Counter((sample.step, sample.prompt_index) for sample in evidence.run.samples)
    problems = [
        f"prompt {number} of step {step} is there {n} times"
        for (step, number), n in written.items()
        if n > 1
    ]
    problems += [
        f"prompt {one.prompt_index} of step {one.step} is not how its text begins"
        for one in evidence.run.samples
        if not one.text.startswith(one.prompt)
    ]
    possible, due = {evidence.summary["step"]}, set()
    sections = evidence.sections
    for section, after in zip(sections, [*sections[1:], None]):
        every = int(section.setting("sample_every") or 0)
        if every > 0:
            drawn = range(
                every * max(1, -(-(section.resumed_at or 0) // every)), section.last + 1, every
            )
            possible |= {section.last, *drawn}
            # Those of the last step may have been drawn by the next process, or not at all; a kill takes what no checkpoint holds.
            due |= {
                step
                for step in drawn
                if step < section.last and (after is None or step <= (after.resumed_at or 0))
            }
    steps = {step for step, _ in written}
    problems += [f"the run drew no samples at step {step}" for step in sorted(steps - possible)]
    return problems + [f"the samples of step {step} are missing" for step in sorted(due - steps)]


def _may_have_drawn(evidence: Evidence, step: int) -> bool:
    """Whether some process of the run may have drawn samples at a step: where they were due, or where it ended."""
    for section in evidence.sections:
        every = int(section.setting("sample_every") or 0)
        if (
            every > 0
            and (section.resumed_at or 0) <= step <= section.last
            and (step % every == 0 or step == section.last)
        ):
            return True
    return False


def _like_the_run(evidence: Evidence) -> bool:
    """Whether this machine computes to the last bit as that of the run did: the same processor, device and torch."""
    recorded = (
        evidence.run.environment.get("processor"),
        evidence.summary.get("device"),
        evidence.summary.get("torch"),
    )
    return recorded == (
        environment()["processor"],
        evidence.precision.device_name,
        torch.__version__,
    )


@asks(
    "recall grew as recorded",
    "a row of recall.csv for each measurement, its counts possible, and those of best.pt counted anew",
)
def recall(evidence: Evidence) -> tuple[bool, str]:
    rows, expected = evidence.recall, _measured_since_recall_was_counted(evidence)
    written, measured = Counter(row.step for row in rows), Counter(step for step, _ in expected)
    problems = [
        f"step {step} has {_times(written[step], 'row')} for {_times(measured[step], 'measurement')}"
        for step in sorted(written.keys() | measured.keys())
        if written[step] != measured[step]
    ]
    if not problems and [row.step for row in rows] != [step for step, _ in expected]:
        problems.append("the rows are not in the order of the steps")
    if not problems:
        problems = [
            f"step {row.step} cannot have {_words(row.recalled)}"
            for row, (_, windows) in zip(rows, expected)
            if not _possible(
                row.recalled, (len(evidence.openings(windows)), *opening_of(evidence.windows))
            )
        ]
    if problems:
        return problems_or(problems, "")
    said, problems = [], []
    for row, (step, windows) in zip(rows, expected):
        if step == evidence.best["state"]["step"]:
            anew = _counted_anew(evidence, windows)
            said.append(
                f"step {step}, that of best.pt: {_words(row.recalled)} on record, {_words(anew)} counted anew"
            )
            problems += [] if _agree(evidence, row.recalled, anew) else said[-1:]
    return problems_or(problems, "; ".join([f"{_times(len(rows), 'row')}, all possible", *said]))


def _measured_since_recall_was_counted(evidence: Evidence) -> list[tuple[int, int | str]]:
    """The measurements that counted recall: all, but for those of an earlier version with whose run this one went on."""
    measured = [
        (step, windows) for step, windows in evidence.measurements if evidence.openings(windows)
    ]
    first = evidence.recall[0].step
    before = max((step for step, _ in measured if step < first), default=first)
    went_on = any(
        section.resumed_at is not None and before <= section.resumed_at < first
        for section in evidence.sections
    )
    return [each for each in measured if each[0] >= first or not went_on]


def _possible(known: Recalled, openings: tuple[int, int, int]) -> bool:
    """Whether so many of these openings, each of so many tokens given and continued, can have been continued so far."""
    n, _, R = openings
    right = known.right * n  # tokens in all: R of each that is verbatim, fewer of the others
    whole = math.isfinite(right) and abs(right - round(right)) <= 1e-6 * (
        1 + right
    )  # the seven digits of the file
    return (
        (known.openings, known.given, known.continued) == openings
        and whole
        and known.verbatim * R
        <= round(right)
        <= known.verbatim * R + (n - known.verbatim) * (R - 1)
    )


def _counted_anew(evidence: Evidence, windows: int | str) -> Recalled:
    openings, opening, n_right = (
        evidence.openings(windows),
        opening_of(evidence.windows),
        evidence.measurement.n_right,
    )
    if not set(openings) <= set(n_right):
        raise CannotCheck("a quick look has not read the openings of best.pt's row")
    return recalled_of(counted([n_right[index] for index in openings], opening), opening)


def _agree(evidence: Evidence, recorded: Recalled, anew: Recalled) -> bool:
    formats = evidence.summary.get("amp"), evidence.precision.amp
    most = max(
        1,
        *(
            math.ceil(_RECALL_AGREES.get(amp, _RECALL_AGREES["fp32"]) * anew.openings)
            for amp in formats
        ),
    )  # openings
    return (
        abs(recorded.verbatim - anew.verbatim) <= most
        and abs(recorded.right - anew.right) * anew.openings <= most * anew.continued
    )


def _words(known: Recalled) -> str:
    return f"{known.verbatim} of {known.openings} openings verbatim, {known.right:.4g} of {known.continued} tokens right"


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
