"""What the weights of best.pt show: whose architecture, how many, on which text, with which loss, grown from what.

Everything is counted and measured anew; what is on record is only compared.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import Evidence, misfits
from gpt2_nb_utils.results.verdict import COURSE_MIN_PARAMS, extent, loss_text
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.start import model_sizes

_AGREEMENT = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}
"""By how much, relatively, two measurements of one model may differ, by the coarser number format of the two.

fp32 keeps 24 significant bits, so only the order of the sums differs. fp16 keeps 11 and bf16 8: a logit near 20 is
rounded by up to 0.06 in bf16, which the mean over all predictions evens out for the most part. A record that was
improved to pass the target differs by far more, and the target is held against the loss measured anew in any case.
"""
_AGREEMENT_AT_START = {"fp32": 1e-5, "fp16": 1e-4, "bf16": 1e-4}
"""The same for random weights, whose logits are near 0, so that even bf16 hardly rounds them. Another text or seed differs by more."""
_UNRELATED = 6
"""Standard errors (1/√n) within which the correlation of two unrelated sets of n random weights stays."""
_UNTOUCHED = 0.5
"""Least correlation of the embedding rows of tokens that the text never holds: training moves them all nearly alike, 0.9 is usual, and a
part of the seed's weights mixed into others, which chance does not give either, leaves as little as its share: 0.05 of them leave 0.05."""
_NEVER_READ = 0.999
"""Least correlation of the position embeddings past the windows: no gradient reaches them, and weight decay only scales them."""
_UNRELATED_MATRIX = 3
"""The same as `_UNRELATED`, for each of many matrices: one in a thousand unrelated ones exceeds it by chance, and all must."""
_LARGE = 65_536
"""Entries from which on a matrix of a block is looked at by itself: in smaller ones chance hides what training left."""
_LARGEST_BATCH = 1_000_000
"""Windows in a step that a run can have taken."""
_START_TOKENS = 65_536
"""Tokens up to which the loss of random weights is measured again; a longer measurement at step 0 is left to the first batch."""


@asks(
    "best.pt loads as plain tensors", "weights_only=True loads it, so that nothing in the file runs"
)
def loads(evidence: Evidence) -> tuple[bool, str]:
    if isinstance(evidence.loaded, UserError):
        return False, str(evidence.loaded)
    return (
        True,
        f"{len(evidence.best['model'])} tensors, those of step {evidence.best['state'].get('step')}",
    )


@asks(
    "the weights are GPT-2's, by name and shape",
    "the tensors of GPT-2 as published, the head being the token embedding, stored once",
)
def architecture(evidence: Evidence) -> tuple[bool, str]:
    sizes = ", ".join(f"{name} {size}" for name, size in evidence.best["model_config"].items())
    return problems_or(misfits(evidence.best), f"all tensors fit {sizes}; no second head")


@asks(
    f"at least {COURSE_MIN_PARAMS:,} parameters",
    f"{COURSE_MIN_PARAMS:,} or more, counted in the tensors",
)
def parameters(evidence: Evidence) -> tuple[bool, str]:
    n = sum(tensor.numel() for tensor in evidence.best["model"].values())
    return n >= COURSE_MIN_PARAMS, f"{n:,} parameters"


@asks("the text is the course's input.txt", f"sha256 {COURSE_SHA256}")
def course_text(evidence: Evidence) -> tuple[bool, str]:
    corpus = evidence.corpus
    return (
        corpus.is_course_input,
        f"{corpus.path}: {corpus.chars:,} characters, sha256 {corpus.sha256}",
    )


@asks("the run saw all of its text, no excerpt", "every token of the text")
def whole_text(evidence: Evidence) -> tuple[bool, str]:
    seen, there = len(evidence.windows.tokens), len(evidence.tokens)
    return seen == there, f"{seen:,} of {there:,} tokens"


@asks(
    f"training loss below {TARGET_LOSS:g}, measured anew",
    f"below {TARGET_LOSS:g} over every prediction",
)
def below_target(evidence: Evidence) -> tuple[bool, str]:
    measured = evidence.measurement
    how = f"{measured.n_targets:,} predictions, in {evidence.precision.amp} on {evidence.precision.device_name}"
    if not measured.whole:
        raise CannotCheck(
            f"{loss_text(measured.mean())} over {how}: {len(measured.losses):,} of {measured.n_windows:,} windows "
            f"are a quick look, which decides nothing"
        )
    return measured.mean() < TARGET_LOSS, f"{loss_text(measured.mean())} over all {how}"


@asks("the loss on record is the one measured", "the same, but for rounding")
def recorded_loss(evidence: Evidence) -> tuple[bool, str]:
    recorded, windows = (
        evidence.summary["best_train_loss"],
        evidence.summary["best_train_loss_windows"],
    )
    if recorded is None:
        return False, "no training loss is on record"
    indices = evidence.windows.evenly_spread(0 if windows == "all" else windows)
    if not set(indices) <= set(evidence.measurement.losses):
        raise CannotCheck("a quick look has not measured the windows of the loss on record")
    anew = evidence.measurement.mean(indices)
    found = (
        f"{recorded:.6f} on record ({extent(windows, evidence.settings.max_tokens)}), {anew:.6f} on the same windows anew: "
        f"relative difference {abs(recorded - anew) / anew:.1e}"
    )
    return _agree(evidence, recorded, anew, _AGREEMENT), found


