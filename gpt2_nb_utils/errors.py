"""The exceptions that a user sees as one line."""

from __future__ import annotations

import errno
import os
import re
import sys

from gpt2_nb_utils.text import one_line

RUN_AROUND = "GPT2_NB_UTILS_RUN"
"""Environment variable with the run directory that the command `run`, which started this process,
holds."""


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, but for one that the command `run` started."""
    ipython = sys.modules.get("IPython")
    return RUN_AROUND not in os.environ and hasattr(ipython and ipython.get_ipython(), "kernel")


class UserError(Exception):
    """Invalid input, in one line that names the setting, the value and the fix.

    The command line prints the line and exits with status 2; a notebook shows it without a
    traceback, and with `-p steps` in place of `--steps`.
    """

    exit_status = 2

    def __init__(self, message: str):
        if in_notebook():
            message = re.sub(r"(?<!\S)(\(?)--(?=\w)", r"\1-p ", message)
            message = message.replace("-p overwrite", "-p overwrite True")
        # A file name or a value in it may hold a line end or a terminal's escape sequence.
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"UserError: {self}"]


FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of the errors that say that there is no room: on the disk, in a file, or for this
user."""


class NotWritten(UserError):
    """A file that could not be written: which, why, and what to free or to change.

    Args:
        path: the file.
        error: what the system said.
        kept: what is not lost by it.
        flag: the one that names another place.
    """

    def __init__(
        self, path: str | os.PathLike[str], error: OSError, kept: str = "", flag: str = "--out_dir"
    ):
        if error.errno in FULL:
            fix = f"free disk space or choose another {flag}"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            fix = f"name a folder that you may write to ({flag})"
            if os.name == "nt":  # there nothing can be written while a program has it open
                fix = f"close the program that has it open, or {fix}"
        else:
            fix = f"make sure its folder exists, or choose another {flag}"
        self.reason = f"[Errno {error.errno}] {error.strerror}"
        super().__init__(f"{path} cannot be written ({self.reason}): {fix}{kept and '; ' + kept}")
