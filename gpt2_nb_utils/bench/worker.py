"""A process of its own for each side of a comparison, and turns taken round by round.

What one side does to its process (allocator settings, memory it keeps, compiled code) then does not
help or hurt the other, its peak memory is its own, and a side that runs out of memory ends with one
line. A machine that slows down for a while is slower for all sides, and the ratio of two turns of
one round hardly changes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

import numpy as np

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory

Figures = dict[str, Any]
"""What bench.json holds: figures by name."""

_built: list[Any] = []
"""In a worker: its object."""


class Worker:
    """A context with a process of its own, which builds an object and calls its methods.

    Args:
        name: whose it is, for messages.
        size: what makes it large, in case memory runs out: `batch_size 4 and seq_len 256`.
        factory: makes the object, from `args`.
    """

    def __init__(self, name: str, size: str, factory: Callable[..., Any], *args: Any):
        self._what = f"{name}: {size}"
        # A forked copy of a process that has computed is unsafe.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _set_up)
        self.ask(factory, *args)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def ask(self, method: str | Callable[..., Any], *args: Any) -> Any:
        """Call a method of the object and return its answer.

        Raises:
            UserError: memory ran out, or the method raised one.
            RuntimeError: any other error; its traceback went to the standard error.
        """
        try:
            return self._pool.submit(_work, method, *args).result()
        except (MemoryError, BrokenExecutor) as error:
            # Linux kills a process where memory runs out.
            died = " (its process died)" if isinstance(error, BrokenExecutor) else ""
            raise UserError(
                f"{self._what} do not fit into memory{died}: lower them, or take a smaller model "
                f"(n_layer, n_embd)"
            ) from None


def _set_up() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback
    os.dup2(2, 1)  # the standard output is the result's


def _work(method: str | Callable[..., Any], *args: Any) -> Any:
    try:
        if isinstance(method, str):
            return getattr(_built[0], method)(*args)
        _built.append(method(*args))
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from None
        traceback.print_exc()
        # Not every exception can be sent to another process.
        message = " ".join(str(error).split())[:300]
        raise RuntimeError(f"{type(error).__name__}: {message}") from None


def in_turn(
    turns: Mapping[str, Callable[[], float]], rounds: int, label: str
) -> dict[str, np.ndarray]:
    """Call each once in every round: A B C, A B C, …

    Args:
        turns: what to call, by name.
        label: what is being measured, for the progress line.

    Returns:
        Under each name what it returned, a value per round.
    """
    answers = {name: [] for name in turns}
    progress = Progress(rounds, f"{label}, round")
    for number in range(rounds):
        for name, turn in turns.items():
            answers[name].append(turn())
        progress.update(number + 1)
    progress.close()
    return {name: np.array(values) for name, values in answers.items()}


def ratios(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ours divided by theirs, round by round: the median, the lowest and the highest."""
    pairs = ours / theirs
    return {"ratio_median": np.median(pairs), "ratio_min": pairs.min(), "ratio_max": pairs.max()}
