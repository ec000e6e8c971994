"""The parameters of GPT-2, their count, names and shapes, derived from its sizes alone."""

from __future__ import annotations

from gpt2_nb_utils.model.gpt2 import GPT2Config


def parameter_parts(config: GPT2Config) -> list[tuple[str, str, int]]:
    """Each part of the network with its arithmetic and its parameters.

    Returns:
        Rows (part, arithmetic, parameters); the parameters add up to those of `GPT2(config)`.
    """
    V, P, C, L = config.vocab_size, config.block_size, config.n_embd, config.n_layer
    return [
        ("token embedding (also the head)", f"{V:,} × {C}", V * C),
        ("position embedding", f"{P:,} × {C}", P * C),
        ("LayerNorms of the blocks", f"{L} × 2 × 2 × {C}", L * 2 * 2 * C),
        (
            "attention: queries, keys, values",
            f"{L} × ({C} × {3 * C:,} + {3 * C:,})",
            L * (C * 3 * C + 3 * C),
        ),
        ("attention: projection", f"{L} × ({C} × {C} + {C})", L * (C * C + C)),
        ("MLP: up", f"{L} × ({C} × {4 * C:,} + {4 * C:,})", L * (C * 4 * C + 4 * C)),
        ("MLP: down", f"{L} × ({4 * C:,} × {C} + {C})", L * (4 * C * C + C)),
        ("last LayerNorm", f"2 × {C}", 2 * C),
    ]


def parameter_count(config: GPT2Config) -> int:
    """Parameters of `GPT2(config)`, without building it."""
    return sum(count for _, _, count in parameter_parts(config))


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every parameter of GPT-2 as published, from its sizes alone. The head is no parameter of its own."""
    V, P, C = config.vocab_size, config.block_size, config.n_embd
    block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, 4 * C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (4 * C, C),
        "mlp.c_proj.bias": (C,),
    }
    return {
        "transformer.wte.weight": (V, C),
        "transformer.wpe.weight": (P, C),
        **{
            f"transformer.h.{layer}.{name}": shape
            for layer in range(config.n_layer)
            for name, shape in block.items()
        },
        "transformer.ln_f.weight": (C,),
        "transformer.ln_f.bias": (C,),
    }
