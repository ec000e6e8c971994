"""What the weights of best.pt show: whose architecture, how many, on which text, with which loss,
grown from what.

Everything is counted and measured again; what is on record is only compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.evidence import (
    Evidence,
    losses_of,
    shape_problems,
    windows_per_step,
)
from gpt2_nb_utils.results.verdict import COURSE_MIN_PARAMS, MOST_POSITIONS, counted_parameters
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.optimizer import learning_rate_factor
from gpt2_nb_utils.wording import loss_text

_AGREEMENT = (1e-2, 1e-4)
"""By how much, relatively, two measurements of one model may differ where one is in 16 bits, and
where both are in fp32.

fp32 keeps 24 significant bits, so only the order of the sums differs. fp16 keeps 11 and bf16 8: a
logit near 20 is rounded by up to 0.06 in bf16, which the mean over all predictions evens out for
the most part. A record that was improved to pass the target differs by far more, and the target is
held against the loss measured again in any case.
"""
LOWEST = 1e-2
"""Loss below which differences count as if it were this one: rounding does not shrink with it."""
_AGREEMENT_AT_START = (1e-4, 1e-5)
"""The same for random weights, whose logits are near 0, so that even bf16 hardly rounds them.
Another text or seed differs by more."""
_ERRORS = 5
"""Standard errors within which the mean of some predictions stays near that of all."""
_SHARE = 0.15
"""Least share of the seed's weights that training leaves in a part, before weight decay, by least
squares.

Training adds to the weights and hardly takes the first ones away: honest runs keep 0.48 and more
(two layers of 256 to the target, AdamW and Muon), a mixture of 3 % of the seed's weights into
others 0.03, however large these are.
"""
_UNRELATED = 6
"""Standard errors (1/√n) within which the correlation of two unrelated sets of n random weights
stays."""
_LEAST = {"seen": 0.1, "read": 0.2, "matrix": 0.02}
"""Least correlation of large parts. GPT-2 124M trained to the target has 0.34, 0.63 and (its lowest
matrix) 0.062."""
_ALWAYS = {"unseen": 0.5, "past": 0.999}
"""Least correlation, however small the part, of the embedding rows of tokens that the text never
holds, which training moves all nearly alike (0.9 is usual), and of the position embeddings past the
windows, which no gradient reaches. A part of the seed's weights mixed into others, which chance
does not give either, leaves as little as its share."""
_LARGE = 65_536
"""Entries from which on a part is large: in a smaller one, chance hides what training left of the
seed's weights."""
_FEWEST = 512
"""Entries below which a part says nothing."""
_START_TOKENS = 65_536
"""Tokens up to which the loss of random weights is measured again; a longer measurement at step 0
is left to the first batch."""


@asks(
    "best.pt loads as plain tensors", "weights_only=True loads it, so that nothing in the file runs"
)
def loads(evidence: Evidence) -> tuple[bool, str]:
    if isinstance(evidence.loaded, UserError):
        return False, str(evidence.loaded)
    best = evidence.best
    return True, f"{len(best['model'])} tensors, those of step {best['state']['step']}"


@asks(
    "the weights are GPT-2's, by name and shape",
    "the tensors of GPT-2 as published, the head being the token embedding, stored once",
)
def architecture(evidence: Evidence) -> tuple[bool, str]:
    sizes = ", ".join(f"{name} {size}" for name, size in evidence.best["model_config"].items())
    return problems_or(shape_problems(evidence.best), f"all tensors fit {sizes}; no second head")


