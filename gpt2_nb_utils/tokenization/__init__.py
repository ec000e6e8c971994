"""From one text file to batches of token ids.

`corpus` finds the text, `bpe` turns it into GPT-2 tokens and back, `windows` cuts the tokens into
inputs and targets, and `lower_bound` says which training loss no model can beat on such windows.
"""

from gpt2_nb_utils.tokenization.bpe import (
    VOCAB_SIZE,
    decode,
    encode,
    gpt2_encoding,
    merge_steps,
    pieces,
    token_strings,
)
from gpt2_nb_utils.tokenization.corpus import Corpus, load_corpus
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX, EpochSampler, TokenDataset

__all__ = [
    "VOCAB_SIZE",
    "decode",
    "encode",
    "gpt2_encoding",
    "merge_steps",
    "pieces",
    "token_strings",
    "Corpus",
    "load_corpus",
    "IGNORE_INDEX",
    "EpochSampler",
    "TokenDataset",
]
