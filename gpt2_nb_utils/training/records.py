"""The records of a run as types: one class for each kind of entry in its files."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0, lt=10**15)]
Number = Annotated[float, Field(gt=-1e15, lt=1e15, allow_inf_nan=False)]


@dataclass(frozen=True)
class RecallStats:
    """How far a model continues openings of its corpus, always taking the most likely token.

    Attributes:
        openings: how many were tried.
        given: tokens of each that the model sees.
        continued: tokens that it then has to get right.
        verbatim: openings continued right to the last of these.
        right: tokens right before the first error, on average.
    """

    openings: int
    given: int
    continued: int
    verbatim: int
    right: float

    @property
    def share(self) -> float:
        """The share of openings continued verbatim."""
        return self.verbatim / self.openings


@dataclass(frozen=True)
class TrainingLoss:
    """The mean cross-entropy over the whole corpus, or an estimate of it on some windows.

    Attributes:
        loss: nats per token.
        windows: "all", or on how many it was estimated; None where that is not recorded.
        n_targets: predictions that were measured; not kept in the summary.
        n_windows: windows that were measured; not kept in the summary.
        recall: how far the model continues the openings of these windows verbatim; None where that
            was not counted.
    """

    loss: float
    windows: str | int | None
    n_targets: int | None = None
    n_windows: int | None = None
    recall: RecallStats | None = None

    @property
    def whole(self) -> bool:
        """Whether all windows of the corpus were measured."""
        return self.windows == "all"

    def extent(self, max_tokens: int | None = 0) -> str:
        """How much of the corpus the measurement covers, in words.

        Args:
            max_tokens: not 0 where the run trains on an excerpt: all of that is not the whole
                corpus.
        """
        if self.whole:
            return f"whole excerpt of {max_tokens:,} tokens" if max_tokens else "whole corpus"
        if self.windows is None:
            return "on an unrecorded part of the corpus"
        return f"estimated on {self.windows:,} windows"


@dataclass(frozen=True)
class Row:
    """One line of `train_metrics.csv`; None is an empty cell.

    Attributes:
        step: optimizer updates done.
        epoch: tokens seen over tokens of the corpus.
        tokens: predictions trained on so far.
        loss: cross-entropy of the last batch, before its update, nats per token.
        train_loss: training loss over the corpus, when it was measured at this step.
        lr: learning rate of the last update.
        grad_norm: gradient norm of the last update, before clipping.
        loss_scale: factor of the GradScaler (fp16 only).
        tok_per_s: tokens per second of training since the row before.
        elapsed_s: seconds spent on training steps.
    """

    step: int
    epoch: float
    tokens: int
    loss: float | None = None
    train_loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    loss_scale: float | None = None
    tok_per_s: float | None = None
    elapsed_s: float = 0.0

    def cells(self) -> list[str]:
        """The row as text: numbers short enough to read, exact enough to plot and compare."""
        return _cells(astuple(self))


@dataclass(frozen=True)
class RecallRow:
    """One line of `recall.csv`: what was counted of recall when the training loss was measured.

    Attributes:
        step: optimizer updates done.
        recalled: how far the model continued the openings of the windows that were measured.
    """

    step: int
    recalled: RecallStats

    def cells(self) -> list[str]:
        """The row as text."""
        return _cells((self.step, *astuple(self.recalled)))


def _cells(values: tuple[Any, ...]) -> list[str]:
    return [
        "" if value is None else str(value) if isinstance(value, int) else f"{value:.7g}"
        for value in values
    ]


@dataclass(frozen=True)
class Sample:
    """One generated text.

    Args:
        step: optimizer updates before it was generated.
        prompt_index: number of its prompt, from 1.
        prompt: the text that the model was given.
        text: the text as stored by the caller (prompt included or not: the caller decides).
        settings: `prompts` (how many there are at each step) and whatever was set, such as
            `temperature`, `top_k`.
    """

    step: int
    prompt_index: int
    prompt: str
    text: str
    settings: dict[str, int | float | str] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether it is the greedy one with which a run ends, beside those drawn at that step."""
        return self.settings.get("temperature") == 0 and "prompts" not in self.settings


class _Recorded(BaseModel):
    """Part of a JSON file: nothing of the wrong kind; what is missing or null has its default."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, content: Any) -> Any:
        if isinstance(content, dict):
            return {name: value for name, value in content.items() if value is not None}
        return content


class CorpusFacts(_Recorded):
    """The text of a run; `tokens` and `is_course_input` are about what it trained on."""

    source: str | None = None
    path: str | None = None
    sha256: str | None = None
    chars: Count | None = None
    tokens: Count | None = None
    is_course_input: bool | None = None
    notes: list[str] = []


class Resumption(_Recorded):
    """A command that resumed the run, and the step from which it did."""

    step: Count | None = None
    command: str | None = None


class Summary(_Recorded):
    """`summary.json`, where anything may be missing: a run directory may come from anywhere.

    `seconds` counts training steps only, `wall_seconds` everything; `config` holds the settings as
    they were recorded.
    """

    preset: str | None = None
    command: str | None = None
    resumed_with: list[Resumption] = []
    seed: int | None = None
    device: str | None = None
    processes: Count | None = None
    amp: str | None = None
    torch: str | None = None
    n_params: Count | None = None
    config: dict[str, Any] = {}
    corpus: CorpusFacts = CorpusFacts()
    status: str | None = None
    step: Count | None = None
    epoch: Number | None = None
    tokens_seen: Count | None = None
    seconds: Number | None = None
    wall_seconds: Number | None = None
    tok_per_s: Number | None = None
    loss: Number | None = None
    best_batch_loss: Number | None = None
    best_batch_step: Count | None = None
    train_loss: Number | None = None
    train_loss_windows: str | Count | None = None
    train_loss_step: Count | None = None
    best_train_loss: Number | None = None
    best_train_loss_windows: str | Count | None = None
    best_train_loss_step: Count | None = None
    target_loss: Number | None = None
    target_reached: bool | None = None
    reason: str | None = None

    @property
    def last_measured(self) -> TrainingLoss | None:
        """The training loss last measured; None before the first measurement."""
        if self.train_loss is None:
            return None
        return TrainingLoss(self.train_loss, self.train_loss_windows)

    @property
    def best_measured(self) -> TrainingLoss | None:
        """The training loss of best.pt, the checkpoint that is graded; None where there is none."""
        if self.best_train_loss is None:
            return None
        return TrainingLoss(self.best_train_loss, self.best_train_loss_windows)

    @property
    def graded(self) -> TrainingLoss | None:
        """The training loss that counts: that of best.pt, or else the last one measured."""
        return self.best_measured or self.last_measured
