"""Every setting of a run, once: flags, notebook parameters and config.json derive from `RunConfig`.

This module knows names, types, ranges and presets. It deliberately knows nothing of torch, files or
notebooks, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from gpt2_nb_utils.errors import UserError

TARGET_LOSS = 0.099999
"""The course's target for the training loss, in nats per token."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        max_tokens=2048,
        block_size=64,
        n_layer=2,
        n_head=2,
        n_embd=16,
        batch_size=16,
        seq_len=64,
        grad_accum=1,
        steps=400,
        lr=2e-2,
        lr_schedule="cosine",
        warmup_steps=20,
        weight_decay=0.0,
        log_every=20,
        eval_every=100,
        eval_windows=0,
        sample_every=400,
        save_every=400,
        max_new_tokens=40,
    ),
    "sanity": dict(
        max_tokens=0,
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
        batch_size=4,
        seq_len=128,
        grad_accum=1,
        steps=30,
        lr=6e-4,
        lr_schedule="cosine",
        warmup_steps=5,
        weight_decay=0.1,
        log_every=1,
        eval_every=15,
        eval_windows=16,
        sample_every=15,
        save_every=15,
        max_new_tokens=60,
    ),
    "full": dict(
        max_tokens=0,
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
        batch_size=16,
        seq_len=128,
        grad_accum=3,
        steps=385,
        optimizer="muon",
        lr=0.02,
        embedding_lr=0.004,
        vector_lr=0.002,
        momentum=0.9,
        lr_schedule="wsd",
        warmup_steps=20,
        weight_decay=0.0,
        log_every=1,
        eval_every=22,
        eval_windows=32,
        sample_every=55,
        save_every=110,
        max_new_tokens=100,
    ),
}
"""What each preset sets. A setting given by hand wins over its preset."""

_RECIPE = ("optimizer", "lr", "embedding_lr", "vector_lr", "momentum")

GROUPS = {
    "data": "Where the text comes from and where the run goes",
    "model": "The network (GPT-2 124M by default)",
    "optimisation": "Batches, optimizer and schedule",
    "stop": "When to stop, measure, log and save",
    "samples": "Periodic generations",
    "machine": "Device and precision",
}


_TOO_LARGE = {int: 10**12, float: 1e32}
"""No number of any use is as large, and far larger ones overflow in arithmetic instead of being refused."""


def _setting(
    default: Any, group: str, help: str, also: tuple[str, ...] = (), **constraints: Any
) -> Any:
    """A RunConfig field. `also` lists the names under which other programs know it, for "did you mean"."""
    if type(default) in (int, float) and not {"lt", "le"} & constraints.keys():
        constraints["lt"] = _TOO_LARGE[type(default)]
    return Field(
        default,
        description=help,
        json_schema_extra={"group": group, "also": list(also)},
        **constraints,
    )


