"""GPT-2 as published: learned positions, pre-LayerNorm, tanh-GELU, biases, tied head.

The module knows token ids and tensors only; text, optimizers and files are other rooms. Parameter names and shapes
are those of the released weights (and of `transformers`), so that weights go across without renaming or transposing.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_nb_utils.model.head_loss import head_loss
from gpt2_nb_utils.model.initialisation import initialise
from gpt2_nb_utils.model.kv_cache import KVCache
from gpt2_nb_utils.model.linear import linear
from gpt2_nb_utils.tokenization.windows import IGNORE_INDEX


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of the network. The defaults are GPT-2 124M."""

    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257

    def to_dict(self) -> dict[str, int]:
        """The sizes by name, as a checkpoint stores them."""
        return asdict(self)


class Affine(nn.Module):
    """`x @ weight + bias`, with the weight stored (in, out) as in the released GPT-2 (called Conv1D there)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Affine(
            config.n_embd, 3 * config.n_embd
        )  # queries, keys and values side by side
        self.c_proj = Affine(config.n_embd, config.n_embd)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x` (B, T, C), each (B, H, T, D)."""
        B, T, C = x.shape
        return tuple(
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        q, k, v = self.heads(x)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, past + T, D)
        if q.size(2) == k.size(2):  # nothing stands before x
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask)
        return self.c_proj(
            y.transpose(1, 2).reshape(x.shape)
        )  # heads side by side again: (B, T, C)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights (B, H, T, T) that `forward` uses inside: row t is where token t looks."""
        q, k, _ = self.heads(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
        return scores.masked_fill(~causal_mask(q.size(2), k.size(2), q.device), -math.inf).softmax(
            dim=-1
        )


def causal_mask(n_queries: int, n_keys: int, device: torch.device | str = "cpu") -> Tensor:
    """True where a query may look: (n_queries, n_keys). The last query stands at the last key."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(
        diagonal=n_keys - n_queries
    )


class MLP(nn.Module):
    """Two affine maps with a tanh-GELU between them, four times as wide inside."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Affine(config.n_embd, 4 * config.n_embd)
        self.c_proj = Affine(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One transformer block: attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)  # (B, T, C)
        return x + self.mlp(self.ln_2(x))


def _embedding(n_rows: int, n_embd: int) -> nn.Embedding:
    # nn.Embedding alone would fill itself from the global random state, only to be filled again.
    return nn.Embedding.from_pretrained(torch.empty(n_rows, n_embd), freeze=False)


class GPT2(nn.Module):
    """The whole network, with random weights.

    Args:
        config: its sizes.
        seed: seed of the initial weights; the same seed gives the same weights on every device.
    """

    def __init__(self, config: GPT2Config = GPT2Config(), seed: int = 1337):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": _embedding(config.vocab_size, config.n_embd),
                "wpe": _embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        initialise(self, seed)

    @property
    def n_params(self) -> int:
        """Parameters in all; the head shares the token embedding and is counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.wte.weight.device

    def embed(self, x: Tensor, past: int | Tensor = 0) -> Tensor:
        """Token plus position embeddings (B, T, C) of ids `x` (B, T) that stand at positions `past`, `past + 1`, …

        Args:
            past: one number, or (B,) where rows differ.
        """
        if isinstance(past, Tensor):
            return self.transformer.wte(x) + self.transformer.wpe(
                past[:, None] + torch.arange(x.size(1), device=x.device)
            )
        end = past + x.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens exceed block_size {self.config.block_size}")
        return self.transformer.wte(x) + self.transformer.wpe.weight[past:end]

    def hidden(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last hidden states (B, T, C), normalised and ready for the head."""
        h = self.embed(x, past=cache.begin(x) if cache is not None else 0)  # (B, T, C)
        for layer, block in enumerate(self.transformer.h):
            h = block(h, cache, layer)
        return self.transformer.ln_f(h)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of the ids `x` (B, T).

        Args:
            x: token ids; with a cache, only those that it does not hold yet.
            cache: keys and values of the tokens before `x`; it grows by T.
        """
        return linear(self.hidden(x, cache), self.transformer.wte.weight.t())

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets `y` (B, T) after ids `x` (B, T); IGNORE_INDEX is left out.

        Args:
            reduction: `mean`, `sum`, or `none` for one value per target, (B, T).
        """
        return self.loss_of(self.hidden(x), y, reduction)

    def loss_of(self, hidden: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """The same from the last hidden states (B, T, C) of the ids, for who needs those as well."""
        losses = head_loss(
            hidden.flatten(0, 1), self.transformer.wte.weight, y.flatten(), IGNORE_INDEX, reduction
        )
        return losses.view(y.shape) if reduction == "none" else losses

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """The attention weights of each block for ids `x` (B, T): one (B, H, T, T) per layer."""
        h, maps = self.embed(x), []
        for block in self.transformer.h:
            maps.append(block.attn.weights(block.ln_1(h)))
            h = block(h)
        return maps