@asks(
    f"at least {COURSE_MIN_PARAMS:,} parameters",
    f"{COURSE_MIN_PARAMS:,} or more, counted in the tensors, of positions the first "
    f"{MOST_POSITIONS:,} at most",
)
def parameters(evidence: Evidence) -> tuple[bool, str]:
    tensors = evidence.best["model"].values()
    sizes = evidence.best["model_config"]
    n = counted_parameters(
        sum(tensor.numel() for tensor in tensors), sizes["block_size"], sizes["n_embd"]
    )
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
    f"training loss below {TARGET_LOSS:g}, measured again",
    f"below {TARGET_LOSS:g} over every prediction",
)
def below_target(evidence: Evidence) -> tuple[bool, str]:
    measurement, windows, precision = evidence.measurement, evidence.windows, evidence.precision
    loss = losses_of(measurement).mean().item()
    if len(measurement) < len(windows):
        raise CannotCheck(
            f"{loss_text(loss)} over {len(measurement):,} of {len(windows):,} windows: a quick "
            f"look, which decides nothing"
        )
    return loss < TARGET_LOSS, (
        f"{loss_text(loss)} over all {windows.n_targets:,} predictions, in {precision.amp} on "
        f"{precision.device_name}"
    )


@asks("the loss on record is the one measured", "the same, apart from rounding")
def recorded_loss(evidence: Evidence) -> tuple[bool, str]:
    recorded, measurement = evidence.summary.best_measured, evidence.measurement
    if recorded is None:
        return False, "no training loss is on record"
    indices = evidence.chosen(recorded.windows)
    same_windows = set(indices) <= set(measurement)
    losses = losses_of(measurement, indices if same_windows else None)
    again = losses.mean().item()
    difference = abs(again - recorded.loss)
    about = max(again, LOWEST)
    within = about * _AGREEMENT[evidence.in_fp32]
    if same_windows:
        on = f"on the same windows now: relative difference {difference / about:.1e}"
    else:
        n_recorded = len(indices) * evidence.windows.seq_len
        error = losses.std().item() * math.sqrt(1 / len(losses) + 1 / n_recorded)
        # A few windows often miss the rare tokens of high loss, so a lower mean says nothing.
        difference = again - recorded.loss
        within += _ERRORS * error
        on = f"± {error:.6f} on {len(measurement):,} windows now"
    extent = recorded.extent(evidence.settings.max_tokens)
    return difference <= within, f"{recorded.loss:.6f} on record ({extent}), {again:.6f} {on}"


@asks(
    "the seed's random weights give the first losses on record",
    "the training loss of step 0 and the batch loss of step 1, apart from rounding",
)
def first_losses(evidence: Evidence) -> tuple[bool, str]:
    settings, windows = evidence.settings_at(1), evidence.windows
    first, step_1 = evidence.first_measured, evidence.steps.get(1, {})
    batch = evidence.order.take(0, windows_per_step(settings))
    wanted = {"batch loss of step 1": (step_1.get("loss"), batch)}
    at_start = evidence.chosen(first["windows"])
    if len(at_start) * windows.seq_len <= _START_TOKENS:
        wanted["training loss of step 0"] = first["train_loss"], at_start
    needed = sorted({index for _, indices in wanted.values() for index in indices})
    measured = evidence.measure(evidence.initial_model, needed, "measuring random weights, window")
    problems, said = [], []
    for name, (loss, indices) in wanted.items():
        again = losses_of(measured, indices).mean().item()
        said.append(
            f"{name} {loss} on record, {again:.5f} with the weights of seed {settings.seed}"
        )
        within = again * _AGREEMENT_AT_START[evidence.in_fp32]
        if loss is None or not abs(loss - again) <= within:
            problems.append(said[-1])
    return problems_or(problems, "; ".join(said))