class RunConfig(BaseModel):
    """All settings of a run, complete and checked. Build it with `RunConfig.resolve`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    preset: Literal["auto", "tiny", "sanity", "full"] = _setting(
        "auto", "data", "named set of defaults; auto takes full on a CUDA GPU, sanity elsewhere"
    )
    input_file: str = _setting(
        "",
        "data",
        "UTF-8 text to train on; empty means data/input.txt, else a download, else a demonstration text",
        ("data", "data_path", "text_file", "dataset", "input"),
    )
    out_dir: str = _setting(
        "out/run",
        "data",
        "run directory for logs, samples, checkpoints, figures and the report",
        ("output_dir", "output", "run_dir", "save_dir"),
    )
    max_tokens: int = _setting(
        0,
        "data",
        "train on the first tokens of the corpus only; 0 means all of it",
        ("limit_tokens",),
        ge=0,
    )
    seed: int = _setting(
        1337,
        "data",
        "seed of weights, window order and samples",
        ("random_seed", "random_state"),
        ge=0,
        lt=2**31,
    )
    resume: str = _setting(
        "",
        "data",
        "auto goes on with the run in out_dir; a checkpoint path goes on from that file",
        ("resume_from", "checkpoint", "ckpt", "continue"),
    )
    overwrite: bool = _setting(
        False,
        "data",
        "throw away the run that out_dir already holds",
        ("force", "overwrite_output_dir"),
    )

    block_size: int = _setting(
        1024,
        "model",
        "longest context, in tokens (rows of the position embedding)",
        ("context_length", "n_positions", "n_ctx", "max_position_embeddings"),
        gt=0,
    )
    n_layer: int = _setting(
        12,
        "model",
        "transformer blocks",
        ("num_layers", "layers", "num_hidden_layers", "depth"),
        gt=0,
    )
    n_head: int = _setting(
        12,
        "model",
        "attention heads per block",
        ("num_heads", "heads", "num_attention_heads"),
        gt=0,
    )
    n_embd: int = _setting(
        768,
        "model",
        "width of the embeddings; must be divisible by n_head",
        ("d_model", "hidden_size", "embed_dim", "embedding_dim", "width"),
        gt=0,
    )

    batch_size: int = _setting(
        4,
        "optimisation",
        "windows in one micro-batch",
        ("micro_batch_size", "bs", "per_device_train_batch_size"),
        gt=0,
    )
    seq_len: int = _setting(
        128,
        "optimisation",
        "tokens in one window",
        ("sequence_length", "max_seq_len", "window", "seq_length"),
        gt=0,
    )
    grad_accum: int = _setting(
        1,
        "optimisation",
        "micro-batches added up in one step",
        ("gradient_accumulation_steps", "accumulation_steps", "accum_steps"),
        gt=0,
    )
    randomize_batches: bool = _setting(
        True,
        "optimisation",
        "draw the windows of each epoch in a new random order; false reads the file in order",
        ("shuffle", "shuffle_batches", "random_batches"),
    )
    optimizer: Literal["adamw", "muon"] = _setting(
        "adamw",
        "optimisation",
        "adamw for everything, or muon for the matrices of the blocks and AdamW for the rest; lr given alone means adamw",
        ("optim",),
    )
    lr: float = _setting(
        3e-4,
        "optimisation",
        "peak learning rate; of the matrices in the blocks where the next two are set",
        ("learning_rate", "max_lr", "peak_lr", "matrix_lr"),
        ge=0,
    )
    embedding_lr: float = _setting(
        0.0,
        "optimisation",
        "peak learning rate of the token and position embeddings; 0 takes lr",
        ("lr_embeddings", "embed_lr", "wte_lr"),
        ge=0,
    )
    vector_lr: float = _setting(
        0.0,
        "optimisation",
        "peak learning rate of biases and LayerNorms; 0 takes lr",
        ("scalar_lr", "norm_lr", "bias_lr", "lr_rest"),
        ge=0,
    )
    lr_schedule: Literal["constant", "linear", "cosine", "wsd"] = _setting(
        "cosine",
        "optimisation",
        "learning rate after the warm-up; wsd is stable first and decays at the end",
        ("scheduler", "schedule", "lr_scheduler", "lr_scheduler_type", "lr_decay"),
    )
    warmup_steps: int = _setting(
        0,
        "optimisation",
        "steps over which the learning rate rises to its peak",
        ("warmup", "warmup_iters"),
        ge=0,
    )
    min_lr_ratio: float = _setting(
        0.0,
        "optimisation",
        "learning rate at the last step as a share of lr",
        ("min_lr", "final_lr"),
        ge=0,
        le=1,
    )
    decay_share: float = _setting(
        0.5,
        "optimisation",
        "share of the steps over which wsd decays",
        ("cooldown", "decay_fraction"),
        gt=0,
        le=1,
    )
    weight_decay: float = _setting(
        0.1,
        "optimisation",
        "decay of the weight matrices; biases and norms take none of it",
        ("wd", "l2"),
        ge=0,
        lt=1e6,
    )
    beta1: float = _setting(
        0.9, "optimisation", "decay of the gradient mean in AdamW", ("adam_beta1",), ge=0, lt=1
    )
    beta2: float = _setting(
        0.95,
        "optimisation",
        "decay of the squared-gradient mean in AdamW",
        ("adam_beta2",),
        ge=0,
        lt=1,
    )
    momentum: float = _setting(
        0.95, "optimisation", "decay of the gradient mean in Muon", ("muon_momentum",), ge=0, lt=1
    )
    clip_grad: float = _setting(
        1.0,
        "optimisation",
        "largest gradient norm; 0 means no clipping",
        ("grad_clip", "max_grad_norm", "gradient_clip_val", "clip"),
        ge=0,
    )

    steps: int = _setting(
        30,
        "stop",
        "optimizer updates at most",
        ("max_steps", "num_steps", "max_iters", "iterations", "iters"),
        gt=0,
    )
    target_loss: float = _setting(
        TARGET_LOSS,
        "stop",
        "training loss over the whole corpus below which the run stops, in nats per token",
        ("target", "stop_loss", "loss_target", "threshold"),
        gt=0,
    )
    log_every: int = _setting(
        10, "stop", "steps between two lines of the log", ("log_interval", "logging_steps"), gt=0
    )
    eval_every: int = _setting(
        50,
        "stop",
        "steps between two measurements of the training loss",
        ("eval_interval", "eval_steps", "val_every"),
        gt=0,
    )
    eval_windows: int = _setting(
        16,
        "stop",
        "windows on which the training loss is estimated; 0 measures the whole corpus each time",
        ("eval_iters", "eval_batches"),
        ge=0,
    )
    save_every: int = _setting(
        100,
        "stop",
        "steps between two saves of checkpoints/last.pt; it is written less often where that would take over 3 % of the time",
        ("save_interval", "save_steps", "checkpoint_every"),
        gt=0,
    )

    sample_every: int = _setting(
        100, "samples", "steps between two generations; 0 means none", ("sample_interval",), ge=0
    )
    prompt: str = _setting(
        "First Citizen:",
        "samples",
        "text that the first sample continues",
        ("prompts", "start", "sample_prompt"),
        min_length=1,
    )
    num_prompts: int = _setting(
        3,
        "samples",
        "samples each time; those after the first continue openings taken from the corpus",
        ("num_samples", "n_prompts", "n_samples"),
        gt=0,
    )
    max_new_tokens: int = _setting(
        60,
        "samples",
        "tokens generated for a sample",
        ("sample_length", "max_length", "num_tokens", "length"),
        gt=0,
    )
    top_k: int = _setting(
        40, "samples", "draw among the k likeliest tokens; 0 means all", ("topk", "k"), ge=0
    )
    temperature: float = _setting(
        0.8, "samples", "divides the logits before drawing; 0 takes the likeliest", ("temp",), ge=0
    )

    device: str = _setting(
        "auto",
        "machine",
        "auto, cpu, cuda or cuda:N",
        ("accelerator", "gpu"),
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
    )
    amp: Literal["auto", "fp16", "bf16", "fp32"] = _setting(
        "auto",
        "machine",
        "precision of the matrix products; auto takes fp16 with a GradScaler on CUDA, bf16 on a CPU with units for it, else fp32",
        ("dtype", "precision", "mixed_precision", "fp16", "bf16"),
    )
    compile: bool = _setting(
        False, "machine", "speed up the model with torch.compile", ("torch_compile",)
    )

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    @field_validator("input_file", "out_dir", "resume", "prompt")
    @classmethod
    def _can_be_written_down(cls, text: str) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("holds bytes that are no UTF-8 text: use another name") from None
        if "\0" in text:
            raise ValueError("holds a NUL character: leave it out")
        return text

    @field_validator("input_file", "out_dir", "resume")
    @classmethod
    def _can_be_a_file_name(cls, path: str) -> str:
        longest = max(len(part.encode("utf-8")) for part in re.split(r"[/\\]", path))
        if longest > 255 or len(path.encode("utf-8")) > 4000:
            raise ValueError("is too long for a file name: use a shorter one")
        return path

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> RunConfig:
        if self.seq_len > self.block_size:
            raise ValueError(
                f"seq_len {self.seq_len} exceeds block_size {self.block_size}: lower seq_len or raise block_size"
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: choose an n_embd that is a "
                f"multiple of {self.n_head}, such as {self.n_head * max(1, round(self.n_embd / self.n_head))}"
            )
        if 0 < self.max_tokens < 3:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves nothing to predict: take 3 or more, or 0 for all"
            )
        return self

    @classmethod
    def resolve(cls, given: dict[str, Any], saved: dict[str, Any] | None = None) -> RunConfig:
        """The complete config for the settings that somebody gave.

        Args:
            given: settings given by hand; they win over everything else.
            saved: the config.json of a run that is resumed; it takes the place of the preset.

        Raises:
            UserError: an unknown name (with the nearest known one), or a value out of range.
        """
        check_names(given)
        if saved is not None:
            # A run keeps its preset: naming it again while resuming changes nothing.
            merged = {**saved, **{name: value for name, value in given.items() if name != "preset"}}
            merged.update(
                overwrite=bool(given.get("overwrite", False)), resume=given.get("resume", "")
            )
        else:
            preset = given.get("preset", "auto")
            if preset == "auto":
                preset = "full" if _cuda_is_wanted(given.get("device", "auto")) else "sanity"
            merged = {**_preset_for(preset, given), **given, "preset": preset}
        try:
            config = cls(**merged)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None
        config._given = frozenset(
            name for name in given if (name, given[name]) != ("preset", "auto")
        )
        return config

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given by hand, with their values."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self._given
        }

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer update sees (before the last, shorter window of the corpus)."""
        return self.batch_size * self.seq_len * self.grad_accum


