"""Where a generated text comes from: what of it appears verbatim in the corpus, by token ids."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher

import numpy as np
import torch
from torch import Tensor

from gpt2_nb_utils.figures.html import FAINT, HTML, beside, key, marked
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.tokenization.dataset import TokenDataset

_COPIED = "background:#d3e6f7; text-decoration:underline;"
_LENGTH = 40
"""Tokens of a continuation, where windows are long enough for them and the prompt."""
_NEW_PROMPT, _OLD_PROMPT = "does not appear in the text", "appears in the text"


@dataclass(frozen=True)
class Provenance:
    """A continuation of a prompt, held against the corpus.

    Attributes:
        prompt: the given tokens (P,).
        said: the continuation (R,).
        known_prompt: whether the prompt appears in the corpus.
        longest: tokens in the longest stretch of `said` that appears verbatim in the corpus.
        begin: where in `said` that stretch begins.
        place: number of the corpus token at which it begins there.
        nearest: number of the first token of the passage of R tokens that shares most tokens with
            `said`, in any order.
        shared: how many it shares.
    """

    prompt: Tensor
    said: Tensor
    known_prompt: bool
    longest: int
    begin: int
    place: int
    nearest: int
    shared: int


def longest_match(ids: Tensor, tokens: Tensor) -> Match:
    """The longest stretch of some ids (R,) that appears verbatim in tokens (N,).

    Returns:
        `a`, where it begins in the tokens; `b`, where in the ids; `size`, how long it is.
    """
    # autojunk would pass over frequent tokens.
    return SequenceMatcher(None, tokens.tolist(), ids.tolist(), autojunk=False).find_longest_match()


def held_against(
    prompt: Tensor, said: Tensor, tokens: Tensor, known_prompt: bool = False
) -> Provenance:
    """Find what of a continuation appears in the corpus.

    Args:
        prompt: (P,).
        said: (R,), R at least 1.
        tokens: the corpus (N,), on the CPU.
        known_prompt: whether the prompt appears in it.
    """
    match = longest_match(said, tokens)
    nearest, shared = _nearest(said, tokens)
    return Provenance(prompt, said, known_prompt, match.size, match.b, match.a, nearest, shared)


def _nearest(said: Tensor, tokens: Tensor) -> tuple[int, int]:
    """(First token, number of shared tokens) of the passage that shares most tokens with `said`.

    Each token counts as often as both have it.
    """
    passage = np.ones(min(len(said), len(tokens)), dtype=np.int64)
    shared = 0
    for token, count in Counter(said.tolist()).items():
        # How often the token occurs in each passage: (N - R + 1,).
        occurrences = np.convolve(tokens.numpy() == token, passage, mode="valid")
        shared += np.minimum(occurrences, count)
    return int(shared.argmax()), int(shared.max())


def n_tokens(windows: TokenDataset) -> int:
    """Tokens of a continuation, and of a passage that it is compared with."""
    return max(1, min(_LENGTH, windows.seq_len // 2))


def continued(model: GPT2, windows: TokenDataset, prompts: Sequence[str]) -> list[Provenance]:
    """Let the model continue prompts greedily, and compare what it writes with its corpus."""
    given = [torch.from_numpy(encode(prompt))[: max(1, windows.seq_len // 2)] for prompt in prompts]
    texts = generate(model, given, n_tokens(windows), temperature=0, context=windows.seq_len)
    tokens = windows.tokens.cpu()
    corpus = decode(tokens.numpy())
    return [
        held_against(ids, text[len(ids) :], tokens, prompt in corpus)
        for prompt, ids, text in zip(prompts, given, texts)
    ]


def usual_stretch(windows: TokenDataset, n: int = 8) -> int:
    """How long a stretch a passage of the corpus usually shares with another place of it.

    Returns:
        The median over `n` passages.
    """
    tokens = windows.tokens.cpu()
    length = min(n_tokens(windows), len(tokens))
    longest = []
    for i in range(n):
        place = (2 * i + 1) * (len(tokens) - length) // (2 * n)
        end = place + length
        others = tokens[:place], tokens[end:]
        longest.append(max(longest_match(tokens[place:end], part).size for part in others))
    return statistics.median_high(longest)


def provenance_text(provenances: Sequence[Provenance], usual: int) -> str:
    """The result in a sentence or two.

    Args:
        usual: from `usual_stretch`.
    """
    said = len(provenances[0].said)
    longest = ", ".join(str(one.longest) for one in provenances)
    return (
        f"Of {said} tokens each, the longest stretch that appears verbatim in the text: {longest} "
        f"tokens. Two passages of the text itself usually share {usual}: a stretch much longer than "
        f"that was remembered, one no longer may have been composed."
    )


def shown(provenances: Sequence[Provenance], windows: TokenDataset, context: int = 10) -> HTML:
    """Each continuation beside its longest stretch in the corpus and the nearest passage.

    Args:
        context: tokens of the corpus around the stretch, in grey.
    """
    tokens = windows.tokens
    rows = [
        f'<div style="font-size:.85em; margin:.3em 0;">{key("given, or around it", FAINT)}'
        f"{key('the longest stretch that appears verbatim in the text', 'color:#1a1a1a; ' + _COPIED)}</div>"
    ]
    for one in provenances:
        R = len(one.said)
        said = marked(one.prompt, FAINT) + _with_stretch(one.said, one.begin, one.longest)
        first, end = max(0, one.place - context), one.place + one.longest + context
        there = _with_stretch(tokens[first:end], one.place - first, one.longest, FAINT)
        nearest = marked(tokens[one.nearest : one.nearest + R])
        where = _OLD_PROMPT if one.known_prompt else _NEW_PROMPT
        found = f"the {one.longest} tokens in the text, from token {one.place:,}"
        alike = (
            f"nearest passage, from token {one.nearest:,}: shares {one.shared} of {R} tokens, in "
            f"any order"
        )
        columns = (f"prompt ({where}) and continuation", said), (found, there), (alike, nearest)
        rows.append(beside(columns))
    return HTML("".join(rows))


def _with_stretch(ids: Tensor, begin: int, length: int, around: str = "") -> str:
    end = begin + length
    stretch = marked(ids[begin:end], _COPIED)
    return marked(ids[:begin], around) + stretch + marked(ids[end:], around)
