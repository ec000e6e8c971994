"""The exceptions that are told in one line."""

from gpt2_nb_utils.plain_text import one_line


class UserError(Exception):
    """A wrong input, told in one line that names the thing, the value and the mend.

    The command line prints the line and exits with status 2; a notebook shows it without a traceback.
    """

    exit_status = 2

    def __init__(self, message: str):
        # A file name or a value in it may hold a line end or a terminal's escape sequence.
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"UserError: {self}"]


class ProcessLost(UserError):
    """Of the processes that train together, another one died or failed: not the user's mistake, but told in a line as well."""

    exit_status = 1
