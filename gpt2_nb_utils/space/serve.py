"""The exported Space on this machine: its app in a process of its own, as Hugging Face would start it."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.stop_request import StopRequest

HOST = "127.0.0.1"
_NEEDED = ("gradio", "transformers")
_PATIENCE = 300.0
"""Seconds until the app must answer: 124M weights are read in a few, a busy machine may take a minute."""


@dataclass(frozen=True)
class Served:
    """A running app.

    Attributes:
        url: of its page.
        port: on 127.0.0.1.
        process: the app's.
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]

    def open(self, path: str = "/", timeout: float = 30.0) -> http.client.HTTPResponse:
        """The answer of a page of the app.

        Raises:
            OSError: none within `timeout` seconds, or an error's.
        """
        # Not through a proxy that the environment names: it would not know this machine's own address.
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            self.url + path, timeout=timeout
        )


@contextlib.contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[Served]:
    """A context in which the app of a Space's folder runs and answers; afterwards it is ended.

    Args:
        folder: as the command `space` writes it.
        port: on 127.0.0.1; a free one if None.

    Raises:
        UserError: no app there, gradio is not installed, the port is occupied, or the app ended.
    """
    with _started(folder, port) as (served, _):
        yield served


def serve(folder: Path, port: int) -> NoReturn:
    """Run the app of a Space's folder until somebody stops it.

    Raises:
        UserError: as for `serving`, and when the app ends by itself.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    with _started(folder, port) as (served, output):
        print(f"{served.url} shows the app of {folder}; Ctrl-C ends it", flush=True)
        served.process.wait()
        raise _ended(folder, output)


def _leave() -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _started(folder: Path, port: int | None) -> Iterator[tuple[Served, IO[bytes]]]:
    """The running app, and the file with what it has printed."""
    app = (folder / "app.py").resolve()
    if not app.is_file():
        raise UserError(
            f"{folder} holds no app.py: write the folder with `python -m gpt2_nb_utils space RUN_DIR`"
        )
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the app needs {package}, which is not installed: pip install -r {folder / 'requirements.txt'}"
            )
    port = _free(port)
    # SIGTERM would end this process and leave the app behind; so it ends like Ctrl-C.
    with (
        StopRequest(on_first=_leave),
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        # Elsewhere, for Gradio puts files of its own into the folder in which it is started; -B, for Python does too.
        process = subprocess.Popen(
            [sys.executable, "-B", str(app)],
            cwd=elsewhere,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the app
            env={
                **os.environ,
                "GRADIO_SERVER_NAME": HOST,
                "GRADIO_SERVER_PORT": str(port),
                "GRADIO_TEMP_DIR": elsewhere,
            },
        )
        try:
            served = Served(f"http://{HOST}:{port}", port, process)
            _wait_for_an_answer(served, folder, output)
            yield served, output
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free(port: int | None) -> int:
    """This port, if nobody has it, or one that nobody has."""
    with socket.socket() as found:
        if os.name == "posix":  # elsewhere this would take the port away from whoever has it
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, port or 0))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be had ({error.strerror}): end the program that listens there, or choose another "
                f"port (--port)"
            ) from None
        return found.getsockname()[1]


def _wait_for_an_answer(served: Served, folder: Path, output: IO[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while served.process.poll() is None:
        with contextlib.suppress(OSError), served.open(timeout=10):
            return
        if time.monotonic() > end:
            raise UserError(
                f"the app of {folder} has not answered on {served.url} for {_PATIENCE:.0f} seconds: stop other programs, "
                f"and try again"
            )
        time.sleep(0.1)
    raise _ended(folder, output)


def _ended(folder: Path, output: IO[bytes]) -> UserError:
    """The app's own last words."""
    output.seek(0)
    lines = output.read().decode("utf-8", errors="backslashreplace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing").removeprefix(
        "error: "
    )
    return UserError(f"the app of {folder} ended: {last[-400:]}")
