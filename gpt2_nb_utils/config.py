"""Every setting of a run, once: flags, notebook parameters and config.json derive from `RunConfig`.

This module holds names, types, ranges and presets. It imports neither torch nor anything else that
is slow, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
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
        steps=400,
        lr=2e-2,
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
        lr=6e-4,
        warmup_steps=5,
        log_every=1,
        eval_every=15,
        sample_every=15,
        save_every=15,
    ),
    "full": dict(
        batch_size=24,
        steps=614,
        optimizer="muon",
        lr=0.02,
        embedding_lr=0.005,
        position_lr=0.00125,
        vector_lr=0.002,
        momentum=0.85,
        beta1=0.95,
        beta2=0.98,
        lr_schedule="wsd",
        warmup_steps=31,
        decay_share=0.85,
        weight_decay=0.0,
        log_every=1,
        eval_every=51,
        eval_windows=32,
        sample_every=153,
        save_every=51,
        max_new_tokens=100,
    ),
}
"""What each preset sets; everything else has the default in `RunConfig`, whose sizes are those of
GPT-2 124M. A setting given by hand wins over its preset."""

_RECIPE = (
    "optimizer",
    "lr",
    "embedding_lr",
    "position_lr",
    "vector_lr",
    "momentum",
    "beta1",
    "beta2",
)

GROUPS = {
    "preset": ("data", "Where the text comes from and where the run goes"),
    "block_size": ("model", "The network (GPT-2 124M by default)"),
    "batch_size": ("optimisation", "Batches, optimizer and schedule"),
    "steps": ("stop", "When to stop, measure, log and save"),
    "sample_every": ("samples", "Periodic generations"),
    "device": ("machine", "Device and precision"),
}
"""The groups of flags in the help, each by the setting with which it begins in `RunConfig`."""


# No number of any use reaches the upper bounds; far larger ones overflow in arithmetic instead of
# being refused.
Count = Annotated[int, Field(gt=0, lt=10**12)]
CountOrZero = Annotated[int, Field(ge=0, lt=10**12)]
Rate = Annotated[float, Field(ge=0, lt=1e32)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _writable_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds bytes that are not valid UTF-8: use another name") from None
    if "\0" in text:
        raise ValueError("holds a NUL character: leave it out")
    return text


def _file_name(path: str) -> str:
    longest = max(len(part.encode("utf-8")) for part in re.split(r"[/\\]", path))
    if longest > 255 or len(path.encode("utf-8")) > 4000:
        raise ValueError("is too long for a file name: use a shorter one")
    return path


def _not_apple(device: Any) -> Any:
    if device == "mps":
        raise ValueError(
            "torch before 2.14 can compute wrong products on Apple GPUs where they sum over more "
            "than 32,768 numbers (pytorch issue 193487), and GPT-2's gradients sum over 50,257: "
            "take cpu"
        )
    return device


FileName = Annotated[
    str,
    AfterValidator(_writable_text),
    AfterValidator(os.path.expanduser),  # the shell leaves the ~ of --out_dir=~/x
    AfterValidator(_file_name),
]


def _setting(default: Any, *also: str) -> Any:
    """A setting with the names that other programs give it, for "did you mean". Those that resemble
    its own name are found without being listed."""
    return Field(default, json_schema_extra={"also": also})


class RunConfig(BaseModel):
    """All settings of a run, complete and checked. Build it with `RunConfig.resolve`.

    The text below each setting is its help. Its default holds where neither a person nor the preset
    gives a value.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    preset: Literal["auto", "tiny", "sanity", "full"] = "auto"
    """named set of defaults; auto takes full on a CUDA GPU, sanity elsewhere"""
    input_file: FileName = _setting("", "data_path")
    """UTF-8 text to train on; empty means data/input.txt, else a download, else a demonstration
    text"""
    out_dir: FileName = _setting("out/run", "output", "save_dir")
    """run directory for logs, samples, checkpoints, figures and the report"""
    max_tokens: CountOrZero = _setting(0, "limit_tokens")
    """train on the first tokens of the corpus only; 0 means all of it"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = _setting(1337, "random_state")
    """seed of weights, window order and samples"""
    resume: FileName = _setting("", "checkpoint", "continue")
    """auto continues the run in out_dir; a checkpoint path continues from that file"""
    overwrite: bool = _setting(False, "force")
    """delete the run that out_dir already holds"""

    block_size: Count = _setting(
        1024, "context_length", "n_ctx", "n_positions", "max_position_embeddings"
    )
    """longest context, in tokens (rows of the position embedding)"""
    n_layer: Count = _setting(12, "depth")
    """transformer blocks"""
    n_head: Count = _setting(12, "num_attention_heads")
    """attention heads per block"""
    n_embd: Count = _setting(768, "d_model", "hidden_size", "embedding_dim", "width")
    """width of the embeddings; must be divisible by n_head"""

    batch_size: Count = _setting(4, "bs")
    """windows in one micro-batch"""
    seq_len: Count = _setting(128, "sequence_length", "window")
    """tokens in one window"""
    grad_accum: Count = _setting(1, "accumulation_steps", "accum_steps")
    """micro-batches added up in one step"""
    randomize_batches: bool = _setting(True, "shuffle_batches")
    """draw the windows of each epoch in a new random order; false reads the file in order"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the matrices of the blocks and AdamW for the rest; setting
    only lr selects adamw"""
    lr: Rate = _setting(3e-4, "learning_rate", "peak_lr", "matrix_lr")
    """peak learning rate; of the matrices in the blocks where the next two are set"""
    embedding_lr: Rate = _setting(0.0, "wte_lr")
    """peak learning rate of the token and position embeddings; 0 takes lr"""
    position_lr: Rate = _setting(0.0, "wpe_lr")
    """peak learning rate of the position embeddings; 0 takes that of the tokens"""
    vector_lr: Rate = _setting(0.0, "scalar_lr", "bias_lr", "lr_rest")
    """peak learning rate of biases and LayerNorms; 0 takes lr"""
    lr_schedule: Literal["constant", "linear", "cosine", "wsd"] = _setting("cosine", "lr_decay")
    """learning rate after the warm-up; wsd is stable first and decays at the end"""
    warmup_steps: CountOrZero = 0
    """steps over which the learning rate rises to its peak"""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = _setting(0.0, "final_lr")
    """learning rate at the last step as a fraction of lr"""
    decay_share: Annotated[float, Field(gt=0, le=1)] = _setting(0.5, "cooldown", "decay_fraction")
    """fraction of the steps over which wsd decays"""
    weight_decay: Annotated[float, Field(ge=0, lt=1e6)] = _setting(0.1, "wd", "l2")
    """decay of the weight matrices; biases and norms take none of it"""
    beta1: Decay = _setting(0.9, "adam_beta1")
    """decay of the gradient mean in AdamW"""
    beta2: Decay = _setting(0.95, "adam_beta2")
    """decay of the squared-gradient mean in AdamW"""
    momentum: Decay = 0.95
    """decay of the gradient mean in Muon"""
    clip_grad: Rate = _setting(1.0, "max_grad_norm", "gradient_clip_val")
    """largest gradient norm; 0 means no clipping"""

    steps: Count = _setting(30, "num_steps", "max_iters", "iterations")
    """optimizer updates at most"""
    target_loss: Annotated[float, Field(gt=0, lt=1e32)] = _setting(
        TARGET_LOSS, "target", "threshold"
    )
    """training loss over the whole corpus below which the run stops, in nats per token"""
    log_every: Count = _setting(10, "log_interval", "logging_steps")
    """steps between two lines of the log"""
    eval_every: Count = _setting(50, "eval_interval", "eval_steps")
    """steps between two measurements of the training loss"""
    eval_windows: CountOrZero = _setting(16, "eval_iters")
    """windows on which the training loss is estimated; 0 measures the whole corpus each time"""
    save_every: Count = _setting(100, "save_interval", "save_steps", "checkpoint_every")
    """steps between two saves of checkpoints/last.pt; it is written less often where that would
    take over 3 % of the time"""

    sample_every: CountOrZero = _setting(100, "sample_interval")
    """steps between two generations; 0 means none"""
    prompt: Annotated[str, Field(min_length=1), AfterValidator(_writable_text)] = _setting(
        "First Citizen:", "start", "sample_prompt"
    )
    """text that the first sample continues"""
    num_prompts: Count = _setting(3, "n_samples")
    """samples each time; those after the first continue openings taken from the corpus"""
    max_new_tokens: Count = _setting(60, "sample_length", "num_tokens")
    """tokens generated for a sample"""
    top_k: CountOrZero = 40
    """draw among the k most likely tokens; 0 means all"""
    temperature: Rate = _setting(0.8, "temp")
    """divides the logits before drawing; 0 always takes the most likely token"""

    device: Annotated[
        str, BeforeValidator(_not_apple), Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    ] = _setting("auto", "accelerator", "gpu")
    """auto, cpu, cuda or cuda:N"""
    amp: Literal["auto", "fp16", "bf16", "fp32"] = _setting(
        "auto", "dtype", "mixed_precision", "bf16"
    )
    """precision of the matrix products; auto takes fp16 on a CUDA GPU, bf16 on a CPU with bf16 units,
    else fp32"""
    compile: bool = False
    """speed up the model with torch.compile"""

    _given: set[str] = PrivateAttr(default_factory=set)

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> RunConfig:
        if self.seq_len > self.block_size:
            raise ValueError(
                f"seq_len {self.seq_len} exceeds block_size {self.block_size}: lower seq_len or "
                f"raise block_size"
            )
        if self.n_embd % self.n_head:
            multiple = self.n_head * max(1, round(self.n_embd / self.n_head))
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: choose an n_embd "
                f"that is a multiple of {self.n_head}, such as {multiple}"
            )
        if 0 < self.max_tokens < 3:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves nothing to predict: take 3 or more, or 0 "
                f"for all"
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
            merged = {**saved, "overwrite": False, "resume": "", **given}
            merged["preset"] = saved.get("preset", "auto")
        else:
            preset = given.get("preset", "auto")
            if preset == "auto":
                preset = "full" if _cuda_is_wanted(given.get("device", "auto")) else "sanity"
            merged = {**_preset_for(preset, given), **given, "preset": preset}
        try:
            config = cls(**merged)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None
        config._given = {name for name in given if (name, given[name]) != ("preset", "auto")}
        return config

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given by hand, with their values."""
        return self.model_dump(include=self._given)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer update sees (before the last, shorter window of the corpus)."""
        return self.batch_size * self.seq_len * self.grad_accum


def _preset_for(preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a preset, without its optimizer and rates where somebody brings their own.

    They were found together: AdamW with Muon's rate would diverge, and Muon with AdamW's would
    hardly learn. So another optimizer, or a bare `lr` under a preset that trains with Muon, means
    AdamW with one rate for everything.
    """
    values = PRESETS.get(preset, {})
    found_for = values.get("optimizer", "adamw")
    wanted = given.get("optimizer", "adamw" if "lr" in given else found_for)
    if wanted == found_for:
        return values
    return {name: value for name, value in values.items() if name not in _RECIPE}


