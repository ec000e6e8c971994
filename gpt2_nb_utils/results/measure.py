"""Run the trained model over its corpus again, as far as some seconds allow on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.results.record import Record, TrainedModel
from gpt2_nb_utils.results.token_losses import TokenLosses, keep, read_token_losses
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.tokenization.lower_bound import loss_lower_bound
from gpt2_nb_utils.training.corpus_loss import WindowLosses, mean_loss, read_windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import TrainingLoss
from gpt2_nb_utils.training.verbatim import openings_among

_SECONDS_PER_PARAMETER = {"cpu": 25e-12, "cuda": 0.1e-12}
"""Cost of one token in a forward pass, by parameter: 124M on two laptop cores take 3 ms a token."""
_SECONDS_PER_TOKEN = {"cpu": 250e-6, "cuda": 1e-6}
"""Cost of one token whatever the model: the softmax over 50,257 logits."""

_AGREES_WITHIN = 0.01
"""Nats by which two measurements of one model may differ, by number format and device."""


@dataclass(frozen=True)
class Measured:
    """What a trained model makes of some windows of its corpus.

    Attributes:
        trained: the model.
        windows: all windows of the corpus.
        read: those that were measured, in the order of the text.
        audited: the loss of every prediction with the same weights, where `verify` kept it and
            these windows agree with it.
    """

    trained: TrainedModel
    windows: TokenDataset
    read: tuple[WindowLosses, ...]
    audited: TokenLosses | None = None

    @property
    def indices(self) -> list[int]:
        """The numbers of the measured windows."""
        return [window.index for window in self.read]

    @cached_property
    def result(self) -> TrainingLoss:
        """The training loss over the measured windows."""
        return mean_loss(self.read, self.windows, len(self.read))

    @property
    def training_loss(self) -> float:
        """Over every prediction where that is known, else over the measured windows, in nats."""
        return self.audited.loss if self.audited else self.result.loss

    @property
    def extent(self) -> str:
        """On what `training_loss` was measured, in words."""
        if self.audited or self.result.whole:
            return "every prediction"
        return f"{len(self.read):,} windows of {len(self.windows):,}"

    @property
    def comparison(self) -> str:
        """The recorded loss beside the one measured now, in a sentence or two."""
        recorded, now, trained = self.trained.recorded, self.result, self.trained
        measured = (
            f"Measured again on {'all ' if now.whole else ''}{now.n_windows:,} windows "
            f"({now.n_targets:,} predictions): {now.loss:.6f} nats per token."
        )
        if recorded is None:
            return f"{measured} No loss is on record for {trained.file} at step {trained.step:,}."
        on = "all windows" if recorded.whole else f"{recorded.windows} windows"
        both = (
            f"On record for {trained.file} (step {trained.step:,}), measured on {on}: "
            f"{recorded.loss:.6f}. {measured}"
        )
        if recorded.windows == now.windows:
            difference = abs(now.loss - recorded.loss)
            agrees = (
                "they agree"
                if difference < _AGREES_WITHIN
                else "this file is not the model described in the log"
            )
            return f"{both} Difference {difference:.1e}: {agrees}."
        if self.audited:
            return (
                f"{both} These are not the same windows. But `verify` read all of them with these "
                f"weights: {self.audited.loss:.6f}, and {self.audited.mean_on(self.indices):.6f} "
                f"on those measured here."
            )
        return f"{both} These are not the same windows, so the two figures need not agree."


def affordable_tokens(n_params: int, seconds: float, device_type: str = "cpu") -> int:
    """How many tokens a model can read in about `seconds`.

    Args:
        n_params: parameters of the model.
        device_type: `cpu` or `cuda`.
    """
    per_token = n_params * _SECONDS_PER_PARAMETER[device_type] + _SECONDS_PER_TOKEN[device_type]
    return int(seconds / per_token)


def windows_to_measure(
    windows: TokenDataset, n_affordable: int, recorded: str | int | None
) -> list[int]:
    """Which windows to measure: all, those of the run's own measurement, or fewer, as affordable.

    Args:
        n_affordable: tokens that may be read.
        recorded: on how many windows the run measured ("all" for all).
    """
    if windows.n_targets <= n_affordable:
        return windows.evenly_spread(0)
    n_windows = max(1, n_affordable // windows.seq_len)
    if isinstance(recorded, int) and recorded > 0:
        n_windows = min(n_windows, recorded)
    return windows.evenly_spread(n_windows)


def measure(run: Record, device: str = "auto", seconds: float = 8.0) -> Measured:
    """Load the model and measure the loss of each prediction of the windows that are affordable.

    Args:
        device: where to compute, as in the config.
        seconds: about how long it may take.

    Raises:
        UserError: no checkpoint, no text, or no such device.
    """
    precision = precision_here(run, device)
    trained = run.load_model(precision.device)
    recorded = trained.recorded.windows if trained.recorded else run.config.eval_windows
    n_affordable = affordable_tokens(trained.model.n_params, seconds, precision.device.type)
    indices = windows_to_measure(run.windows, n_affordable, recorded)
    progress = Progress(len(indices), "measuring windows")
    read = read_windows(
        trained.model,
        run.windows,
        indices,
        precision,
        progress.update,
        openings_among(indices),
    )
    progress.close()
    measured = Measured(trained, run.windows, tuple(read))
    return replace(measured, audited=_audited(run, measured))


def measure_or_say(
    run: Record, device: str = "auto", seconds: float = 8.0
) -> tuple[Measured | None, str]:
    """What `measure` finds and its comparison in words.

    Where checkpoint or text is missing, it is None and the reason. The losses are kept in the run
    directory, for the report to paint.

    Raises:
        UserError: no such device.
    """
    precision_here(run, device)
    try:
        measured = measure(run, device, seconds)
    except UserError as error:
        return None, f"Not measured, so what depends on it is not shown: {error}."
    losses = {window.index: window.losses for window in measured.read}
    keep(run.directory, run.summary, run.windows, losses)
    return measured, measured.comparison


def _audited(run: Record, measured: Measured) -> TokenLosses | None:
    try:
        kept = read_token_losses(run.directory.token_losses)
    except UserError:
        return None  # nobody kept any
    shape = len(run.windows), run.windows.seq_len
    if not kept.whole or not kept.is_of(run.summary) or (kept.n_windows, kept.seq_len) != shape:
        return None
    difference = abs(kept.mean_on(measured.indices) - measured.result.loss)
    return kept if difference < _AGREES_WITHIN else None


def precision_here(run: Record, device: str) -> Precision:
    """Where and how to compute: in the run's own number format on the kind of device it ran on.

    Elsewhere in fp32.
    """
    config = RunConfig.resolve({"device": device, "amp": "fp32"}, saved=run.config.model_dump())
    precision = Precision.of(config)
    amp, ran_on_cpu = run.summary.amp, (run.summary.device or "").startswith("cpu")
    same_kind = ran_on_cpu == (precision.device.type == "cpu")
    return Precision(precision.device, amp) if same_kind and amp in ("fp16", "bf16") else precision


def lower_bound(run: Record) -> float | None:
    """The loss that no training of this run can beat (`loss_lower_bound`), nats per token.

    None where its text is missing.
    """
    try:
        return loss_lower_bound(run.windows)
    except UserError:
        return None


def unigram_entropy(windows: TokenDataset) -> float:
    """The lowest loss of a model that knows how often each token occurs and nothing else.

    In nats per token; it is the entropy of the frequencies of the targets: −Σ p ln p.
    """
    counts = torch.bincount(windows.tokens[1:]).double()
    shares = counts[counts > 0] / counts.sum()
    return -(shares * shares.log()).sum().item()
