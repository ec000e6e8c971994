"""The corpus: which text a run trains on, where it came from, and whether it is the course's file.

Nothing is printed here: what a user should know is in `Corpus.notes`, for the log, the notebook and
the report to show.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.download import DownloadFailed, download

DEFAULT_PATH = Path("data/input.txt")
"""Where the corpus is looked for without an `input_file`, relative to the project's folder."""

COURSE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
COURSE_BYTES = 1_115_394
COURSE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)

MIN_TOKENS = 3
MAX_BYTES = 2**31
"""A longer text is refused: with its tokens it would take tens of GB of memory."""


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    Attributes:
        text: the whole text, with plain line feeds and no byte-order mark.
        source: "input_file" (a file that was there), "download", or "demo" (demonstration text).
        path: the file, or the module that holds the demonstration text.
        notes: what a user should know about how the text was found, one line each.
    """

    text: str
    source: Literal["input_file", "download", "demo"]
    path: str
    notes: tuple[str, ...] = ()

    @property
    def chars(self) -> int:
        """Number of characters."""
        return len(self.text)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def is_course_input(self) -> bool:
        """Whether this is, byte for byte, the course's `input.txt`."""
        return self.sha256 == COURSE_SHA256

    def describe(self) -> str:
        """One line: what it is, its size, its hash, and whether it is the course's file."""
        name = (
            f"demonstration text ({self.path}, Python's own documentation)"
            if self.source == "demo"
            else one_line(self.path)
        )
        verdict = "the course's input.txt" if self.is_course_input else "not the course's input.txt"
        return f"{name}: {self.chars:,} characters, sha256 {self.sha256[:12]}…, {verdict}"


def load_corpus(input_file: str = "") -> Corpus:
    """The text to train on: `input_file`, data/input.txt, a download, or a demonstration text.

    Args:
        input_file: path of a UTF-8 text; empty looks in the other places.

    Raises:
        UserError: a file is named or lies in data/, but is missing, unreadable, empty, too short or
            not UTF-8 text.
    """
    if input_file:
        return _from_file(Path(input_file), "input_file")
    if os.path.lexists(DEFAULT_PATH):  # even if broken: the user's own file is never ignored
        return _from_file(DEFAULT_PATH, "input_file")
    try:
        write_atomically(DEFAULT_PATH, download(COURSE_URL, COURSE_SHA256, COURSE_BYTES))
    except (DownloadFailed, OSError) as error:  # OSError: nothing can be written there
        return demonstration(f"no {DEFAULT_PATH.as_posix()}, and {error}")
    return _from_file(DEFAULT_PATH, "download", f"downloaded from {COURSE_URL}, sha256 as expected")


def _from_file(path: Path, source: Literal["input_file", "download"], *notes: str) -> Corpus:
    name = f"input_file {path.as_posix()}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UserError(f"{name} is {kind}: name a UTF-8 text file")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"{name} is {status.st_size / 1e9:,.0f} GB, too large: give a text of "
                f"{MAX_BYTES / 1e9:.0f} GB or less"
            )
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{name} does not exist: name a UTF-8 text file (--input_file), "
            f"or put one at {DEFAULT_PATH.as_posix()}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror}): allow reading it, or name another file"
        ) from None
    text, changes = _plain_text(content, name)
    if not text.strip():
        raise UserError(f"{name} is {'blank' if content else 'empty'}: name a file with text in it")
    # No token of GPT-2 is longer than 128 bytes, so only a short text needs to be counted.
    if len(text) < 128 * MIN_TOKENS and (n_tokens := len(encode(text))) < MIN_TOKENS:
        raise UserError(
            f"{name} is too short ({n_tokens} token{'s' * (n_tokens > 1)}): "
            f"give a text of {MIN_TOKENS} tokens or more"
        )
    return Corpus(text, source, path.as_posix(), (*notes, *changes))


def _plain_text(content: bytes, name: str) -> tuple[str, list[str]]:
    """The text without byte-order mark and carriage returns, and a note on each removal."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{name} is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8, "
            f"or save it as UTF-8 in an editor)"
        )
    if (place := content.find(b"\0")) >= 0:
        raise UserError(
            f"{name} is a binary file (a NUL byte at byte {place:,}): name a UTF-8 text file"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 (byte 0x{content[error.start]:02x} at byte {error.start:,}): "
            f"convert it (iconv -f WINDOWS-1252 -t UTF-8, or save it as UTF-8 in an editor)"
        ) from None
    notes = []
    if text.startswith("\ufeff"):
        text = text.removeprefix("\ufeff")
        notes.append("removed the byte-order mark from the start of the file")
    if carriage_returns := text.count("\r"):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        notes.append(f"changed {carriage_returns:,} carriage returns to line feeds")
    return text, notes


def demonstration(reason: str) -> Corpus:
    """The text that every Python has: its own documentation.

    Args:
        reason: why it takes the place of another text; it starts the corpus's note.

    Raises:
        UserError: this Python was built without it.
    """
    try:
        from pydoc_data import topics
    except ImportError:
        raise UserError(
            f"{reason}, and this Python has no pydoc_data for a demonstration: put a UTF-8 text at "
            f"{DEFAULT_PATH.as_posix()} or name one (--input_file)"
        ) from None
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    text = "\n\n".join(text for text in texts if isinstance(text, str))
    note = (
        f"{reason}: this is a demonstration text, Python's own documentation, and never counts as "
        f"the course's file"
    )
    return Corpus(text, "demo", "pydoc_data.topics", (note,))
