"""One progress line for long work: in a terminal, in a notebook (kept by the saved file), or in a log.

A `tqdm.notebook` bar is a widget, and a saved widget stays at 0 %. This line is an ordinary display
output that is updated in place, so the file on disk shows what the reader last saw.
"""

from __future__ import annotations

import html
import shutil
import sys
import time


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `0:07`, `12:05`, `3:02:09`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """A line such as `training  120/400  loss 3.2145  131 tok/s  2:10 left`.

    Args:
        total: the count at which the work is done.
        label: what is being done.
        done: the count at which this process starts (a resumed run starts above 0).
        estimate: work out the time left from the pace so far; False where the counts take unequal time.
        shown: False draws nothing: of several processes, one shows the work of all.
    """

    def __init__(
        self, total: int, label: str, done: int = 0, estimate: bool = True, shown: bool = True
    ):
        self.total, self.label, self._estimate = total, label, estimate
        self._start, self._started_at = done, time.monotonic()
        self._drawn_at = 0.0
        self._line = ""
        self._done = done
        self._display = None
        if not shown:
            self._interval, self._draw = 0.0, lambda final: None
        elif _in_notebook():
            self._interval, self._draw = 0.5, self._draw_in_notebook
        elif sys.stderr.isatty():
            self._interval, self._draw = 0.1, self._draw_in_terminal
        else:
            self._interval, self._draw = 30.0, self._draw_in_log
            self._drawn_at = time.monotonic()

    def update(self, done: int, seconds_left: float | None = None, **figures: str) -> None:
        """Say how far the work is.

        Args:
            done: the count reached.
            seconds_left: time left, where the caller knows better than the pace so far.
            figures: shown by name, such as `loss="3.2145"`.
        """
        self._done = done
        now = time.monotonic()
        worked, left = done - self._start, seconds_left
        if left is None and self._estimate and worked > 0:
            left = (now - self._started_at) / worked * (self.total - done)
        parts = [
            self.label,
            f"{done:,}/{self.total:,}",
            *(f"{name} {value}".strip() for name, value in figures.items()),
        ]
        parts.append(f"{duration(left)} left" if left is not None else "")
        self._line = "  ".join(part for part in parts if part)
        if now - self._drawn_at >= self._interval:
            self._drawn_at = now
            self._draw(final=False)

    def close(self, note: str = "") -> None:
        """Draw the last state, with the time that the work took and a closing note."""
        parts = (
            [part for part in self._line.split("  ") if not part.endswith(" left")]
            if self._line
            else [self.label]
        )
        parts += [f"took {duration(time.monotonic() - self._started_at)}", note]
        self._line = "  ".join(part for part in parts if part)
        self._draw(final=True)

    def _draw_in_terminal(self, final: bool) -> None:
        # A line that wraps could not be drawn over.
        line = self._line if final else self._line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if final else ""))
        sys.stderr.flush()

    def _draw_in_log(self, final: bool) -> None:
        print(self._line, file=sys.stderr, flush=True)

    def _draw_in_notebook(self, final: bool) -> None:
        from IPython.display import display

        share = 100.0 * self._done / self.total if self.total else 100.0
        text = html.escape(self._line)
        data = {
            "text/plain": self._line,
            "text/html": f'<div class="gpt2-progress"><progress max="100" value="{share:.1f}" aria-label="{text}">'
            f"{share:.0f} %</progress> <code>{text}</code></div>",
        }
        if self._display is None:
            self._display = display(data, raw=True, display_id=True)
        else:
            self._display.update(data, raw=True)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
