"""The Hugging Face format: a folder that `transformers` loads by itself, written from a model and read back.

The names and shapes of our weights are already those of the published GPT-2, so nothing is renamed or transposed. It reads what
anybody may have written: numbers and tensors only, nothing is ever executed (pickles are refused).
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.initialisation import STANDARD_DEVIATION
from gpt2_nb_utils.model.parts import parameter_shapes
from gpt2_nb_utils.tokenization.bpe import END_OF_TEXT, VOCAB_SIZE, vocabulary_files

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""The number formats in which weights are stored, by transformers' names for them."""
_END = "<|endoftext|>"
_LARGEST_JSON = 2**20
_READABLE = {"F16", "BF16", "F32"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MEND = "name a folder that the command `space` wrote, or put the file back"


def needed(package: str) -> Any:
    """A package that only the notebook and the commands of this room need, imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UserError(f"the Hugging Face format needs the package {name}, which is not installed: pip install {name}") from None


# -- writing -----------------------------------------------------------------------------------------------------------

def write_hf(folder: Path, model: GPT2, dtype: str, training_run: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
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
    needed("safetensors.torch").save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
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
                raise UserError(f"the weights in {name} are not finite: the training of this model has diverged, so export another one")
            raise UserError(f"the weights in {name} reach {tensor.abs().max().item():,.0f}, and {dtype} ends at "
                            f"{torch.finfo(DTYPES[dtype]).max:,.0f}: take --dtype float32")
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
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,  # trained without dropout
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        # Its text had no end of a document in it, so the model never says one.
        "bos_token_id": None, "eos_token_id": None,
        "dtype": dtype,
        "use_cache": True,
        "training_run": dict(training_run),
    }


def _generation(sampling: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {"do_sample": True, "temperature": sampling["temperature"], "top_k": sampling["top_k"]}
    return {**(drawn if sampling["temperature"] > 0 else {"do_sample": False}), "max_new_tokens": sampling["max_new_tokens"],
            "pad_token_id": END_OF_TEXT}


def _write_tokenizer(folder: Path, longest: int) -> None:
    tokenizers = needed("tokenizers")
    vocabulary, merges = (content.decode("utf-8") for content in vocabulary_files())
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(vocabulary), pairs))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(folder / TOKENIZER))
    _write_json(folder / TOKENIZER_CONFIG, {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "model_max_length": longest, **{f"{role}_token": _END for role in ("bos", "eos", "unk", "pad")}})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


# -- reading -----------------------------------------------------------------------------------------------------------

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
            UserError: the file is missing, damaged, a pickle, or holds other tensors than this GPT-2's.
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
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one in the Hugging Face format, as `python -m gpt2_nb_utils space RUN_DIR` writes it")
    if not (folder / CONFIG).exists() and (folder / "model" / CONFIG).exists():
        folder = folder / "model"
    config: _Config = _checked(_Config, folder / CONFIG)
    generation = _checked(_Generation, folder / GENERATION) if (folder / GENERATION).exists() else _Generation()
    run = config.training_run
    sizes = GPT2Config(config.n_positions, config.n_layer, config.n_head, config.n_embd, config.vocab_size)
    settings = {"block_size": config.n_positions, "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd,
                "seq_len": min(run.seq_len if run else config.n_positions, config.n_positions),
                "temperature": 0.0 if generation.do_sample is False else generation.temperature, "top_k": generation.top_k,
                "max_new_tokens": generation.max_new_tokens, "prompt": run and run.prompt}
    return FromHF(folder, sizes, {name: value for name, value in settings.items() if value is not None},
                  demo=bool(run and run.corpus and run.corpus.source == "demo"))


def _checked(kind: type[_Read], path: Path) -> Any:
    try:
        if not path.is_file():  # a pipe might never end
            raise UserError(f"{path} is missing: {_MEND}")
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, far more than a model's settings take: {_MEND}")
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, problem["loc"]))
        what = (f"{place} is missing" if problem["type"] == "missing" else f"{place} {ascii(problem['input'])[:80]} cannot be right" if place
                else problem["msg"].removeprefix("Value error, "))
        raise UserError(f"{path}: {what}; this program reads GPT-2 as published, with its vocabulary: {_MEND}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): allow reading it, or name another folder") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not a valid JSON object: {_MEND}") from None


def _read_weights(folder: Path, sizes: GPT2Config) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLES)
        if pickles:
            raise UserError(f"{folder} holds its weights as a pickle ({pickles[0]}), which could run code when loaded, so it is not "
                            f"read: name a folder with a {WEIGHTS}")
        raise UserError(f"{path} is missing: {_MEND}")
    safetensors = needed("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            problem = _misfit(file, sizes)
            if problem:
                raise UserError(f"{path} does not hold the weights of the GPT-2 in {CONFIG} ({problem}): {_MEND}")
            # Copied: the file may be replaced while the model is in use.
            return {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): allow reading it, or name another folder") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}): {_MEND}") from None


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
