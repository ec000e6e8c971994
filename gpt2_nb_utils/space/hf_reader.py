"""A model in the Hugging Face format, read back into this package's network, whoever wrote it.

It takes numbers and tensors and holds them against GPT-2 as published; nothing in the folder is ever executed (pickles are refused,
code that a config names is not looked at).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.parts import parameter_shapes
from gpt2_nb_utils.space.hf_format import CONFIG, GENERATION, WEIGHTS, needed
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE

_LARGEST_JSON = 2**20
_READABLE = {"F16", "BF16", "F32"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MEND = "name a folder that the command `space` wrote, or put the file back"
_Size = Annotated[int, Field(gt=0, lt=2**31)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Corpus(_Read):
    source: str | None = None


class _TrainingRun(_Read):
    seq_len: _Size
    prompt: Annotated[str, Field(min_length=1)] | None = None
    corpus: _Corpus | None = None


class _Config(_Read):
    """What of a config.json makes the network ours. Left out, a key has transformers' default, which is GPT-2's."""

    model_type: Literal["gpt2"]
    vocab_size: Literal[50257] = VOCAB_SIZE
    n_positions: _Size = 1024
    n_embd: _Size = 768
    n_layer: _Size = 12
    n_head: _Size = 12
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    layer_norm_epsilon: Annotated[float, Field(ge=0.99e-5, le=1.01e-5)] = 1e-5
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    training_run: _TrainingRun | None = None

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> _Config:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        return self


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
        sizes: of the network.
        settings: sizes, `seq_len` and the settings of sampling, by the names that RunConfig has for them.
        demo: whether it says that its text was the demonstration corpus.
    """

    folder: Path
    sizes: GPT2Config
    settings: dict[str, Any]
    demo: bool

    def load_model(self, device: torch.device | str = "cpu") -> GPT2:
        """The network with the stored weights, in fp32 and eval mode.

        Raises:
            UserError: the file is missing, damaged, a pickle, or holds other tensors than this GPT-2's or weights that are not finite.
        """
        tensors = _read_weights(self.folder, self.sizes)
        with torch.device("meta"):  # the weights come from the file: draw none
            model = GPT2(self.sizes)
        model.load_state_dict(tensors, assign=True)
        return model.to(device).eval()


def read_hf(folder: str | Path) -> FromHF:
    """Read a model in the Hugging Face format, such as the command `space` writes.

    Args:
        folder: the one with config.json and model.safetensors in it, or a Space's, whose model is in `model`.

    Raises:
        UserError: there is none, or it is not a GPT-2 as published with GPT-2's vocabulary.
    """
    folder = Path(folder)
    if not os.path.isdir(
        folder
    ):  # Path's own question raises where a name is too long or a folder locked
        raise UserError(
            f"{folder} is no folder: name one in the Hugging Face format, as `python -m gpt2_nb_utils space RUN_DIR` writes it"
        )
    if not os.path.exists(folder / CONFIG) and os.path.exists(folder / "model" / CONFIG):
        folder = folder / "model"
    config: _Config = _checked(_Config, folder / CONFIG)
    generation = (
        _checked(_Generation, folder / GENERATION)
        if os.path.exists(folder / GENERATION)
        else _Generation()
    )
    run = config.training_run
    sizes = GPT2Config(
        config.n_positions, config.n_layer, config.n_head, config.n_embd, config.vocab_size
    )
    settings = {
        "block_size": config.n_positions,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "seq_len": min(run.seq_len if run else config.n_positions, config.n_positions),
        "temperature": 0.0 if generation.do_sample is False else generation.temperature,
        "top_k": generation.top_k,
        "max_new_tokens": generation.max_new_tokens,
        "prompt": run and run.prompt,
    }
    return FromHF(
        folder,
        sizes,
        {name: value for name, value in settings.items() if value is not None},
        demo=bool(run and run.corpus and run.corpus.source == "demo"),
    )


def _checked(kind: type[_Read], path: Path) -> Any:
    try:
        if not path.is_file():  # a pipe might never end
            raise UserError(f"{path} is missing: {_MEND}")
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, far more than a model's settings take: {_MEND}"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, problem["loc"]))
        what = (
            f"{place} is missing"
            if problem["type"] == "missing"
            else f"{place} {ascii(problem['input'])[:80]} cannot be right"
            if place
            else problem["msg"].removeprefix("Value error, ")
        )
        raise UserError(
            f"{path}: {what}; this program reads GPT-2 as published, with its vocabulary: {_MEND}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): allow reading it, or name another folder"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not a valid JSON object: {_MEND}") from None


def _read_weights(folder: Path, sizes: GPT2Config) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLES)
        if pickles:
            raise UserError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which could run code when loaded, so it is not "
                f"read: name a folder with a {WEIGHTS}"
            )
        raise UserError(f"{path} is missing: {_MEND}")
    safetensors = needed("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            problem = _misfit(file, sizes)
            if problem:
                raise UserError(
                    f"{path} does not hold the weights of the GPT-2 in {CONFIG}, with the names that transformers' save_pretrained "
                    f"writes ({problem}): {_MEND}"
                )
            # Copied: the file may be replaced while the model is in use.
            tensors = {
                name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()
            }
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): allow reading it, or name another folder"
        ) from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}): {_MEND}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path} holds weights that are not finite ({name}): get the file again, or name another folder"
            )
    return tensors


def _misfit(file: Any, sizes: GPT2Config) -> str | None:
    """What keeps the tensors of a file, of which only the header was read, from being this network's."""
    found = {name: file.get_slice(name) for name in file.keys()}
    if sizes.n_layer > len(found):  # before the shapes of so many layers are listed
        return f"{len(found)} tensors cannot be {sizes.n_layer:,} layers"
    expected = parameter_shapes(sizes)
    for name in (*expected, *found):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is stored besides"
        shape, dtype = tuple(found[name].get_shape()), found[name].get_dtype()
        if shape != expected[name] or dtype not in _READABLE:
            return f"{name} is {shape} in {dtype}, not {expected[name]} in one of {', '.join(sorted(_READABLE))}"
    return None
