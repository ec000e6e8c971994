"""Continue token sequences with a model: temperature, top-k, KV cache.

It sees token ids only, never text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2

Randomness = torch.Generator | Sequence[torch.Generator] | None
"""A source on the CPU, or one for each row; rows with the same one are drawn together."""


class KVCache:
    """Keys and values of the tokens already seen: a new token costs one row, not the whole context.

    Those of the token at position p of a row are in slot p. Rows need not hold equally many tokens.

    Args:
        n_layer: layers of the model.
        capacity: tokens of one row that fit in.

    Attributes:
        lengths: tokens held by each row; empty before the first.
        rows: numbers of the rows that a forward pass is about; None for all.
        mask: True where the queries of the current forward pass may look, (B, 1, T, K); None where
            one query of each row may see every key, or where nothing came before.
    """

    def __init__(self, n_layer: int, capacity: int):
        self.n_layer, self.capacity = n_layer, capacity
        self.lengths: list[int] = []
        self.rows: list[int] | None = None
        self.mask: Tensor | None = None
        self._held: Tensor | None = None  # keys and values of all layers, (L, 2, B, H, capacity, D)

    def __len__(self) -> int:
        """Tokens held by the longest row."""
        return max(self.lengths, default=0)

    def begin(self, x: Tensor) -> Tensor:
        """Make room for the tokens `x` (B, T) of a forward pass, which come next in each row.

        Returns:
            Their positions, (B, T).

        Raises:
            ValueError: they do not fit in.
        """
        B, T = x.shape
        self.lengths = self.lengths or [0] * B
        rows = range(B) if self.rows is None else self.rows
        past = [self.lengths[row] for row in rows]
        longest = max(past)
        self._end = longest + T
        if self._end > self.capacity:
            raise ValueError(f"{self._end} tokens exceed the cache's capacity {self.capacity}")
        for row in rows:
            self.lengths[row] += T
        self._places = torch.tensor(rows, device=x.device)[:, None]  # (B, 1)
        starts = torch.tensor(past, device=x.device)[:, None]  # (B, 1)
        self._slots = starts + torch.arange(T, device=x.device)  # (B, T)
        keys = torch.arange(self._end, device=x.device)  # (K,)
        sees_all = longest == 0 or (T == 1 and min(past) == longest)
        self.mask = None if sees_all else (keys <= self._slots[:, :, None])[:, None]  # (B, 1, T, K)
        return self._slots

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) of a layer; returns those of all used slots.

        Returns:
            Keys and values, (B, H, K, D).
        """
        if self._held is None:
            _, H, _, D = k.shape
            # Zeros: a slot that a shorter row has not reached has weight 0, but 0 × NaN is NaN.
            self._held = k.new_zeros(self.n_layer, 2, len(self.lengths), H, self.capacity, D)
        for held, new in zip(self._held[layer], (k, v)):
            held[self._places, :, self._slots] = new.transpose(1, 2)  # (B, T, H, D)
        keys, values = self._held[layer, :, :, :, : self._end]
        if self.rows is None:
            return keys, values  # views: a copy for each token would cost as much as attention
        return keys[self.rows], values[self.rows]


