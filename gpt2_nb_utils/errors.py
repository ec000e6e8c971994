"""The one exception for a mistake that the user can mend."""


class UserError(Exception):
    """A wrong input, told in one line that names the thing, the value and the mend.

    The command line prints the line and exits with status 2; a notebook shows it without a traceback.
    """

    exit_status = 2

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of formatting a traceback.
        return [f"UserError: {self}"]
