"""What best.pt's step left beside losses, made again from its weights: the samples, and the counts
of recall.

Of the other steps the weights are gone: what was sampled and counted there can only be trained
again (`replay`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.machine import environment
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.tokenization.bpe import decode
from gpt2_nb_utils.training.events import Event
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.training.samples import draw_samples, sample_prompts
from gpt2_nb_utils.training.verbatim import RecallStats, counted, opening_of, recall_stats

_RECALL_AGREES = (0.05, 0.01)
"""The share of openings (one at least) whose count may differ between two measurements of one
model, where one is in 16 bits, and where both are in fp32.

Where two tokens are almost equally likely, the order of the sums decides in fp32, and the rounding
in the other formats.
"""


@asks("best.pt writes the recorded samples", "the same texts, drawn again with the run's seed")
def samples(evidence: Evidence) -> tuple[bool, str]:
    step = evidence.best["state"]["step"]
    recorded = [sample for sample in evidence.history.samples if sample.step == step]
    if not recorded:
        every = evidence.settings_at(step).sample_every
        if every and (step % every == 0 or step == evidence.summary.step):
            raise CannotCheck(f"none of step {step}, at which best.pt was written, are on record")
        return True, f"none were due at step {step}, at which best.pt was written"
    settings = RunConfig.resolve({}, saved=evidence.best["config"])  # those of that step
    text = decode(evidence.windows.tokens.numpy()) if settings.max_tokens else evidence.corpus.text
    # Runs of earlier versions end without a greedy sample.
    final = any(one.final for one in recorded)
    prompts = sample_prompts(settings, text)
    try:
        again = draw_samples(evidence.model, settings, prompts, step, final)
    except UserError as error:  # its logits are not finite
        return False, f"best.pt cannot write them: {error}"
    claims = [_claimed(one) for one in again]
    problems = [
        f"prompt {one.prompt_index} of step {step} continues differently"
        for one in recorded
        if _claimed(one) not in claims
    ]
    if len(recorded) != len(again):
        problems.append(f"{len(recorded)} texts of step {step} instead of {len(again)}")
    start = evidence.history.starts[-1]
    if problems and not same_machine(evidence, start):
        raise CannotCheck(
            f"{problems[0]}, which decides nothing here: they were drawn on another machine "
            f"({start['device']}, torch {start['torch']}), which may round a draw the other way"
        )
    greedy = ", one of them greedy" if final else ""
    return problems_or(problems, f"{len(again)} texts of step {step}{greedy}, to the letter")


def _claimed(sample: Sample) -> Sample:
    """A sample without the name of a demonstration text, which earlier versions put beside it."""
    settings = {name: value for name, value in sample.settings.items() if name != "corpus"}
    return replace(sample, settings=settings)


def same_machine(evidence: Evidence, start: Event) -> bool:
    """Whether this machine computes to the last bit as that of a process did: the same processor,
    device and torch."""
    here = environment()["processor"], evidence.precision.device_name, torch.__version__
    return here == (start["environment"].get("processor"), start["device"], start["torch"])


@asks(
    "best.pt recalls what is on record",
    "the same count of openings and tokens, apart from rounding",
)
def recall(evidence: Evidence) -> tuple[bool, str]:
    if not evidence.run.recall:
        evidence.need_events()  # an earlier version did not count it
    measured, opening = evidence.best_measured, opening_of(evidence.windows)
    read = [evidence.measurement.get(index) for index in evidence.openings(measured["windows"])]
    if any(one is None or one.n_right is None for one in read):
        raise CannotCheck("a quick look has not read the openings of best.pt's measurement")
    again = recall_stats(counted([one.n_right for one in read], opening), opening)
    if again is None:
        return measured["recall"] is None, "no window is long enough"
    recorded = RecallStats(**measured["recall"])
    most = max(1, math.ceil(_RECALL_AGREES[evidence.in_fp32] * again.openings))  # openings
    ok = (
        replace(recorded, verbatim=again.verbatim, right=again.right) == again
        and abs(recorded.verbatim - again.verbatim) <= most
        and abs(recorded.right - again.right) * again.openings <= most * again.continued
    )
    return ok, f"{_words(recorded)} on record, {_words(again)} counted again"


def _words(known: RecallStats) -> str:
    return (
        f"{known.verbatim} of {known.openings} openings verbatim, "
        f"{known.right:.4g} of {known.continued} tokens right"
    )
