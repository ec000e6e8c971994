"""Turns taken round by round, and what is said about them: the median, and how far the rounds lie apart.

A machine that gets slower for a while is then slower for all sides of a comparison, and the ratio of two turns of one
round hardly notices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt2_nb_utils.progress import Progress

SHORTEST_TURN = 0.5
"""Seconds below which a turn does its work several times: a clock read once in a while costs nothing, and noise less."""


def in_turn(
    turns: Mapping[str, Callable[[int], Any]], rounds: int, label: str
) -> dict[str, list[Any]]:
    """Call each once in every round: A B C, A B C, …

    Args:
        turns: by name, what to call with the number of the round.
        label: what is being measured, for the progress line.

    Returns:
        Under each name what it returned, a value per round.
    """
    answers: dict[str, list[Any]] = {name: [] for name in turns}
    progress = Progress(rounds, f"{label}, round")
    for number in range(rounds):
        for name, turn in turns.items():
            answers[name].append(turn(number))
        progress.update(number + 1)
    progress.close()
    return answers


def times_in_a_turn(seconds: float) -> int:
    """How often something that takes `seconds` is done in one turn."""
    return max(1, math.ceil(SHORTEST_TURN / seconds))


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours divided by theirs, round by round: the median, the lowest and the highest."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"ratio_median": median(pairs), "ratio_min": min(pairs), "ratio_max": max(pairs)}