@asks(
    "best.pt developed from the seed's random weights",
    f"every part correlates with them more than chance explains, in large ones at least "
    f"{_SHARE} of them left, above {_ALWAYS['unseen']} in the rows of tokens that the text never "
    f"holds, and 1 in positions past the windows",
)
@torch.no_grad()
def from_seed(evidence: Evidence) -> tuple[bool, str]:
    if shape_problems(evidence.best):
        raise CannotCheck("the weights of best.pt are not those of a GPT-2 of its sizes")
    settings, step = evidence.settings, evidence.best["state"]["step"]
    if evidence.best["model_config"] != GPT2Config.of(settings).to_dict():
        raise CannotCheck("best.pt has other sizes than the settings of the run")
    first = dict(evidence.initial_model.named_parameters())
    # In a step, weight decay takes lr · weight_decay of a weight.
    rates = sum(learning_rate_factor(done, settings) for done in range(step))
    problems: list[str] = []
    lowest: dict[str, tuple[float, str]] = {}  # of each kind: there are many matrices
    for kind, what, name, rows in _parts(evidence):
        now, then = evidence.best["model"][name].cpu()[rows], first[name].cpu()[rows]
        if now.numel() < (_LARGE if kind == "matrix" else _FEWEST):
            continue
        if len(now) == 1 or kind in ("seen", "read") and evidence.too_few_tokens:
            continue
        lr = settings.lr if kind == "matrix" else settings.embedding_lr or settings.lr
        lr = settings.position_lr or lr if kind in ("read", "past") else lr
        ok, r, text = grown(kind, now, then, math.exp(-lr * settings.weight_decay * rates))
        part = r, f"{text} in {what}"
        problems += [] if ok else [part[1]]
        lowest[kind] = min(part, lowest.get(kind, part))
    if not lowest:
        few = evidence.too_few_tokens or "the model is too small"
        raise CannotCheck(f"{few} to tell what its weights developed from")
    said = "; ".join(text for _, text in lowest.values())
    # Only training again (--replay) can tell weights that grew from others into which every part
    # was mixed in full.
    return problems_or(
        problems, f"correlation with the random weights of seed {settings.seed}: {said}"
    )


def grown(kind: str, now: Tensor, then: Tensor, decay: float = 1.0) -> tuple[bool, float, str]:
    """Whether weights can have grown from others of the same shape (n, m).

    Each row is taken less the mean of the rows: training moves the embeddings of all tokens that do
    not occur the same way, far beyond where they began.

    Args:
        kind: of rows of tokens `seen` or `unseen`, of positions `read` or `past`, or a `matrix` of
            a block.
        decay: the share of a weight that weight decay has left.

    Returns:
        Whether they can, the correlation, and both figures in words.
    """
    a, b = (tensor.double() - tensor.double().mean(dim=0) for tensor in (now, then))
    ours, theirs, both = ((x * y).sum().item() for x, y in ((a, a), (b, b), (a, b)))
    r, share = both / math.sqrt(ours * theirs), both / theirs
    chance = 1 / math.sqrt(now.numel())
    large = _LEAST.get(kind, 0.0) * decay if now.numel() >= _LARGE else 0.0
    least = _ALWAYS.get(kind, max(_UNRELATED * chance, large))
    noise = math.sqrt(ours / theirs) * chance  # standard error of the share
    too_little = _UNRELATED * noise <= _SHARE * decay and not share > _SHARE * decay
    return r > least and not too_little, r, f"{r:.4f} (chance: 0 ± {chance:.4f}; share {share:.2f})"


def _parts(evidence: Evidence) -> Iterator[tuple[str, str, str, Any]]:
    """What is looked at, each (kind, what it is, name of its tensor, which of its rows)."""
    unseen = torch.ones(evidence.initial_model.config.vocab_size, dtype=torch.bool)
    unseen[evidence.windows.tokens] = False
    seq_len = evidence.settings.seq_len
    yield "seen", "the rows of tokens that occur", "transformer.wte.weight", ~unseen
    yield "unseen", "the rows of tokens that do not occur", "transformer.wte.weight", unseen
    yield "read", "the positions of the windows", "transformer.wpe.weight", slice(0, seq_len)
    yield "past", "the positions past them", "transformer.wpe.weight", slice(seq_len, None)
    for name, tensor in evidence.initial_model.named_parameters():
        if ".h." in name and tensor.dim() == 2:
            yield "matrix", name, name, slice(None)
