"""The parameters of GPT-2: their count, names and shapes, computed from its sizes alone."""

from __future__ import annotations

from gpt2_nb_utils.model.gpt2 import GPT2Config


def parameter_parts(config: GPT2Config) -> list[tuple[str, str, int]]:
    """Each part of the network with its arithmetic and its parameters.

    Returns:
        Rows (part, arithmetic, parameters); the parameters add up to those of `GPT2(config)`.
    """
    V, P, C, L = config.vocab_size, config.block_size, config.n_embd, config.n_layer

    def linear(n_in: int, n_out: int) -> tuple[str, int]:
        return f"{L} × ({n_in:,} × {n_out:,} + {n_out:,})", L * (n_in * n_out + n_out)

    return [
        ("token embedding (also the head)", f"{V:,} × {C:,}", V * C),
        ("position embedding", f"{P:,} × {C:,}", P * C),
        ("LayerNorms of the blocks", f"{L} × 2 × 2 × {C:,}", L * 2 * 2 * C),
        ("attention: queries, keys, values", *linear(C, 3 * C)),
        ("attention: projection", *linear(C, C)),
        ("MLP: up", *linear(C, 4 * C)),
        ("MLP: down", *linear(4 * C, C)),
        ("last LayerNorm", f"2 × {C:,}", 2 * C),
    ]


def parameter_count(config: GPT2Config) -> int:
    """Parameters of `GPT2(config)`, without building it."""
    return sum(count for _, _, count in parameter_parts(config))


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of `GPT2(config)`, without building it."""
    C = config.n_embd
    layers = {
        "ln_1": (C,),
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (C, 4 * C),
        "mlp.c_proj": (4 * C, C),
    }
    shapes = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    for number in range(config.n_layer):
        for name, shape in layers.items():
            shapes[f"h.{number}.{name}.weight"] = shape
            shapes[f"h.{number}.{name}.bias"] = shape[-1:]
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (C,)
    return {f"transformer.{name}": shape for name, shape in shapes.items()}
