"""A process of its own for each side of a comparison, which does one thing at a time when it is asked to.

What one side does to its process (settings of the allocator, memory it keeps, compiled code) is then not the other's
gain or burden, its peak memory is its own, and a side that runs out of memory ends with a line instead of with
everything. It knows nothing of what is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory


class WorkerFailed(RuntimeError):
    """Something in a worker went wrong that is nobody's wrong input; its traceback went to the standard error."""


class Worker:
    """A process that builds objects and calls their methods. It starts with the first of them.

    Args:
        name: whose it is, for messages.
    """

    def __init__(self, name: str):
        self.name = name
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._size = ""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.terminate()
            self._process.join()

    def build(self, subject: str, factory: Callable[..., Any], *args: Any, size: str) -> None:
        """Make an object there, under a name.

        Args:
            size: what makes it large, for the case that memory runs out: `batch_size 4 and seq_len 256`.
        """
        self._size = size
        self._exchange("build", subject, factory, args)

    def ask(self, subject: str, method: str, *args: Any) -> Any:
        """Call a method of an object there and return its answer."""
        return self._exchange("ask", subject, method, args)

    def _exchange(self, *task: Any) -> Any:
        if self._process is None:
            self._start()
        try:
            self._connection.send(task)
            outcome, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            if self._process.exitcode == -getattr(
                signal, "SIGKILL", 9
            ):  # what Linux does where memory runs out
                raise self._out_of_memory() from None
            raise WorkerFailed(
                f"{self.name}: its process ended with status {self._process.exitcode}"
            ) from None
        if outcome == "wrong input":
            raise UserError(answer)
        if outcome == "out of memory":
            raise self._out_of_memory()
        if outcome == "failed":
            raise WorkerFailed(f"{self.name}: {answer}")
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a forked copy of a process that has computed is unsafe
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name=self.name)
        self._process.start()
        theirs.close()  # the worker's end is the worker's alone, so that its death is noticed

    def _out_of_memory(self) -> UserError:
        return UserError(
            f"{self.name}: {self._size} do not fit into memory: lower them, or take a smaller model (n_layer, n_embd)"
        )


def _serve(connection: Connection) -> None:
    """What a worker does: one task after the other, until nobody is there any more."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C ends the process that asks, and so this one
    sys.stdout.flush()
    os.dup2(2, 1)  # the standard output is the result's
    subjects: dict[str, Any] = {}
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = "done", _do(subjects, *task)
        except UserError as error:
            outcome = "wrong input", str(error)
        except Exception as error:
            if is_out_of_memory(error):
                outcome = "out of memory", None
            else:
                traceback.print_exc()
                outcome = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        connection.send(outcome)


def _do(subjects: dict[str, Any], verb: str, subject: str, what: Any, args: tuple[Any, ...]) -> Any:
    if verb == "build":
        subjects[subject] = what(*args)
        return None
    return getattr(subjects[subject], what)(*args)
