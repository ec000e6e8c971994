"""The Hugging Face format: a folder that `transformers` loads by itself, written from a model and read back.

The names and shapes of our weights are already those of the published GPT-2, so nothing is renamed or transposed. Nothing in a
folder that is read is ever executed: it holds numbers, text and tensors, and pickles are not looked at.
"""

from __future__ import annotations

import importlib
import json
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.space.rendering import render
from gpt2_nb_utils.tokenization.bpe import END_OF_TEXT, VOCAB_SIZE, vocabulary_files

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""The number formats in which weights are stored, by transformers' names for them."""


def needed(package: str) -> Any:
    """A package that only notebook 05 and its commands use, imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UserError(
            f"this needs the package {name}, which is not installed: pip install {name}"
        ) from None


# -- written -------------------------------------------------------------------------------------------------------------------


def write_hf(
    folder: Path, model: GPT2, dtype: str, training_run: dict[str, Any], config: RunConfig
) -> None:
    """Write a model so that `AutoModelForCausalLM` and `AutoTokenizer` load it without a network.

    Args:
        folder: an existing folder, into which config.json, generation_config.json, model.safetensors, tokenizer.json and
            tokenizer_config.json go.
        model: any GPT-2 with GPT-2's vocabulary.
        dtype: one of DTYPES. The tied head is stored once, as the token embedding.
        training_run: what the readers of the model should know of its run; it becomes a key of config.json.
        config: settings of the run: how `generate` samples unless it is given other settings, and the longest context that
            training showed the model.

    Raises:
        UserError: weights that are not finite, or too large for the number format, or a package that is not installed.
    """
    weights = needed("safetensors.torch").save(stored_weights(model, dtype), {"format": "pt"})
    # As bytes: what fails in writing is then an OSError, such as that of a full disk.
    (folder / WEIGHTS).write_bytes(weights)
    texts = {
        name: render(
            name,
            sizes=model.config,
            dtype=dtype,
            training_run=training_run,
            config=config,
            end_of_text=END_OF_TEXT,
        )
        for name in (CONFIG, GENERATION, TOKENIZER_CONFIG)
    }
    for name, text in {**texts, TOKENIZER: _tokenizer().to_str(pretty=True)}.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def stored_weights(model: GPT2, dtype: str) -> dict[str, Tensor]:
    """The weights by name, in the number format in which they are stored.

    Raises:
        UserError: weights that are not finite, or too large for it.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        if not stored.isfinite().all():
            raise UserError(
                f"the weights in {name} are not finite in {dtype}, whose numbers end at "
                f"{torch.finfo(DTYPES[dtype]).max:.5g}: use --dtype float32, or another run if this one has diverged"
            )
        tensors[name] = stored
    return tensors


def _tokenizer() -> Any:
    vocabulary, merges = (content.decode("utf-8") for content in vocabulary_files())
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
    tokenizer = needed("tokenizers").ByteLevelBPETokenizer(json.loads(vocabulary), pairs)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


# -- and read ------------------------------------------------------------------------------------------------------------------

_Size = Annotated[int, Field(gt=0, le=2**20)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _TrainingRun(_Read):
    seq_len: _Size | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    corpus: dict[str, Any] = {}


class _Config(_Read):
    """What of a config.json makes the network ours. Left out, a key has transformers' default, which is GPT-2's."""

    model_type: Literal["gpt2"]
    vocab_size: Literal[50257] = VOCAB_SIZE
    block_size: _Size = Field(1024, alias="n_positions")
    n_embd: _Size = 768
    n_layer: Annotated[int, Field(gt=0, le=1000)] = 12
    n_head: _Size = 12
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    layer_norm_epsilon: Annotated[float, Field(ge=0.99e-5, le=1.01e-5)] = 1e-5
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    training_run: _TrainingRun = _TrainingRun()


class _Generation(_Read):
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    do_sample: bool | None = None


@dataclass(frozen=True)
class FromHF:
    """What a folder in the Hugging Face format holds, but for the tensors.

    Attributes:
        folder: the folder that holds config.json.
        settings: sizes, `seq_len` and the settings of sampling, by the names that RunConfig has for them.
        demo: whether it says that its text was the demonstration corpus.
    """

    folder: Path
    settings: dict[str, Any]
    demo: bool

    def load_model(self, device: torch.device | str = "cpu") -> GPT2:
        """The network with the stored weights, in fp32 and eval mode.

        Raises:
            UserError: the file is missing, damaged, or holds other tensors than this GPT-2's, or weights that are not finite.
        """
        safetensors = needed("safetensors.torch")
        with torch.device("meta"):  # the weights come from the file: draw none
            model = GPT2(GPT2Config.of(RunConfig.resolve({}, saved=self.settings)))

        def load(path: Path) -> None:
            weights = {}
            for name, tensor in safetensors.load_file(path).items():
                if not (tensor.is_floating_point() and tensor.isfinite().all()):
                    raise ValueError(f"{name} is not finite, or not of floating-point numbers")
                # Copied: the file may be replaced while the model is in use.
                weights[name] = tensor.to(torch.float32, copy=True)
            model.load_state_dict(weights, assign=True)

        _in_one_line(self.folder / WEIGHTS, load)
        return model.to(device).eval()


def read_hf(folder: str | Path) -> FromHF:
    """Read a model in the Hugging Face format, such as the command `space` writes.

    Args:
        folder: the one with config.json and model.safetensors in it, or a Space's, whose model is in `model`.

    Raises:
        UserError: there is none, or it is not a GPT-2 as published with GPT-2's vocabulary.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / CONFIG) and os.path.isfile(folder / "model" / CONFIG):
        folder = folder / "model"
    config = _read_json(folder / CONFIG, _Config)
    generation = _Generation()
    if os.path.isfile(folder / GENERATION):
        generation = _read_json(folder / GENERATION, _Generation)
    run = config.training_run
    settings = {
        **config.model_dump(include={"block_size", "n_layer", "n_head", "n_embd"}),
        "seq_len": min(run.seq_len or config.block_size, config.block_size),
        **run.model_dump(include={"prompt"}, exclude_none=True),
        **generation.model_dump(exclude={"do_sample"}, exclude_none=True),
    }
    if generation.do_sample is False:
        settings["temperature"] = 0.0
    _in_one_line(folder / CONFIG, lambda _: RunConfig.resolve({}, saved=settings))
    return FromHF(folder, settings, demo=run.corpus.get("source") == "demo")


def _read_json(path: Path, kind: type[_Read]) -> Any:
    return _in_one_line(path, lambda path: kind.model_validate_json(path.read_bytes()))


def _in_one_line(path: Path, read: Callable[[Path], Any]) -> Any:
    """What a library makes of a file; whatever it finds wrong becomes one line that names the file."""
    try:
        if not os.path.isfile(path):  # a pipe might never end
            raise FileNotFoundError("there is no such file")
        return read(path)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        wrong = f"{place} {reprlib.repr(problem['input'])}: {problem['msg']}".strip()
    except (
        UserError,
        OSError,
        ValueError,
        RuntimeError,
        needed("safetensors").SafetensorError,
    ) as error:
        wrong = " ".join(str(error).split())[:300]
    raise UserError(
        f"{path} cannot be used ({wrong}): name a folder that the command `space` or "
        f"transformers' save_pretrained has written"
    )