def _preset_for(preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a preset, without its optimizer and rates where somebody brings their own.

    They were found together: AdamW with Muon's rate would diverge, and Muon with AdamW's would hardly learn. So another
    optimizer, or a bare `lr` under a preset that trains with Muon, means AdamW with one rate for everything.
    """
    values = PRESETS.get(preset, {})
    preset_optimizer = values.get("optimizer", "adamw")
    own_optimizer = given.get("optimizer", preset_optimizer) != preset_optimizer
    bare_rate = "lr" in given and "optimizer" not in given and preset_optimizer == "muon"
    if own_optimizer or bare_rate:
        return {name: value for name, value in values.items() if name not in _RECIPE}
    return values


def _cuda_is_wanted(device: str) -> bool:
    if not str(device).startswith(("auto", "cuda")):
        return False
    import torch  # here, because importing torch takes seconds and --help must not

    return torch.cuda.is_available()


def nearest_name(name: str) -> str:
    """The known setting that somebody who wrote `name` most likely meant."""
    wanted = name.lower().replace("-", "_")

    def likeness(field: str) -> float:
        spellings = [field, *RunConfig.model_fields[field].json_schema_extra["also"]]
        return max(
            difflib.SequenceMatcher(None, wanted, spelling).ratio() for spelling in spellings
        )

    return max(RunConfig.model_fields, key=likeness)


def check_names(names: Iterable[str]) -> None:
    """Raise a UserError for the first name that is no setting."""
    for name in names:
        if name not in RunConfig.model_fields:
            raise UserError(
                f"unknown setting {name!r}: did you mean {nearest_name(name)!r}? (`--help` lists all)"
            )


def _one_line(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    if not problem["loc"]:
        return message
    message = message.replace("Input should be", "must be").replace(
        "String should match pattern", "must match"
    )
    value = ascii(problem["input"])
    return f"{problem['loc'][0]} {value if len(value) <= 200 else value[:200] + '…'}: {message}"


def default_text(name: str) -> str:
    """How help texts state the default of a setting: one value, or one per preset."""
    default = RunConfig.model_fields[name].default
    presets_of: dict[Any, list[str]] = {}
    if any(name in values for values in PRESETS.values()):
        for preset, values in PRESETS.items():
            presets_of.setdefault(values.get(name, default), []).append(preset)
    if len(presets_of) > 1:
        return ", ".join(
            f"{' and '.join(presets)} {value}" for value, presets in presets_of.items()
        )
    default = next(iter(presets_of), default)
    return (
        "empty"
        if default == ""
        else str(default).lower()
        if isinstance(default, bool)
        else str(default)
    )


def _plain_type(name: str) -> type:
    annotation = {"int": int, "float": float, "bool": bool, "str": str}.get(
        RunConfig.__annotations__[name]
    )
    return annotation or str


def _boolean(text: str) -> bool:
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def add_flags(
    parser: argparse.ArgumentParser,
    names: Iterable[str] | None = None,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Give `parser` one `--flag` per setting, grouped; only flags that were given appear in the result.

    Args:
        names: the settings; all, when None.
        defaults: what the help says instead, where a command has defaults of its own.
    """
    wanted = list(names or RunConfig.model_fields)
    for group, title in GROUPS.items():
        members = [
            name
            for name in wanted
            if RunConfig.model_fields[name].json_schema_extra["group"] == group
        ]
        if not members:
            continue
        section = parser.add_argument_group(group, title)
        for name in members:
            field = RunConfig.model_fields[name]
            default = (defaults or {}).get(name, default_text(name))
            help_text = f"{field.description} (default: {default})".replace("%", "%%")
            kind = _plain_type(name)
            if kind is bool:
                section.add_argument(
                    f"--{name}",
                    nargs="?",
                    const=True,
                    type=_boolean,
                    default=argparse.SUPPRESS,
                    metavar="true|false",
                    help=help_text,
                )
                section.add_argument(
                    f"--no_{name}",
                    f"--no-{name}",
                    dest=name,
                    action="store_false",
                    default=argparse.SUPPRESS,
                    help=argparse.SUPPRESS,
                )
            else:
                choices = get_args(field.annotation)
                metavar = "|".join(choices) if choices else kind.__name__.upper()
                section.add_argument(
                    f"--{name}",
                    type=kind,
                    default=argparse.SUPPRESS,
                    metavar=metavar,
                    help=help_text,
                )


def notebook_default(name: str) -> Any:
    """The value that a notebook's parameters cell gives a setting; None leaves it to the preset."""
    if name == "resume":
        return "auto"  # a notebook that is run again goes on with its run instead of refusing
    if any(name in values for values in PRESETS.values()):
        return None
    return RunConfig.model_fields[name].default


PARAMETERS_HEADER = "# Settings of this run. None leaves a value to the preset."
"""The first line of every notebook's parameters cell, by which it is found again in a session."""


def parameters_cell(names: Iterable[str] | None = None) -> str:
    """The source of a notebook's `parameters` cell for these settings (all, when None).

    The lines have the form that papermill's inspector reads: `name: annotation = value  # help`, with
    no second equals sign and no `|` in the annotation.
    """
    lines = [PARAMETERS_HEADER, "# fmt: off"]  # papermill reads one line for each name
    for name in names or RunConfig.model_fields:
        value = notebook_default(name)
        help_text = RunConfig.model_fields[name].description
        if value is None:
            help_text += f" ({default_text(name)})"
        literal = '"' + value + '"' if isinstance(value, str) else repr(value)
        lines.append(f"{name}: {_plain_type(name).__name__} = {literal}  # {help_text}")
    return "\n".join(lines)
