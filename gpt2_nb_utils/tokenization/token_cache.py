"""The tokens of a corpus in a file of its run, so that it is encoded once and not at each start.

The file holds token ids alone, 16 bits each, lowest byte first: there is nothing in it to parse or
to execute. It is used only if its tokens spell the corpus, which costs a fraction of encoding it.
The same text could also be cut into other tokens, so whatever judges a run encodes the text itself:
this file saves time in training only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.tokenization.bpe import END_OF_TEXT, sha256_of
from gpt2_nb_utils.tokenization.corpus import Corpus

_FORMAT = np.dtype("<u2")


def read_tokens(path: Path, corpus: Corpus) -> np.ndarray | None:
    """The tokens of a corpus (N,) int64; None if the file is missing, bad or of another text."""
    try:
        n_bytes = len(corpus.text.encode("utf-8"))  # as many tokens at most
        if not path.is_file() or path.stat().st_size > n_bytes * _FORMAT.itemsize:
            return None
        ids = np.frombuffer(path.read_bytes(), dtype=_FORMAT).astype(np.int64)
    except (OSError, ValueError):  # ValueError: an odd number of bytes
        return None
    if (ids >= END_OF_TEXT).any():
        return None
    return ids if sha256_of(ids) == corpus.sha256 else None


def write_tokens(path: Path, ids: np.ndarray) -> None:
    """Keep the tokens (N,) of a corpus for the next start, if the file can be written."""
    with contextlib.suppress(OSError):
        write_atomically(path, ids.astype(_FORMAT).tobytes())
