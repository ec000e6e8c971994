"""The tokens of a corpus in a file of its run, so that it is encoded once and not at each start.

The file holds token ids alone, 16 bits each, lowest byte first: there is nothing in it to parse or to execute. It is
believed only if its tokens spell the corpus, which costs a fraction of encoding it. The same text could also be cut
into other tokens, so whatever judges a run encodes the text itself; this file saves time to the training only.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.tokenization.bpe import END_OF_TEXT, gpt2_encoding
from gpt2_nb_utils.tokenization.corpus import Corpus

_FORMAT = np.dtype("<u2")


def read_tokens(path: Path, corpus: Corpus) -> np.ndarray | None:
    """The tokens of a corpus (N,) int64 from a file, or None where it is missing, damaged, or of another text."""
    try:
        longest = _FORMAT.itemsize * len(
            corpus.text.encode("utf-8")
        )  # no token without a byte of text
        if not path.is_file() or path.stat().st_size > longest:
            return None
        ids = np.frombuffer(path.read_bytes(), dtype=_FORMAT).astype(np.int64)
    except (OSError, ValueError):  # ValueError: an odd number of bytes
        return None
    if not len(ids) or ids.max() >= END_OF_TEXT:
        return None
    spelled = gpt2_encoding().decode_bytes(ids.tolist())
    return ids if hashlib.sha256(spelled).hexdigest() == corpus.sha256 else None


def write_tokens(path: Path, ids: np.ndarray) -> None:
    """Keep the tokens (N,) of a corpus for the next start. Where nothing can be written, there is no file."""
    with contextlib.suppress(OSError):
        write_atomically(path, ids.astype(_FORMAT).tobytes())
