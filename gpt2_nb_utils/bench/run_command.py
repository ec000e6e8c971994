"""A command as a person gives it, run to its end in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError

_LONGEST_COMMAND = 120


def run_command(words: Sequence[str], **environment: str) -> tuple[float, str]:
    """Run a command.

    Args:
        environment: variables that differ from those of this process.

    Returns:
        Seconds from its start to its end, and what it printed.

    Raises:
        UserError: it failed; the line says which and what it complained about.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        complaint = next(
            (line for line in lines if line.startswith("error: ")), lines[-1]
        ).removeprefix("error: ")
        command = shlex.join([Path(words[0]).name, *words[1:]])[:_LONGEST_COMMAND]
        raise UserError(f"`{command}` ended with status {done.returncode}: {complaint.strip()}")
    return seconds, done.stdout


def given_settings(config: RunConfig, out_dir: Path) -> dict[str, str]:
    """The settings that make a run out of a config of `bench`, by name, in words that flags and papermill read."""
    given = {**config.given, "preset": config.preset, "out_dir": out_dir}
    if config.input_file:
        given["input_file"] = Path(config.input_file).expanduser().absolute()
    return {name: str(value) for name, value in given.items()}


def as_flags(settings: dict[str, str]) -> list[str]:
    """Settings as flags of the command line."""
    return [f"--{name}={value}" for name, value in settings.items()]
