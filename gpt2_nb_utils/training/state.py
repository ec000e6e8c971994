"""Where a run stands: what its checkpoints carry over a restart and its summary shows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpt2_nb_utils.training.corpus_loss import CorpusLoss

_SMOOTHING = 0.9


@dataclass
class State:
    """Counters and best values of a run.

    Attributes:
        step: optimizer updates done.
        windows_drawn: windows trained on, which is the place in the data.
        tokens_seen: predictions trained on.
        seconds: time spent on training steps.
        wall_seconds: time spent in all, measurements, samples and checkpoints included.
        loss: last batch; `smoothed_loss` is its moving average.
        train_loss: training loss last measured, on `train_loss_windows` windows (or "all").
        smoothed_loss_when_measured: `smoothed_loss` at that time.
        skipped_in_a_row: updates without finite gradients, up to now.
    """

    step: int = 0
    windows_drawn: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    loss: float | None = None
    smoothed_loss: float | None = None
    best_batch_loss: float | None = None
    best_batch_step: int | None = None
    train_loss: float | None = None
    train_loss_windows: str | int | None = None
    train_loss_step: int | None = None
    best_train_loss: float | None = None
    best_train_loss_windows: str | int | None = None
    best_train_loss_step: int | None = None
    smoothed_loss_when_measured: float | None = None
    skipped_in_a_row: int = 0

    @classmethod
    def restored(cls, content: dict[str, Any]) -> State:
        """The state that a checkpoint holds, which may be anybody's.

        Raises:
            ValueError, TypeError: something in it is not what `to_dict` writes.
        """
        state = cls(**content)
        for field in fields(cls):
            value, kinds = getattr(state, field.name), field.type.split(" | ")
            numbers = (int, float) if "float" in kinds else int if "int" in kinds else ()
            right = (
                value is None
                and "None" in kinds
                or isinstance(value, str)
                and "str" in kinds
                or isinstance(value, numbers)
                and not isinstance(value, bool)
                and not value < 0
            )  # NaN is a loss
            if not right or field.name in ("seconds", "wall_seconds") and not math.isfinite(value):
                raise ValueError(f"{field.name} {value!r}")
        return state

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, for a checkpoint."""
        return asdict(self)

    def count_batch(
        self, loss: float, n_targets: int, n_windows: int, skipped: bool, seconds: float
    ) -> None:
        """Add one step and its batch.

        Args:
            loss: its batch loss. One that is not finite is kept as the last loss only.
            skipped: its gradients were not finite and the weights stayed.
            seconds: time that the step took.
        """
        self.step += 1
        self.windows_drawn += n_windows
        self.tokens_seen += n_targets
        self.seconds += seconds
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.loss = loss
        if not math.isfinite(loss):
            return
        self.smoothed_loss = (
            loss
            if self.smoothed_loss is None
            else (_SMOOTHING * self.smoothed_loss + (1 - _SMOOTHING) * loss)
        )
        if self.best_batch_loss is None or loss < self.best_batch_loss:
            self.best_batch_loss, self.best_batch_step = loss, self.step

    def reached(self, target_loss: float) -> bool:
        """Whether the training loss, measured over the whole corpus, has been below the target."""
        return (
            self.best_train_loss is not None
            and self.best_train_loss_windows == "all"
            and self.best_train_loss < target_loss
        )

    def is_at_target(self, target_loss: float) -> bool:
        """Whether that was at a step that this run has done.

        best.pt may be from a step that a killed run had reached, and this one, resumed from before, has not reached again.
        """
        return self.reached(target_loss) and self.best_train_loss_step <= self.step

    def is_at_end(self, steps: int, target_loss: float) -> bool:
        """Whether a run of so many steps, with this target, has nothing left to train."""
        return self.step == steps or self.is_at_target(target_loss)

    def count_measurement(self, measured: CorpusLoss) -> bool:
        """Take in a measured training loss; True when it is the best so far.

        A measurement of the whole corpus outranks every estimate, whichever is lower. Random weights are no result, so
        step 0 is never the best.
        """
        self.train_loss, self.train_loss_windows, self.train_loss_step = (
            measured.loss,
            measured.windows,
            self.step,
        )
        if self.step == 0 or not math.isfinite(measured.loss):
            return False
        best_is_whole = self.best_train_loss_windows == "all"
        if self.best_train_loss is not None:
            if best_is_whole and not measured.whole:
                return False
            if measured.whole == best_is_whole and measured.loss >= self.best_train_loss:
                return False
        self.best_train_loss, self.best_train_loss_windows = measured.loss, measured.windows
        self.best_train_loss_step = self.step
        return True

    def take_best_of(self, other: State) -> None:
        """Take over the best training loss of another state of the same run: the one that best.pt was written with."""
        self.best_train_loss, self.best_train_loss_windows = (
            other.best_train_loss,
            other.best_train_loss_windows,
        )
        self.best_train_loss_step = other.best_train_loss_step