@asks(
    "the seed's random weights give the first losses on record",
    "the training loss of step 0 and the batch loss of step 1, but for rounding",
)
def first_losses(evidence: Evidence) -> tuple[bool, str]:
    settings, windows = evidence.settings, evidence.windows
    rows = {row.step: row for row in evidence.rows[:2]}
    measured_on = evidence.sections[0].measured.get(0, (0.0, "all"))[1]
    at_start = windows.evenly_spread(0 if measured_on == "all" else measured_on)
    if settings.batch_size * settings.grad_accum > _LARGEST_BATCH:
        raise ValueError(f"{settings.batch_size * settings.grad_accum:,} windows a step")
    first_batch = evidence.order.take(0, settings.batch_size * settings.grad_accum)
    recorded = [
        ("training loss of step 0", rows.get(0) and rows[0].train_loss, at_start),
        ("batch loss of step 1", rows.get(1) and rows[1].loss, first_batch),
    ]
    wanted = [
        each
        for each in recorded
        if each[2] is first_batch or len(at_start) * windows.seq_len <= _START_TOKENS
    ]
    indices = sorted({index for _, _, indices in wanted for index in indices})
    measured = evidence.measure(evidence.initial_model, indices, "measuring random weights, window")
    problems, said = [], []
    for name, loss, indices in wanted:
        anew = measured.mean(indices)
        said.append(
            f"{name} {'not' if loss is None else f'{loss:.5f}'} on record, {anew:.5f} with the weights of seed {settings.seed}"
        )
        if loss is None or not _agree(evidence, loss, anew, _AGREEMENT_AT_START):
            problems.append(said[-1])
    return problems_or(problems, "; ".join(said))


@asks(
    "best.pt grew from the seed's random weights",
    f"in every part a correlation with them that chance does not give, above {_UNTOUCHED} in the rows of "
    f"tokens that the text never holds, and 1 in positions past the windows",
)
@torch.no_grad()
def kinship(evidence: Evidence) -> tuple[bool, str]:
    if misfits(evidence.best):
        raise CannotCheck("the weights of best.pt are not those of a GPT-2 of its sizes")
    if evidence.best["model_config"] != model_sizes(evidence.settings).to_dict():
        raise CannotCheck("best.pt has other sizes than the settings of the run")
    first = dict(evidence.initial_model.named_parameters())
    problems, said, matrices = [], [], []
    for part, name, rows in _parts(evidence):
        now, then = evidence.best["model"][name].cpu()[rows], first[name].cpu()[rows]
        if now.numel() == 0 or part == name and now.numel() < _LARGE:
            continue
        found = _correlation(now, then)
        chance = 1 / math.sqrt(now.numel())
        least = {_UNSEEN: _UNTOUCHED, _PAST: _NEVER_READ}.get(
            part, (_UNRELATED_MATRIX if part == name else _UNRELATED) * chance
        )
        text = f"{found:.4f} in {part}" + (
            "" if part in (_UNSEEN, _PAST) else f" (unrelated ones: 0 ± {chance:.4f})"
        )
        if not found > least:
            problems.append(text)
        (matrices if part == name else said).append((found, text))
    texts = [text for _, text in said]
    if matrices:
        texts.append(f"{min(matrices)[1]}, the lowest of {len(matrices)} matrices")
    asked = f"correlation with the random weights of seed {evidence.settings.seed}: "
    # Nothing short of training again can tell weights that grew from others into which each of these parts was mixed.
    return problems_or(
        [asked + problems[0], *problems[1:]] if problems else [], asked + "; ".join(texts)
    )


_SEEN, _UNSEEN = "the rows of tokens that occur", "the rows of tokens that do not occur"
_READ, _PAST = "the positions of the windows", "the positions past them"


def _parts(evidence: Evidence) -> Iterator[tuple[str, str, Any]]:
    """The parts that are looked at, each (what it is, name of its tensor, which of its rows): a matrix of a block is called by its name."""
    unseen = torch.ones(evidence.initial_model.config.vocab_size, dtype=torch.bool)
    unseen[evidence.windows.tokens] = False
    lengths = [evidence.settings.seq_len]  # a run that went on may have had other windows before
    with contextlib.suppress(CannotCheck):
        lengths += [int(section.setting("seq_len") or 0) for section in evidence.sections]
    yield _SEEN, "transformer.wte.weight", ~unseen
    yield _UNSEEN, "transformer.wte.weight", unseen
    yield _READ, "transformer.wpe.weight", slice(0, min(lengths))
    yield _PAST, "transformer.wpe.weight", slice(max(lengths), None)
    for name, tensor in evidence.initial_model.named_parameters():
        if ".h." in name and tensor.dim() == 2:
            yield name, name, slice(None)


def _correlation(now: Tensor, then: Tensor) -> float:
    """The correlation of two tensors of one shape, each row less the mean of the rows.

    Training moves the embeddings of all tokens that do not occur the same way, far beyond where they began.
    """
    a, b = (tensor.double() - tensor.double().mean(dim=0) for tensor in (now, then))
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


def _agree(evidence: Evidence, recorded: float, anew: float, within: dict[str, float]) -> bool:
    """Whether two measurements differ by no more than the number format of the run, or that of the audit, may do."""
    formats = evidence.summary.get("amp"), evidence.precision.amp
    return abs(recorded - anew) <= anew * max(within.get(amp, within["fp32"]) for amp in formats)
