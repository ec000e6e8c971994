"""The exported Space on this machine: its app in a process of its own, as Hugging Face would start it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
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
        folder: of the Space.
        output: what the app has printed.
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    output: IO[bytes]

    def ended(self) -> UserError:
        """That the app has ended, in its own last words."""
        self.output.seek(0)
        lines = self.output.read().decode("utf-8", errors="backslashreplace").strip().splitlines()
        last = lines[-1].removeprefix("error: ")[-400:] if lines else "it printed nothing"
        return UserError(f"the app of {self.folder} ended: {last}")


@contextlib.contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[Served]:
    """A context in which the app of a Space's folder runs and answers; it is ended afterwards.

    Args:
        folder: as the command `space` writes it.
        port: on 127.0.0.1; a free one if None.

    Raises:
        UserError: no app there, gradio is not installed, the port is occupied, or the app ended.
    """
    app = (folder / "app.py").resolve()
    if not app.is_file():
        raise UserError(
            f"{folder} holds no app.py: write the folder with `python -m gpt2_nb_utils space RUN_DIR`"
        )
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            requirements = folder / "requirements.txt"
            raise UserError(
                f"the app needs {package}, which is not installed: pip install -r {requirements}"
            )
    try:
        with socket.create_server((HOST, port or 0)) as found:
            port = found.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"port {port} is not available ({os.strerror(error.errno)}): end the program that listens there, or choose another "
            f"port (--port)"
        ) from None
    # SIGTERM would end this process and leave the app behind, so it is handled like Ctrl-C.
    with (
        StopRequest(on_first=_leave),
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        # Elsewhere, because Gradio puts files of its own into the folder in which it is started; -B, because Python does too.
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
        served = Served(f"http://{HOST}:{port}", port, process, folder, output)
        try:
            _wait_for_an_answer(served)
            yield served
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve(folder: Path, port: int) -> NoReturn:
    """Run the app of a Space's folder until somebody stops it.

    Raises:
        UserError: as for `serving`, and when the app ends by itself.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    with serving(folder, port) as served:
        print(f"{served.url} shows the app of {folder}; Ctrl-C ends it", flush=True)
        served.process.wait()
        raise served.ended()


def _leave() -> NoReturn:
    raise KeyboardInterrupt


def _wait_for_an_answer(served: Served) -> None:
    end = time.monotonic() + _PATIENCE
    while served.process.poll() is None:
        # The app listens once it has read its model.
        with contextlib.suppress(OSError), socket.create_connection((HOST, served.port), 10):
            return
        if time.monotonic() > end:
            raise UserError(
                f"the app of {served.folder} has not answered on {served.url} for {_PATIENCE:.0f} seconds: stop other "
                f"programs, and try again"
            )
        time.sleep(0.1)
    raise served.ended()
