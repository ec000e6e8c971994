"""The corpus: which text a run trains on, where it came from, and whether it is the course's file.

Nothing is printed here: what a user should know is in `Corpus.notes`, for the log, the notebook and
the report to show.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import charset_normalizer

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.machine import memory_limit
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

_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp866", "cp850",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
    "utf_16", "utf_32", "utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be",
]  # fmt: skip
"""What a text is looked for in that is not UTF-8; of equally plausible ones, the earlier is more
common."""
MIN_TOKENS = 3
MAX_BYTES = 2**31
"""A longer text is refused: with its tokens it would take tens of GB of memory."""
MEMORY_PER_BYTE = 3
"""Bytes of memory that each byte of a text takes, at least: the text, and its tokens at 8 bytes
each, of which prose has 0.3 for each byte."""


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
        if (needed := MEMORY_PER_BYTE * status.st_size) > (memory := memory_limit()):
            raise UserError(
                f"{name} takes more than {needed / 1e9:,.1f} GB of memory, and there are "
                f"{memory / 1e9:,.1f}: give a shorter text"
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
    try:
        text = content.decode("utf-8")
        place = content.find(b"\0")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        raise UserError(f"{name} is {_other_encoding(content, place)}")
    notes = []
    if text.startswith("\ufeff"):
        text = text.removeprefix("\ufeff")
        notes.append("removed the byte-order mark from the start of the file")
    if carriage_returns := text.count("\r"):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        notes.append(f"changed {carriage_returns:,} carriage returns to line feeds")
    return text, notes


def _other_encoding(content: bytes, place: int) -> str:
    """What a text may be that is not UTF-8 at a byte, how plausible that is, and how to convert it.

    A guess: some bytes are a text in several encodings. So the second-best is named too, and what
    the text reads in the best.
    """
    matches = sorted(
        charset_normalizer.from_bytes(content, cp_isolation=_ENCODINGS),
        key=lambda m: (m.chaos, -m.coherence, _ENCODINGS.index(m.encoding)),
    )
    if (nul := content.find(b"\0")) >= 0:
        # Any binary file can be read as UTF-16, but hardly as a language.
        matches = [m for m in matches if m.bom or m.coherence]
        if not matches:
            return f"a binary file (a NUL byte at byte {nul:,}): name a UTF-8 text file"
    byte = f"not UTF-8 (byte 0x{content[place]:02x} at byte {place:,})"
    if not matches:
        return f"{byte}, nor in any common encoding: save it as UTF-8 in an editor"
    names = [re.sub("-(?=[LB]E$)", "", m.encoding.upper().replace("_", "-")) for m in matches]
    fix = f"convert it (iconv -f {names[0]} -t UTF-8, or save it as UTF-8 in an editor)"
    if matches[0].bom:
        return f"{names[0]}, not UTF-8: {fix}"
    likely = [f"{name} ({1 - m.chaos:.0%} plausible)" for name, m in zip(names[:2], matches)]
    line = content[content.rfind(b"\n", 0, place) + 1 : place + 60]
    reads = line.decode(matches[0].encoding, "ignore")
    special = re.search(r".{0,20}[^\0-\x7f].{0,20}", reads)
    return (
        f"{byte}, but most likely {', else '.join(likely)}; as {names[0]} it reads "
        f'"{special[0] if special else reads[:40]}": {fix}'
    )


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
