"""The Hugging Face format: a folder that `transformers` loads by itself, written from a model.

The names and shapes of our weights are already those of the published GPT-2, so nothing is renamed or transposed. What the
folder may hold when it comes back is `hf_reader`'s affair.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.initialisation import STANDARD_DEVIATION
from gpt2_nb_utils.tokenization.bpe import END_OF_TEXT, vocabulary_files

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""The number formats in which weights are stored, by transformers' names for them."""
_END = "<|endoftext|>"


def needed(package: str) -> Any:
    """A package that only the notebook and the commands of this room need, imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UserError(
            f"the Hugging Face format needs the package {name}, which is not installed: pip install {name}"
        ) from None


def write_hf(
    folder: Path,
    model: GPT2,
    dtype: str,
    training_run: Mapping[str, Any],
    sampling: Mapping[str, Any],
) -> None:
    """Write a model so that `AutoModelForCausalLM` and `AutoTokenizer` load it without a network.

    Args:
        folder: an existing folder, into which config.json, generation_config.json, model.safetensors, tokenizer.json and
            tokenizer_config.json go.
        model: any GPT-2 with GPT-2's vocabulary.
        dtype: one of DTYPES. The tied head is stored once, as the token embedding.
        training_run: what the readers of the model should know of its run; it becomes a key of config.json. Its `seq_len` is
            the longest context that training showed the model.
        sampling: `temperature`, `top_k` and `max_new_tokens` of the run: what `generate` does unless told otherwise.

    Raises:
        UserError: weights that are not finite, or too large for the number format, or a package that is not installed.
    """
    tensors = stored_weights(model, dtype)
    # As bytes: what fails in writing is then an OSError, such as that of a full disk.
    (folder / WEIGHTS).write_bytes(
        needed("safetensors.torch").save(tensors, metadata={"format": "pt"})
    )
    _write_json(folder / CONFIG, _config(model.config, dtype, training_run))
    _write_json(folder / GENERATION, _generation(sampling))
    _write_tokenizer(folder, min(training_run["seq_len"], model.config.block_size))


def stored_weights(model: GPT2, dtype: str) -> dict[str, Tensor]:
    """The weights by name, in the number format in which they are stored.

    Raises:
        UserError: weights that are not finite, or too large for it.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        if not stored.isfinite().all():
            if not tensor.isfinite().all():
                raise UserError(
                    f"the weights in {name} are not finite: the training of this model has diverged, so export another one"
                )
            raise UserError(
                f"the weights in {name} reach {tensor.abs().max().item():,.0f}, and {dtype} ends at "
                f"{torch.finfo(DTYPES[dtype]).max:,.0f}: take --dtype float32"
            )
        tensors[name] = stored
    return tensors


def _config(sizes: GPT2Config, dtype: str, training_run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": sizes.vocab_size,
        "n_positions": sizes.block_size,
        "n_embd": sizes.n_embd,
        "n_layer": sizes.n_layer,
        "n_head": sizes.n_head,
        "n_inner": None,  # four times n_embd
        "activation_function": "gelu_new",  # GELU by tanh
        "layer_norm_epsilon": 1e-5,
        "initializer_range": STANDARD_DEVIATION,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,  # trained without dropout
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        # Its text had no end of a document in it, so the model never says one.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
        "use_cache": True,
        "training_run": dict(training_run),
    }


def _generation(sampling: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {"do_sample": True, "temperature": sampling["temperature"], "top_k": sampling["top_k"]}
    return {
        **(drawn if sampling["temperature"] > 0 else {"do_sample": False}),
        "max_new_tokens": sampling["max_new_tokens"],
        "pad_token_id": END_OF_TEXT,
    }


def _write_tokenizer(folder: Path, longest: int) -> None:
    tokenizers = needed("tokenizers")
    vocabulary, merges = (content.decode("utf-8") for content in vocabulary_files())
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(vocabulary), pairs))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    _write(folder / TOKENIZER, tokenizer.to_str(pretty=True))
    _write_json(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": longest,
            **{f"{role}_token": _END for role in ("bos", "eos", "unk", "pad")},
        },
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _write(path: Path, text: str) -> None:
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")