def context_start(n_tokens: int, longest: int) -> int:
    """Index of the first token that the model still sees when there are `n_tokens`.

    Up to `longest` tokens all are seen. Position embeddings are absolute, so each time the context
    slides all of it is recomputed; sliding by half a block at a time makes that rare.
    """
    if n_tokens <= longest:
        return 0
    stride = max(1, longest // 2)
    return -(-(n_tokens - longest) // stride) * stride


def next_token(
    logits: Tensor, temperature: float, top_k: int, generator: Randomness = None
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely; 0 means all.
        generator: source of randomness.

    Returns:
        Token ids (B,), on the device of the logits.

    Raises:
        UserError: logits that are not finite, from weights that training has ruined.
    """
    if not logits.amax(dim=-1).isfinite().all():  # the largest of a row with a nan in it is nan
        raise UserError(
            "the model's logits are not finite, so no token can be drawn: its training has "
            "diverged; lower lr"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    kept, ids = logits, None
    if 0 < top_k < logits.size(-1):
        kept, ids = logits.topk(top_k, dim=-1)  # (B, k)
    # Drawn on the CPU, so that one seed gives one text on every device; relative to the largest
    # logit, so that the smallest temperature does not overflow.
    kept = kept.cpu().double()
    probabilities = ((kept - kept.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    generators = generator if isinstance(generator, Sequence) else [generator] * len(logits)
    drawn = torch.empty(len(logits), 1, dtype=torch.long)
    for each in dict.fromkeys(generators):
        rows = [row for row, its in enumerate(generators) if its is each]
        drawn[rows] = torch.multinomial(probabilities[rows], num_samples=1, generator=each)
    drawn = drawn.to(logits.device)
    return (drawn if ids is None else ids.gather(1, drawn)).squeeze(1)


def skip_draws(generator: torch.Generator, n: int, rows: int, choices: int) -> None:
    """Advance a generator as `n` draws for each of `rows` would, each among `choices`."""
    uniform = torch.ones(rows, choices, dtype=torch.double)
    for _ in range(n):
        torch.multinomial(uniform, num_samples=1, generator=generator)


@torch.no_grad()
def generate(
    model: GPT2,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: Randomness = None,
    use_cache: bool = True,
    context: int | None = None,
) -> list[Tensor]:
    """Continue each prompt by `max_new_tokens` tokens.

    Args:
        prompts: token ids, each (t,) with t ≥ 1, of any lengths. They share one batch.
        use_cache: False computes the whole context for each token: the plain path, for comparison.
        context: tokens that the model sees at most; block_size if None. A model trained on windows
            of `seq_len` tokens has learned no position beyond those: pass `seq_len`.

    Returns:
        Prompt and continuation, each (t + max_new_tokens,), on the CPU.

    Raises:
        ValueError: a prompt without tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    context = min(context or model.config.block_size, model.config.block_size)
    B, ends = len(prompts), [len(prompt) for prompt in prompts]
    ids = pad_sequence([torch.as_tensor(prompt).long() for prompt in prompts], batch_first=True)
    # A row's text, and zeros behind it; no token sees what comes after it.
    ids = F.pad(ids, (0, max_new_tokens)).to(model.device)  # (B, longest + max_new_tokens)
    rows = torch.arange(B, device=ids.device)
    cache = KVCache(model.config.n_layer, min(context, ids.size(1)))
    cache.lengths, starts = [0] * B, [-1] * B

    def contexts(of_rows: Sequence[int], without_last: int = 0) -> Tensor:
        """What the model sees of these rows, padded to the longest of them: (len(of_rows), T)."""
        seen = [ids[row, starts[row] : ends[row] - without_last] for row in of_rows]
        return pad_sequence(seen, batch_first=True)

    for _ in range(max_new_tokens):
        before, starts = starts, [context_start(end, context) for end in ends]
        last = torch.tensor(ends, device=ids.device) - 1  # (B,)
        if use_cache:
            # The rows whose context slides are computed again; at first that is all rows.
            moved = [row for row in range(B) if starts[row] != before[row]]
            if moved:
                for row in moved:
                    cache.lengths[row] = 0
                seen = contexts(moved, without_last=1)
                if seen.size(1):
                    cache.rows = moved
                    model.hidden(seen, cache)
                    cache.rows = None
                # What was computed of the padding is written over.
                cache.lengths = [end - 1 - start for start, end in zip(starts, ends)]
            h = model.hidden(ids[rows, last, None], cache)[:, 0]  # (B, C)
        else:
            at = last - torch.tensor(starts, device=ids.device)
            h = model.hidden(contexts(range(B)))[rows, at]  # (B, C)
        # The head costs as much as many layers: only the last position of each row is needed.
        ids[rows, last + 1] = next_token(model.head(h), temperature, top_k, generator)
        ends = [end + 1 for end in ends]
    return [row[:end] for row, end in zip(ids.cpu(), ends)]
