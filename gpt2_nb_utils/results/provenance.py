"""Where a generated text comes from: what of it appears verbatim in the corpus, by token ids, and what does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.figures.html import FAINT, beside, box, key
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.results.recall import marked
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.tokenization.dataset import TokenDataset

_COPIED = "background:#d3e6f7; text-decoration:underline;"
_LENGTH = 40
"""Tokens of a continuation, where windows are long enough for them and the prompt."""
_NEW_PROMPT, _OLD_PROMPT = "does not stand in the text", "stands in the text"


@dataclass(frozen=True)
class Provenance:
    """A continuation of a prompt, held against the corpus.

    Attributes:
        prompt: the given tokens (P,).
        said: the continuation (R,).
        known_prompt: whether the prompt stands in the corpus.
        runs: for each token of `said`, how many tokens up to and with it stand in the corpus in a
            row (R,).
        place: number of the corpus token at which the longest of these stretches begins.
        nearest: number of the first token of the passage of R tokens that shares most tokens with
            `said`, in any order.
        shared: how many it shares.
    """

    prompt: Tensor
    said: Tensor
    known_prompt: bool
    runs: np.ndarray
    place: int
    nearest: int
    shared: int

    @property
    def longest(self) -> int:
        """Tokens in the longest stretch that stands in the corpus."""
        return int(self.runs.max())

    @property
    def stretch(self) -> tuple[int, int]:
        """Where that stretch begins and ends in `said`."""
        end = int(self.runs.argmax()) + 1
        return end - self.longest, end


def matching_runs(
    ids: Tensor, tokens: Tensor, own_place: int | None = None
) -> Iterator[np.ndarray]:
    """For each of some ids, how long the match is that ends with it at each token of the corpus.

    Args:
        ids: (R,).
        tokens: the corpus (N,).
        own_place: where `ids` stand in the corpus themselves: that place does not count.

    Yields:
        For id number i the lengths (N,): at j, how many ids up to i equal the tokens up to j.
    """
    corpus = tokens.numpy()
    runs = np.zeros(len(corpus) + 1, dtype=np.int64)
    for i, wanted in enumerate(ids.tolist()):
        # A match grows by one where it held one token earlier; the zero in front is what stands before the corpus.
        runs[1:] = np.where(corpus == wanted, runs[:-1] + 1, 0)
        if own_place is not None:
            runs[own_place + i + 1] = 0
        yield runs[1:]


def held_against(
    prompt: Tensor, said: Tensor, tokens: Tensor, known_prompt: bool = False
) -> Provenance:
    """Find what of a continuation stands in the corpus.

    Args:
        prompt: (P,).
        said: (R,), R at least 1.
        tokens: the corpus (N,), on the CPU.
        known_prompt: whether the prompt stands in it.
    """
    lengths, ends = zip(
        *((int(runs.max()), int(runs.argmax())) for runs in matching_runs(said, tokens))
    )
    best = int(np.argmax(lengths))
    nearest, shared = _nearest(said, tokens)
    return Provenance(
        prompt,
        said,
        known_prompt,
        np.array(lengths),
        ends[best] - lengths[best] + 1,
        nearest,
        shared,
    )


def _nearest(said: Tensor, tokens: Tensor) -> tuple[int, int]:
    """(First token, number of shared tokens) of the passage that shares most tokens with `said`, each counted as often as both have it."""
    corpus, length = tokens.numpy(), min(len(said), len(tokens))
    shared = np.zeros(len(corpus) - length + 1, dtype=np.int64)
    for token, count in zip(*np.unique(said.numpy(), return_counts=True)):
        upto = np.concatenate(
            [[0], np.cumsum(corpus == token)]
        )  # how often among the first n tokens
        shared += np.minimum(upto[length:] - upto[:-length], count)
    return int(shared.argmax()), int(shared.max())


def n_tokens(windows: TokenDataset) -> int:
    """Tokens of a continuation, and of a passage that it is compared with."""
    return max(1, min(_LENGTH, windows.seq_len // 2))


def continued(model: GPT2, windows: TokenDataset, prompts: Sequence[str]) -> list[Provenance]:
    """Let the model continue prompts, always with the most likely token, and compare what it says with its corpus."""
    given = [torch.from_numpy(encode(prompt))[: max(1, windows.seq_len // 2)] for prompt in prompts]
    texts = generate(model, given, n_tokens(windows), temperature=0, context=windows.seq_len)
    tokens = windows.tokens.cpu()
    corpus = decode(tokens.numpy())
    return [
        held_against(ids, text[len(ids) :], tokens, prompt in corpus)
        for prompt, ids, text in zip(prompts, given, texts)
    ]


def usual_stretch(windows: TokenDataset, n: int = 8) -> int:
    """How long a stretch a passage of the corpus usually shares with another place of it: the median over `n` passages."""
    tokens = windows.tokens.cpu()
    length = min(n_tokens(windows), len(tokens))
    places = [(2 * i + 1) * (len(tokens) - length) // (2 * n) for i in range(n)]
    longest = [
        max(
            int(runs.max()) for runs in matching_runs(tokens[place : place + length], tokens, place)
        )
        for place in places
    ]
    return sorted(longest)[len(longest) // 2]


def in_words(provenances: Sequence[Provenance], usual: int) -> str:
    """The result in a sentence or two.

    Args:
        usual: from `usual_stretch`.
    """
    said = len(provenances[0].said)
    longest = ", ".join(str(one.longest) for one in provenances)
    return (
        f"Of {said} tokens each, the longest stretch that stands in the text word for word: {longest} tokens. Two places of the "
        f"text itself usually share {usual}: a stretch much longer than that was remembered, one no longer may have been composed."
    )


def shown(provenances: Sequence[Provenance], windows: TokenDataset, context: int = 10) -> HTML:
    """Each continuation beside the place of its longest stretch in the corpus, and the passage that shares most tokens.

    Args:
        context: tokens of the corpus around the stretch, in grey.
    """
    tokens = windows.tokens
    rows = [
        f'<div style="font-size:.85em; margin:.3em 0;">{key("given, or around it", FAINT)}'
        f"{key('the longest stretch that stands in the text', 'color:#1a1a1a; ' + _COPIED)}</div>"
    ]
    for one in provenances:
        begin, end = one.stretch
        said = (
            marked(one.prompt, FAINT)
            + marked(one.said[:begin])
            + marked(one.said[begin:end], _COPIED)
            + marked(one.said[end:])
        )
        after = one.place + one.longest
        there = (
            marked(tokens[max(0, one.place - context) : one.place], FAINT)
            + marked(tokens[one.place : after], _COPIED)
            + marked(tokens[after : after + context], FAINT)
        )
        where = _OLD_PROMPT if one.known_prompt else _NEW_PROMPT
        rows.append(
            beside(
                [
                    (f"prompt ({where}) and continuation", box(said)),
                    (f"the {one.longest} tokens in the text, from token {one.place:,}", box(there)),
                    (
                        f"nearest passage, from token {one.nearest:,}: shares {one.shared} of {len(one.said)} tokens, in any order",
                        box(marked(tokens[one.nearest : one.nearest + len(one.said)])),
                    ),
                ]
            )
        )
    return HTML("".join(rows))
