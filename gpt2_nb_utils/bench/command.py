"""The command `bench`: check everything that can be checked, then measure one part after the other."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.bench.files import measure_files
from gpt2_nb_utils.bench.processes import check_processes, measure_processes
from gpt2_nb_utils.bench.sampling import measure_sampling, prompt_ids
from gpt2_nb_utils.bench.settings import PARTS, ROUNDS, config_for
from gpt2_nb_utils.bench.training import measure_training
from gpt2_nb_utils.bench.whole_run import measure_run
from gpt2_nb_utils.bench.worker import Worker
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.machine import command_line, environment
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.report.bench_table import lines
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes

FILE = "bench.json"

_KEYS = {
    "train": {
        "train",
        "matmul_gflops",
        "share_of_matmul",
        "peak_memory_gb",
        "rounds",
        "against",
        "against_compiled",
        "profile",
    },
    "sample": {"sample_tok_per_s", "sample"},
    "files": {
        "help_s",
        "import_s",
        "corpus_load_s",
        "corpus_again_s",
        "corpus_tokens",
        "checkpoint_save_s",
        "checkpoint_load_s",
        "checkpoint_gb",
    },
    "run": {"run"},
    "processes": {"processes"},
}
"""What each part fills in bench.json."""
_SAME = ("machine", "torch", "transformers", "model", "amp", "optimizer", "compile", "seed")
"""What must be alike for figures to stand in one file."""


def bench(
    parts: Sequence[str],
    given: dict[str, Any],
    against: str | None = None,
    rounds: int | None = None,
    profile: bool = False,
    nproc_per_node: int = 2,
    out_dir: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure the speed of this program on this machine.

    Args:
        parts: some of `settings.PARTS`.
        given: settings given by hand, by the names of `RunConfig`.
        against: whose GPT-2 takes turns with ours, or None.
        rounds: turns of each side; None takes `settings.ROUNDS`.
        profile: look into a training step, with the part `train`.
        nproc_per_node: what the part `processes` compares with one.
        out_dir: folder that gets bench.json, or None.
        overwrite: measure parts again that a bench.json there has already. Those that it lacks are always added to it.

    Returns:
        The content of bench.json: what was measured on, and the figures of each part that was measured, speeds in tokens/s.

    Raises:
        UserError: bad input (said before anything is measured), or too little memory. What is in the file by then stays there.
    """
    parts = [part for part in PARTS if part in parts]
    configs = {part: config_for(part, given) for part in parts}
    file = _file_in(Path(out_dir)) if out_dir is not None else None
    if profile and "train" not in parts:
        raise UserError(
            "--profile looks into the training step: have train among --only, or leave out --profile"
        )
    if against is not None and importlib.util.find_spec("transformers") is None:
        raise UserError(
            "--against transformers: that package is not installed: pip install transformers, or leave out --against"
        )
    precision = Precision.of(configs[parts[0]])
    for part, config in configs.items():
        refuse_what_cannot_fit(
            config,
            parameter_count(model_sizes(config)),
            precision.device,
            training=part != "sample",
        )
    if "sample" in parts:
        prompt_ids(configs["sample"], against is not None)
    if "processes" in parts:
        check_processes(configs["processes"], nproc_per_node)
    for part in ("files", "run", "processes"):
        if part in parts:
            load_corpus(configs[part].input_file)
    result = _about(configs[parts[0]], precision, against)
    if file is not None:
        _make_folder(file.parent)
        result = _with_earlier(file, result, parts, overwrite)

    for part in parts:
        # Each part in new processes: what it does to them is not in the figures of the next, and they give their memory back.
        with Worker("ours") as ours, Worker("transformers") as worker:
            theirs = worker if against is not None else None
            measure: dict[str, Callable[[RunConfig, int], dict[str, Any]]] = {
                "train": lambda config, n: measure_training(config, ours, theirs, n, profile),
                "sample": lambda config, n: measure_sampling(config, ours, theirs, n),
                "files": lambda config, n: measure_files(config, ours, n, file and file.parent),
                "run": lambda config, n: measure_run(config, ours, n),
                "processes": lambda config, n: measure_processes(config, nproc_per_node, n),
            }
            measured = measure[part](configs[part], rounds or ROUNDS[part])
        result = {
            **{name: value for name, value in result.items() if name not in _KEYS[part]},
            **_to_five_digits(measured),
        }
        if file is not None:
            write_atomically(file, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _file_in(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out_dir {folder} is a file: name a folder (--out_dir)")
    return folder / FILE


def _with_earlier(
    file: Path, about: dict[str, Any], parts: Sequence[str], overwrite: bool
) -> dict[str, Any]:
    """What the file has already, if it was measured on the same: parts can be measured one after the other.

    Raises:
        UserError: it has some of `parts` and is not to be overwritten, is no bench.json, or was measured on something else.
    """
    if not file.exists():
        return about
    elsewhere = "name another folder (--out_dir), or remove it"
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        lines(earlier)  # what cannot be shown beside new figures is not measured for
        there = [part for part in parts if _KEYS[part] & earlier.keys()]
        other = [
            name
            for name in _SAME
            if name in about and earlier.get(name, about[name]) != about[name]
        ]
        command = "\n".join(dict.fromkeys([*earlier["command"].splitlines(), about["command"]]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not what `bench` writes: {elsewhere}") from None
    if there and not overwrite:
        raise UserError(
            f"{file} has {', '.join(there)} already: name other parts (--only), another folder (--out_dir), or measure "
            f"again (--overwrite)"
        )
    if other:
        raise UserError(
            f"{file} was measured with another {other[0]}, and parts in one file must be comparable: {elsewhere}"
        )
    return {**earlier, **about, "command": command}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out_dir {folder} cannot be used ({error.strerror}): name a folder you may write to"
        ) from None


def _about(config: RunConfig, precision: Precision, against: str | None) -> dict[str, Any]:
    """What is measured on what."""
    found = environment()
    sizes = model_sizes(config)
    about = {
        "command": command_line(),
        "time": found["time"],
        "machine": {
            "device": precision.device_name,
            "threads": torch.get_num_threads(),
            **{
                name: found[name]
                for name in ("processor", "cpu_count", "memory_gb", "platform", "python")
            },
        },
        "torch": torch.__version__,
        "model": {"n_params": parameter_count(sizes), **sizes.to_dict()},
        "amp": precision.amp,
        "optimizer": config.optimizer,
        "compile": config.compile,
        "seed": config.seed,
    }
    if against is not None:
        about["transformers"] = version("transformers")
    return about


def _to_five_digits(value: Any) -> Any:
    """The same with every float cut to five digits: the rest is noise."""
    if isinstance(value, dict):
        return {name: _to_five_digits(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_to_five_digits(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
