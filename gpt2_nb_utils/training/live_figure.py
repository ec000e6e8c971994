"""The figure of notebook 03 that grows while training runs: loss above, learning rate below.

It is a display output updated in place, so a saved notebook keeps its last state.
"""

from __future__ import annotations

import gc
import math
import time

from gpt2_nb_utils.notebook import figure_data
from gpt2_nb_utils.training import figures
from gpt2_nb_utils.training.run_log import Row

_SECONDS_BETWEEN_DRAWINGS = 3.0


class LiveFigure:
    """Give an instance to `train` as `on_row`; call `finish` afterwards.

    Args:
        target_loss: drawn as a dashed line.
        steps: last step of the run: the right end of both panels.
        rows: rows of the same run from before (a resumed run).
    """

    def __init__(self, target_loss: float, steps: int, rows: list[Row] | None = None):
        self._target, self._steps = target_loss, steps
        self._rows = list(rows or [])
        self._handle = None
        self._drawn_at = 0.0
        if self._rows:  # a resumed run begins with what it had
            self._draw()

    def __call__(self, row: Row) -> None:
        """Take in a row of the metrics, and draw if the last drawing is some seconds old."""
        # A resumed run does some steps again: their rows take the place of those from before.
        self._rows = [*(earlier for earlier in self._rows if earlier.step < row.step), row]
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def finish(self) -> None:
        """Draw the last state."""
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        # A drawn figure is a knot of objects that only the garbage collector frees, whenever it comes. Until then they stand where training
        # freed its large blocks, which do not fit there any more. So it comes at once, and looks at the new objects only.
        gc.freeze()
        data, metadata = figure_data(
            figures.live(self._rows, self._target, self._steps), self._alt()
        )
        gc.collect()
        gc.unfreeze()
        if self._handle is None:
            self._handle = display(data, metadata=metadata, raw=True, display_id=True)
        else:
            self._handle.update(data, metadata=metadata, raw=True)
        self._drawn_at = time.monotonic()

    def _alt(self) -> str:
        losses = [
            row.loss for row in self._rows if row.loss is not None and math.isfinite(row.loss)
        ]
        if not losses:
            return "Loss over steps; nothing trained yet."
        return (
            f"Batch loss over steps: from {losses[0]:.3f} to {losses[-1]:.3f} nats per token at step {self._rows[-1].step} "
            f"of {self._steps}; target {self._target}. Below it the learning rate of each step."
        )
