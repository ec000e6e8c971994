"""The command `bench`: check everything that can be checked, then measure one part after the
other."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.bench.comparison import measure_sampling, measure_training, prompt_ids
from gpt2_nb_utils.bench.settings import PARTS, config_for
from gpt2_nb_utils.bench.whole_runs import (
    check_processes,
    measure_files,
    measure_processes,
    measure_run,
)
from gpt2_nb_utils.bench.worker import Figures
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.machine import command_line, environment
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.report.bench_table import as_markdown, lines
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision, check_device

FILE = "bench.json"
TABLE = "table.md"  # the same for a reader

_OPTIONAL = ("against", "against_compiled", "profile", "fp32", "bf16")
"""Keys that the part `train` fills in some cases only."""
_SAME = ("machine", "torch", "transformers", "model", "amp", "optimizer", "compile", "seed")
"""What must be alike for figures to be in one file."""


def bench(
    parts: Iterable[str],
    given: dict[str, Any],
    against: str | None = None,
    rounds: int | None = None,
    profile: bool = False,
    nproc_per_node: int = 2,
    out_dir: str | None = None,
    overwrite: bool = False,
) -> Figures:
    """Measure the speed of this program on this machine.

    Args:
        parts: some of `settings.PARTS`.
        given: settings given by hand, by the names of `RunConfig`.
        against: whose GPT-2 takes turns with ours, or None.
        rounds: turns of each side; None takes those of the part.
        profile: look into a training step, with the part `train`.
        nproc_per_node: what the part `processes` compares with one.
        out_dir: folder that gets bench.json and table.md, or None.
        overwrite: measure parts again that a bench.json there has already. Those that it lacks are
            always added to it.

    Returns:
        The content of bench.json: what was measured on, and the figures of each part that was
        measured, speeds in tokens/s.

    Raises:
        UserError: bad input (reported before anything is measured), or too little memory. What is
            in the file by then stays.
    """
    configs = {part: config_for(part, given) for part in PARTS if part in parts}
    compared = against is not None
    if profile and "train" not in configs:
        raise UserError(
            "--profile profiles the training step: add train to --only, or leave out --profile"
        )
    if compared and importlib.util.find_spec("transformers") is None:
        raise UserError(
            "--against transformers: that package is not installed: pip install transformers, or "
            "leave out --against"
        )
    first = next(iter(configs.values()))
    precision = Precision.of(first)
    check_device(precision, first.compile)
    for part, config in configs.items():
        n_params = parameter_count(GPT2Config.of(config))
        refuse_what_cannot_fit(config, n_params, precision.device, training=part != "sample")
        if part == "sample":
            prompt_ids(config, compared)
        elif part == "processes":
            check_processes(config, nproc_per_node)
        if part in ("files", "run", "processes"):
            load_corpus(config.input_file)
    result = _about(first, precision, compared)
    folder = None if out_dir is None else Path(out_dir)
    if folder is not None:
        result = _with_earlier(folder / FILE, result, configs, overwrite)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"out_dir {folder} cannot be used ({error.strerror}): name a folder you may write "
                f"to (--out_dir)"
            ) from None

    # Each part in new processes: what it does to them does not change the next, and they give their
    # memory back.
    measure: dict[str, Callable[[RunConfig, int], Figures]] = {
        "train": partial(measure_training, compared=compared, profile=profile),
        "sample": partial(measure_sampling, compared=compared),
        "files": partial(measure_files, out_dir=folder),
        "run": measure_run,
        "processes": partial(measure_processes, n_processes=nproc_per_node),
    }
    for part, config in configs.items():
        measured = measure[part](config, rounds or PARTS[part].rounds)
        if part == "train":
            result = {name: value for name, value in result.items() if name not in _OPTIONAL}
        # More than five digits are noise.
        result |= json.loads(
            json.dumps(measured), parse_float=lambda text: float(f"{float(text):.5g}")
        )
        if folder is not None:
            content = json.dumps(result, indent=2, ensure_ascii=False)
            write_atomically(folder / FILE, content + "\n")
            write_atomically(folder / TABLE, as_markdown(result))
    return result


def _with_earlier(file: Path, about: Figures, parts: Iterable[str], overwrite: bool) -> Figures:
    """What the file has already, if it was measured on the same: parts can be measured one after
    the other.

    Raises:
        UserError: it has some of `parts` and is not to be overwritten, is no bench.json, or was
            measured on something else.
    """
    if not file.exists():
        return about
    elsewhere = "name another folder (--out_dir), or remove it"
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        lines(earlier)  # new figures are added only to what can be shown beside them
        there = [part for part in parts if ("help_s" if part == "files" else part) in earlier]
        both = [name for name in _SAME if name in about and name in earlier]
        other = [name for name in both if earlier[name] != about[name]]
        command = "\n".join(dict.fromkeys([*earlier["command"].splitlines(), about["command"]]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not what `bench` writes: {elsewhere}") from None
    if there and not overwrite:
        raise UserError(
            f"{file} has {', '.join(there)} already: name other parts (--only), another folder "
            f"(--out_dir), or measure again (--overwrite)"
        )
    if other:
        raise UserError(
            f"{file} was measured with another {other[0]}, and parts in one file must be "
            f"comparable: {elsewhere}"
        )
    return {**earlier, **about, "command": command}


def _about(config: RunConfig, precision: Precision, compared: bool) -> Figures:
    """What is measured, and on what."""
    found = environment()
    sizes = GPT2Config.of(config)
    shown = ("processor", "cpu_count", "memory_gb", "platform", "python")
    return {
        "command": command_line(),
        "time": found["time"],
        "machine": {
            "device": precision.device_name,
            "threads": torch.get_num_threads(),
            **{name: found[name] for name in shown},
        },
        "torch": torch.__version__,
        "model": {"n_params": parameter_count(sizes), **sizes.to_dict()},
        "amp": precision.amp,
        "amp_reason": precision.reason,
        "optimizer": config.optimizer,
        "compile": config.compile,
        "seed": config.seed,
        **({"transformers": version("transformers")} if compared else {}),
    }