def _cuda_is_wanted(device: str) -> bool:
    if not str(device).startswith(("auto", "cuda")):
        return False
    import torch  # here, because importing torch takes seconds and --help must not

    return torch.cuda.is_available()


def nearest_name(name: str) -> str:
    """The known setting that somebody who wrote `name` most likely meant."""
    settings = {
        spelling: setting
        for setting, field in RunConfig.model_fields.items()
        for spelling in (setting, *(field.json_schema_extra or {"also": ()})["also"])
    }
    written = name.lower().replace("-", "_")
    (nearest,) = difflib.get_close_matches(written, settings, n=1, cutoff=0)
    return settings[nearest]


def check_names(names: Iterable[str]) -> None:
    """Raise a UserError for the first name that is no setting."""
    for name in names:
        if name not in RunConfig.model_fields:
            raise UserError(
                f"unknown setting {name!r}: did you mean {nearest_name(name)!r}? "
                f"(`--help` lists all)"
            )


def _one_line(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    if not problem["loc"]:
        return message
    name, value = problem["loc"][0], ascii(problem["input"])
    message = message.replace("Input should be", "must be")
    value = value if len(value) <= 200 else value[:200] + "…"
    if name == "device" and problem["type"] != "value_error":  # in place of its pattern
        message = f"must be {_help_text(name)}"
    elif problem["type"] == "string_type":
        return f"{name} {value} is not text: put it in quotes, or give papermill `-r {name} TEXT`"
    return f"{name} {value}: {message}"


def default_text(name: str, presets: dict[str, dict[str, Any]] = PRESETS) -> str:
    """How help texts state the default of a setting: one value, or one per preset."""
    default = RunConfig.model_fields[name].default
    presets_of: dict[Any, list[str]] = {}
    for preset, values in presets.items():
        presets_of.setdefault(values.get(name, default), []).append(preset)
    if len(presets_of) > 1:
        return ", ".join(
            f"{' and '.join(presets)} {value}" for value, presets in presets_of.items()
        )
    (value,) = presets_of
    return (str(value).lower() if isinstance(value, bool) else str(value)) or "empty"


def _help_text(name: str) -> str:
    return " ".join(RunConfig.model_fields[name].description.split())


def _plain_type(name: str) -> type:
    annotation = RunConfig.model_fields[name].annotation
    return annotation if isinstance(annotation, type) else str  # one of several words


def _boolean(text: str) -> bool:
    try:
        return TypeAdapter(bool).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def counted(what: str, highest: int = 10**12) -> Callable[[str], int]:
    """A type for argparse: a whole number from 1 to `highest`. Its error says that a word is not
    `what`."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or not 0 < int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return int(text)

    return whole_number


def add_flags(
    parser: argparse.ArgumentParser,
    names: Collection[str] | None = None,
    presets: dict[str, dict[str, Any]] = PRESETS,
) -> None:
    """Give `parser` one `--flag` per setting, grouped; only flags that were given appear in the
    result.

    Args:
        names: the settings; all, when None.
        presets: those of the command, for the defaults that the help states.
    """
    for name, field in RunConfig.model_fields.items():
        if name in GROUPS:
            section = None
            group = GROUPS[name]
        if names is not None and name not in names:
            continue
        section = section or parser.add_argument_group(*group)
        kind = _plain_type(name)
        options = {
            "default": argparse.SUPPRESS,
            "help": f"{_help_text(name)} (default: {default_text(name, presets)})".replace(
                "%", "%%"
            ),
        }
        if kind is not bool:
            metavar = "|".join(get_args(field.annotation)) or kind.__name__.upper()
            section.add_argument(f"--{name}", type=kind, metavar=metavar, **options)
            continue
        section.add_argument(
            f"--{name}", nargs="?", const=True, type=_boolean, metavar="true|false", **options
        )
        options["help"] = argparse.SUPPRESS
        section.add_argument(
            f"--no_{name}", f"--no-{name}", dest=name, action="store_false", **options
        )


def notebook_default(name: str) -> Any:
    """The value that a notebook's parameters cell gives a setting; None leaves it to the preset."""
    if name == "resume":
        return "auto"  # a notebook that is run again continues its run instead of refusing
    if any(name in values for values in PRESETS.values()):
        return None
    return RunConfig.model_fields[name].default


_FIRST = ("preset", "input_file", "out_dir", "max_tokens", "seed", "steps", "device", "amp")
"""The settings that matter to a beginner."""


def parameters_cell(names: Iterable[str] | None = None) -> str:
    """The source of a notebook's `parameters` cell for these settings (all, when None).

    The lines have the form that papermill's inspector reads: `name: annotation = value  # help`,
    with no second equals sign and no `|` in the annotation.
    """
    lines = ["# Settings of this run. None leaves a value to the preset."]
    lines.append("# fmt: off")  # papermill reads one line for each name
    names = sorted(names or RunConfig.model_fields, key=lambda name: name not in _FIRST)
    for number, name in enumerate(names):
        if number == len(_FIRST) and name not in _FIRST:
            lines.append("# The rest is for experiments: `train --help` says more about each.")
        value = notebook_default(name)
        help_text = _help_text(name)
        if name not in _FIRST:
            help_text = help_text.partition(";")[0]
        if value is None:
            help_text += f" ({default_text(name)})"
        literal = '"' + value + '"' if isinstance(value, str) else repr(value)
        lines.append(f"{name}: {_plain_type(name).__name__} = {literal}  # {help_text}")
    return "\n".join(lines)
