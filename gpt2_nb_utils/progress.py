"""One progress line for long work: in a terminal, in a notebook (the saved file keeps it), or in a
log.

A `tqdm.notebook` bar is a widget, and a saved widget stays at 0 %; `tqdm` raises where its terminal
is gone. This line is an ordinary display output that is updated in place, so the file on disk shows
what the reader last saw.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import sys
import time
from typing import TextIO

from gpt2_nb_utils.wording import duration

CSS_CLASS = "gpt2-progress"
"""The class of the line's element in a notebook."""


class Progress:
    """A line such as `training  120/400  loss 3.2145  131 tok/s  2:10 left`.

    Where nobody can see it any more (the terminal is gone, or what read the pipe has ended),
    nothing more is drawn, and the work continues.

    Args:
        total: the count at which the work is done.
        label: what is being done.
        done: the count at which this process starts (a resumed run starts above 0).
        estimate: work out the time left from the pace so far; False where the counts take unequal
            time.
        shown: False draws nothing: of several processes, one shows the work of all.
    """

    def __init__(
        self, total: int, label: str, done: int = 0, estimate: bool = True, shown: bool = True
    ):
        self.total, self.label, self._estimate = total, label, estimate
        self._start = self._done = done
        self._figures: list[str] = []
        self._started_at = self._drawn_at = time.monotonic()
        self._display = None
        self._notebook = _is_notebook()
        self._shown = shown and (self._notebook or sys.stderr is not None)
        self._terminal = self._shown and not self._notebook and sys.stderr.isatty()
        self._interval = 0.5 if self._notebook else 0.1 if self._terminal else 30.0

    def update(self, done: int, note: str = "", **figures: str) -> None:
        """Say how far the work is.

        Args:
            done: the count reached.
            note: shown as it is.
            figures: shown by name, such as `loss="3.2145"`.
        """
        self._done = done
        self._figures = [*(f"{name} {value}" for name, value in figures.items()), note]
        now, worked = time.monotonic(), done - self._start
        if now - self._drawn_at < self._interval:
            return
        self._drawn_at = now
        left = (now - self._started_at) / max(worked, 1) * (self.total - done)
        self._draw(f"{duration(left)} left" if self._estimate and worked > 0 else "")

    def close(self, note: str = "") -> None:
        """Draw the last state, with the time that the work took and a closing note."""
        took = f"took {duration(time.monotonic() - self._started_at)}"
        self._draw(took, note, final=True)

    def _draw(self, *more: str, final: bool = False) -> None:
        parts = [self.label, f"{self._done:,}/{self.total:,}", *self._figures, *more]
        line, end = "  ".join(filter(None, parts)), "\n"
        if not self._shown:
            return
        if self._notebook:
            self._draw_in_notebook(line)
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            if not final:  # a line that wraps could not be drawn over
                line, end = line[:width], ""
            line = "\r" + line.ljust(width)  # an escape sequence would show in a console of Windows
        self._shown = print_line(line, end)

    def _draw_in_notebook(self, line: str) -> None:
        from IPython.display import display

        share = 100.0 * self._done / self.total if self.total else 100.0
        text = html.escape(line)
        data = {
            "text/plain": line,
            "text/html": f'<div class="{CSS_CLASS}"><progress max="100" value="{share:.1f}" '
            f'aria-label="{text}">{share:.0f} %</progress> <code>{text}</code></div>',
        }
        if self._display is None:
            self._display = display(data, raw=True, display_id=True)
        else:
            self._display.update(data, raw=True)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def print_line(line: str, end: str = "\n") -> bool:
    """Print a line to stderr; False, and nothing from then on, where nobody can see it any more."""
    try:
        print(line, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: a closed file
        send_nowhere(sys.stderr)
        return False
    return True


def send_nowhere(stream: TextIO) -> None:
    """Discard what is still written to a terminal or a pipe that is gone.

    That includes what is left in its buffer, which the interpreter writes at its end.
    """
    with contextlib.suppress(OSError, ValueError):  # no file is behind it, or a closed one
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
