"""How numbers, losses, durations and states read, the same in a terminal, a notebook and a page."""

from __future__ import annotations

from gpt2_nb_utils.config import TARGET_LOSS

NOT_RECORDED = "not recorded"
MARKS = {
    "met": "✓",
    "not met": "✗",
    "unknown": "?",
    True: "✓",
    False: "✗",
    None: "–",
}
"""The sign of each state of a condition and each outcome of a check; its word is always beside
it."""
STATUS = {
    "running": ("still running", ", or killed without notice"),
    "target_reached": ("finished", ": target reached"),
    "steps_done": ("finished", ": all steps done"),
    "interrupted": ("interrupted", ": can be resumed"),
    "failed": ("failed", " before its end"),
}
"""Each status of a run: in short, and what follows where there is room."""


def status_text(status: str | None, short: bool = False) -> str:
    """The status of a run in words."""
    words = STATUS.get(status or "", (status or NOT_RECORDED, ""))
    return words[0] if short else "".join(words)


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return NOT_RECORDED if value is None else f"{value:,.0f}"


def plural(n: int, noun: str) -> str:
    """`1 window`, `2,048 windows`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def loss_text(value: float | None) -> str:
    """A loss with as many digits as it takes to distinguish it from the target."""
    if value is None:
        return NOT_RECORDED
    if abs(value - TARGET_LOSS) < 1e-5:
        return f"{value:.8f}"
    return f"{value:.6f}" if value < 1 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """A time as a clock shows it: `0:07`, `12:05`, `3:02:09`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def duration_in_words(seconds: float) -> str:
    """A time with the two largest of its units: `2 h 12 min`, `1 min 49 s`, `7 s`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
