"""GPT-2 as published: learned positions, pre-LayerNorm, tanh-GELU, biases, tied head.

Parameter names and shapes are those of the released weights (and of `transformers`), so that
weights go from one to the other without renaming or transposing. Letters in the shapes: B sequences
of T tokens, C channels (`n_embd`), H heads of D = C / H channels each, V tokens in the vocabulary.

Every formula is in this file. In two places, `linear` and `GPT2.loss_of`, a CPU takes the faster
kernels of cpu_kernels.py instead; they compute the same numbers.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3.
The standard deviation of the initial weights is that of GPT (Radford et al., 2018, section 4.1).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_nb_utils.model import cpu_kernels
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX

if TYPE_CHECKING:
    from gpt2_nb_utils.model.sampling import KVCache

STANDARD_DEVIATION = 0.02
"""Of the initial weights, except those of the residual projections."""


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of the network. The defaults are GPT-2 124M."""

    block_size: int = 1024  # longest context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257

    @classmethod
    def of(cls, settings: Any) -> GPT2Config:
        """The sizes that a run's settings (RunConfig) ask for."""
        return cls(settings.block_size, settings.n_layer, settings.n_head, settings.n_embd)

    def to_dict(self) -> dict[str, int]:
        """The sizes by name, as a checkpoint stores them."""
        return asdict(self)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for `x` (…, in), `weight` (out, in) and `bias` (out,): (…, out)."""
    if cpu_kernels.takes_linear(x, weight):
        return cpu_kernels.linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Conv1D(nn.Module):
    """A linear layer with its weight stored (in, out): name and layout of the released GPT-2."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.t(), self.bias)  # x @ weight + bias: (…, out)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        # Queries, keys and values in one matrix product: a large one is faster than three.
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x` (B, T, C), each (B, H, T, D)."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)  # (B, T, C)
        )
        return q, k, v

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        q, k, v = self.heads(x)  # (B, H, T, D)
        mask = None
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, past + T, D)
            mask = cache.mask
        # softmax(q kᵀ / √D + mask) v; without a past, the mask is the lower triangle
        is_causal = q.size(2) == k.size(2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        y = y.transpose(1, 2).reshape(x.shape)  # heads side by side again: (B, T, C)
        return self.c_proj(y)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights (B, H, T, T) inside `forward`: row t is where token t looks."""
        q, k, _ = self.heads(x)
        T, D = q.shape[2:]
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
        return scores.masked_fill(~causal_mask(T, T, x.device), -math.inf).softmax(dim=-1)


def causal_mask(n_queries: int, n_keys: int, device: torch.device | str = "cpu") -> Tensor:
    """True where a query may look: (n_queries, n_keys). The last query belongs to the last key."""
    everywhere = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return everywhere.tril(diagonal=n_keys - n_queries)


class MLP(nn.Module):
    """Two linear layers with a tanh-GELU between them, four times as wide inside."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)

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
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


def expected_std(name: str, n_layer: int) -> float:
    """The standard deviation that the initial values of a parameter should have.

    Args:
        name: parameter name, such as `transformer.h.0.mlp.c_proj.weight`.
        n_layer: blocks in the model.
    """
    if name.endswith(".bias") or ".ln_" in name:
        return 0.0  # biases start at 0, LayerNorm weights at 1
    if name.endswith("c_proj.weight"):
        # Each block adds to the residual stream twice: 2N terms together vary like one of 0.02.
        return STANDARD_DEVIATION / (2 * n_layer) ** 0.5
    return STANDARD_DEVIATION


class GPT2(nn.Module):
    """The whole network, with random weights.

    It has no dropout, which would keep it from memorising: `train()` and `eval()` change nothing.

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
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        # Drawn from a generator of its own, on the CPU and in the order of the parameters: the
        # global random state stays as it is, and a GPU starts from the same weights as a CPU.
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            std = expected_std(name, self.config.n_layer)
            if std == 0:
                parameter.fill_(1.0 if name.endswith(".weight") else 0.0)
            else:
                parameter.normal_(0.0, std, generator=generator)

    @property
    def n_params(self) -> int:
        """Parameters in total; the head shares the token embedding, which is counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.wte.weight.device

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Token plus position embeddings (B, T, C) of ids `x` (B, T).

        Args:
            positions: of the ids, (B, T); 0, 1, 2, … in each row if None.
        """
        wte, wpe = self.transformer.wte, self.transformer.wpe
        if positions is None:
            return wte(x) + wpe.weight[: x.size(1)]  # (B, T, C) + (T, C)
        return wte(x) + wpe(positions)

    def hidden(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last hidden states (B, T, C), normalised and ready for the head."""
        positions = None if cache is None else cache.begin(x)  # (B, T)
        end = x.size(1) if cache is None else len(cache)
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens exceed block_size {self.config.block_size}")
        h = self.embed(x, positions)  # (B, T, C)
        for layer, block in enumerate(self.transformer.h):
            h = block(h, cache, layer)  # (B, T, C)
        return self.transformer.ln_f(h)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, C): products with all rows of the token embedding."""
        return linear(hidden, self.transformer.wte.weight)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of the ids `x` (B, T).

        Args:
            x: token ids; with a cache, only those that it does not hold yet.
            cache: keys and values of the tokens before `x`; it grows by T.
        """
        return self.head(self.hidden(x, cache))

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets `y` (B, T) after ids `x` (B, T), without IGNORE_INDEX.

        Args:
            reduction: `mean`, `sum`, or `none` for one value per target, (B, T).
        """
        return self.loss_of(self.hidden(x), y, reduction)

    def loss_of(self, hidden: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """The same from the last hidden states (B, T, C), for callers that need those as well."""
        weight = self.transformer.wte.weight  # (V, C)
        hidden, targets = hidden.flatten(0, 1), y.flatten()  # (N, C) and (N,), N = B T
        if cpu_kernels.takes_loss(weight, reduction):
            losses = cpu_kernels.fused_linear_cross_entropy(
                hidden, weight, targets, IGNORE_INDEX, reduction
            )
        else:
            # Padded in 16 bits only: in fp32 no tensor core takes part, and cross_entropy would
            # copy the slice of the logits.
            in_16_bits = hidden.is_cuda and torch.is_autocast_enabled("cuda")
            logits = (padded_linear if in_16_bits else F.linear)(hidden, weight)  # (N, V)
            # In fp32 whatever the autocast: a sum of 50,257 exponentials overflows in fp16.
            losses = F.cross_entropy(
                logits.to(weight.dtype), targets, ignore_index=IGNORE_INDEX, reduction=reduction
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


def padded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` (N, V) for `weight` (V, C), padded inside to a multiple of 64 columns.

    Tensor cores take matrices in tiles of 128 bytes, 64 values in 16 bits, and are slow where a row
    of the result ends within a tile, as one of 50,257 does.

    Source: NVIDIA, "Matrix Multiplication Background User's Guide", on tensor core requirements.
    """
    V = len(weight)
    return F.linear(x, F.pad(weight, (0, 0, 0, -V % 64)))[:, :V]


def _embedding(n_rows: int, n_embd: int) -> nn.Embedding:
    # nn.Embedding alone would fill itself from the global random state, only to be filled again.
    return nn.Embedding.from_pretrained(torch.empty(n_rows, n_embd), freeze=False)
