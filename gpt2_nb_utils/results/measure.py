"""Run the trained model over its corpus again, as far as this machine can do that in some seconds.

It knows what a forward pass costs. It deliberately does not know how losses are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.results.run import RunResults, TrainedModel
from gpt2_nb_utils.results.token_losses import TokenLosses, keep, read_token_losses
from gpt2_nb_utils.tokenization.floor import prefix_entropy
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training.corpus_loss import CorpusLoss, read_windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.verbatim import counted, opening_of, openings_among, recalled_of

_SECONDS_PER_PARAMETER = {"cpu": 25e-12, "cuda": 0.1e-12}
"""Cost of one token in a forward pass, by parameter: 124M on two laptop cores take about 3 ms a token."""
_SECONDS_PER_TOKEN = {"cpu": 250e-6, "cuda": 1e-6}
"""Cost of one token whatever the model: the softmax over 50,257 logits."""

_AGREES_WITHIN = 0.01
"""Nats by which two measurements of one model may differ: number format and device change the last digits."""


@dataclass(frozen=True)
class Measured:
    """What a trained model makes of some windows of its corpus.

    Attributes:
        trained: the model.
        windows: all windows of the corpus.
        indices: those that were measured, ascending.
        losses: per measured window the loss of each of its targets (t,), fp32, nats.
        n_right: per measured window the tokens continued verbatim after its opening; None where that was not counted.
        audited: the loss of every prediction with the same weights, where `verify` kept it and these windows agree with it.
    """

    trained: TrainedModel
    windows: Windows
    indices: tuple[int, ...]
    losses: tuple[Tensor, ...]
    n_right: tuple[int | None, ...]
    audited: TokenLosses | None = None

    @property
    def training_loss(self) -> float:
        """The loss over every prediction where it is known, over the measured windows otherwise; nats per token."""
        return self.audited.loss if self.audited else self.result.loss

    @property
    def extent(self) -> str:
        """On what `training_loss` was measured, in words."""
        return (
            "every prediction"
            if self.audited or self.result.whole
            else f"{self.result.n_windows:,} windows of {len(self.windows):,}"
        )

    @property
    def result(self) -> CorpusLoss:
        """The training loss over the measured windows, whether they are all, and how many openings are continued verbatim."""
        n_targets = sum(len(window) for window in self.losses)
        total = sum(window.double().sum().item() for window in self.losses)
        opening = opening_of(self.windows)
        return CorpusLoss(
            total / n_targets,
            n_targets,
            len(self.indices),
            whole=len(self.indices) == len(self.windows),
            recalled=recalled_of(counted(self.n_right, opening), opening),
        )

    @property
    def comparable(self) -> bool:
        """Whether the loss on record for this checkpoint was measured on the very same windows."""
        recorded = self.trained.train_loss_windows
        return recorded is not None and recorded == self.result.windows

    @property
    def comparison(self) -> str:
        """The loss on record beside the one measured anew, in a sentence or two."""
        recorded, result = self.trained.train_loss, self.result
        what = f"{'all ' if result.whole else ''}{result.n_windows:,} windows"
        anew = f"Measured anew on {what} ({result.n_targets:,} predictions): {result.loss:.6f} nats per token."
        if recorded is None:
            return f"{anew} No loss is on record for {self.trained.file} at step {self.trained.step:,}."
        windows = self.trained.train_loss_windows
        on = "all windows" if windows == "all" else f"{windows} windows"
        record = f"On record for {self.trained.file} (step {self.trained.step:,}), measured on {on}: {recorded:.6f}."
        if self.comparable:
            difference = abs(result.loss - recorded)
            if difference < _AGREES_WITHIN:
                return f"{record} {anew} Difference {difference:.1e}: they agree."
            return f"{record} {anew} Difference {difference:.1e}: this file is not the model of which the log speaks."
        if self.audited:
            return (
                f"{record} {anew} These are not the same windows. But `verify` read all of them with these weights: {self.audited.loss:.6f}, "
                f"and {_mean_on(self.audited, self.indices):.6f} on those measured here."
            )
        return f"{record} {anew} These are not the same windows, so the two figures need not agree."


def affordable_tokens(n_params: int, seconds: float, device_type: str = "cpu") -> int:
    """How many tokens a model can read in about `seconds`.

    Args:
        n_params: parameters of the model.
        device_type: `cpu` or `cuda`.
    """
    kind = "cuda" if device_type == "cuda" else "cpu"
    return int(seconds / (n_params * _SECONDS_PER_PARAMETER[kind] + _SECONDS_PER_TOKEN[kind]))


def windows_to_measure(
    windows: Windows, n_affordable: int, recorded: str | int | None
) -> list[int]:
    """Which windows to measure: all where that is affordable, else those of the run's own measurement, else fewer.

    Args:
        n_affordable: tokens that may be read.
        recorded: on how many windows the run measured ("all" for all).
    """
    if windows.n_targets <= n_affordable:
        return windows.evenly_spread(0)
    affordable = max(1, n_affordable // windows.seq_len)
    if isinstance(recorded, int) and 0 < recorded <= affordable:
        return windows.evenly_spread(recorded)
    return windows.evenly_spread(affordable)


def measure(
    run: RunResults,
    device: str = "auto",
    seconds: float = 8.0,
    on_windows: Callable[[int], None] | None = None,
) -> Measured:
    """Load the model and measure the loss of each prediction of the windows that are affordable.

    Args:
        device: where to compute, as in the config.
        seconds: about how long it may take.
        on_windows: called with the number of windows done so far; None shows a progress line.

    Raises:
        UserError: no checkpoint, no text, or no such device.
    """
    precision = precision_here(run, device)
    trained = run.load_model(precision.device)
    recorded = trained.train_loss_windows or run.config.eval_windows
    n_affordable = affordable_tokens(trained.model.n_params, seconds, precision.device.type)
    indices = windows_to_measure(run.windows, n_affordable, recorded)
    progress = Progress(len(indices), "measuring windows") if on_windows is None else None
    readings = read_windows(
        trained.model,
        run.windows,
        indices,
        precision,
        on_windows or progress.update,
        openings_among(indices),
    )
    if progress is not None:
        progress.close()
    return Measured(
        trained,
        run.windows,
        tuple(indices),
        tuple(reading.losses for reading in readings),
        tuple(reading.n_right for reading in readings),
    )


def measure_or_say(
    run: RunResults, device: str = "auto", seconds: float = 8.0
) -> tuple[Measured | None, str]:
    """What `measure` finds and its comparison in words; or nothing and the reason, where checkpoint or text is missing.

    The losses are kept in the run directory, for the report to paint.

    Raises:
        UserError: no such device.
    """
    precision_here(run, device)
    try:
        measured = measure(run, device, seconds)
    except UserError as error:
        return None, f"Not measured, and what follows from it is not shown: {error}."
    measured = replace(measured, audited=_audited(run, measured))
    keep(run.directory, run.summary, run.windows, dict(zip(measured.indices, measured.losses)))
    return measured, measured.comparison


def _audited(run: RunResults, measured: Measured) -> TokenLosses | None:
    try:
        kept = read_token_losses(run.directory.token_losses)
    except UserError:
        return None  # nobody kept any
    whole = (
        kept.whole
        and kept.is_of(run.summary)
        and (kept.n_windows, kept.seq_len) == (len(run.windows), run.windows.seq_len)
    )
    return (
        kept
        if whole and abs(_mean_on(kept, measured.indices) - measured.result.loss) < _AGREES_WITHIN
        else None
    )


def _mean_on(losses: TokenLosses, indices: Sequence[int]) -> float:
    """The mean loss of some windows, of losses that hold all."""
    return float(
        np.concatenate([losses.windows[index].losses for index in indices]).mean(dtype=np.float64)
    )


def precision_here(run: RunResults, device: str) -> Precision:
    """Where and how to compute: the run's own number format if this is the kind of device that it ran on, else fp32."""
    config = RunConfig.resolve({"device": device, "amp": "fp32"}, saved=run.config.model_dump())
    precision = Precision.of(config)
    ran_on_cpu = str(run.summary.get("device", "")).startswith("cpu")
    same_kind = ran_on_cpu == (precision.device.type == "cpu")
    amp = run.summary.get("amp")
    return Precision(precision.device, amp) if same_kind and amp in ("fp16", "bf16") else precision


def floor(run: RunResults) -> float | None:
    """The loss that no training of this run can beat (`prefix_entropy`), nats per token; None where its text is missing."""
    try:
        return prefix_entropy(run.windows)
    except UserError:
        return None


def unigram_entropy(windows: Windows) -> float:
    """The lowest loss of a model that knows how often each token occurs and nothing else, nats per token.

    It is the entropy of the frequencies of the targets: −Σ p ln p.
    """
    counts = torch.bincount(windows.tokens[1:]).double()
    shares = counts[counts > 0] / counts.sum()
    return -(shares * shares.log()).sum().item()
