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
from gpt2_nb_utils.bench.processes import check_devices, measure_processes
from gpt2_nb_utils.bench.sampling import measure_sampling, prompt_ids
from gpt2_nb_utils.bench.settings import PARTS, ROUNDS, config_for
from gpt2_nb_utils.bench.training import measure_training
from gpt2_nb_utils.bench.whole_run import measure_run
from gpt2_nb_utils.bench.worker import Worker
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.run_directory import command_line, environment, write_atomically
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes

FILE = "bench.json"


def bench(parts: Sequence[str], given: dict[str, Any], against: str | None = None, rounds: int | None = None, profile: bool = False,
          nproc_per_node: int = 2, out_dir: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Measure the speed of this program on this machine.

    Args:
        parts: some of `settings.PARTS`.
        given: settings given by hand, by the names of `RunConfig`.
        against: whose GPT-2 takes turns with ours, or None.
        rounds: turns of each side; None takes `settings.ROUNDS`.
        profile: look into a training step, with the part `train`.
        nproc_per_node: what the part `processes` compares with one.
        out_dir: folder that gets bench.json, or None.
        overwrite: replace a bench.json that is there.

    Returns:
        The content of bench.json: what was measured on, and the figures of each part that was measured, speeds in tokens/s.

    Raises:
        UserError: bad input (said before anything is measured), or too little memory.
    """
    parts = [part for part in PARTS if part in parts]
    configs = {part: config_for(part, given) for part in parts}
    file = _free_file(Path(out_dir), overwrite) if out_dir is not None else None
    if profile and "train" not in parts:
        raise UserError("--profile looks into the training step: have train among --only, or leave out --profile")
    if against is not None and importlib.util.find_spec("transformers") is None:
        raise UserError("--against transformers: that package is not installed: pip install transformers, or leave out --against")
    precision = Precision.of(configs[parts[0]])
    for config in configs.values():
        refuse_what_cannot_fit(config, parameter_count(model_sizes(config)), precision.device)
    if "sample" in parts:
        prompt_ids(configs["sample"], against is not None)
    if "processes" in parts:
        check_devices(configs["processes"], nproc_per_node)
    for part in ("files", "run", "processes"):
        if part in parts:
            load_corpus(configs[part].input_file)
    if file is not None:
        _make_folder(file.parent)

    with Worker("ours") as ours, Worker("transformers") as worker:
        theirs = worker if against is not None else None
        measure: dict[str, Callable[[RunConfig, int], dict[str, Any]]] = {
            "train": lambda config, n: measure_training(config, ours, theirs, n, profile),
            "sample": lambda config, n: measure_sampling(config, ours, theirs, n),
            "files": lambda config, n: measure_files(config, ours, n, file and file.parent),
            "run": lambda config, n: measure_run(config, ours, n),
            "processes": lambda config, n: measure_processes(config, nproc_per_node, n),
        }
        result = _about(configs[parts[0]], precision, against)
        for part in parts:
            result.update(measure[part](configs[part], rounds or ROUNDS[part]))
            ours.forget()
            worker.forget()
    result = _to_five_digits(result)
    if file is not None:
        write_atomically(file, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _free_file(folder: Path, overwrite: bool) -> Path:
    """The path of bench.json in a folder, where nothing stands in its way."""
    file = folder / FILE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out_dir {folder} is a file: name a folder (--out_dir)")
    if file.exists() and not overwrite:
        raise UserError(f"out_dir {folder} already holds a {FILE}: name another folder (--out_dir), or replace it (--overwrite)")
    return file


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out_dir {folder} cannot be used ({error.strerror}): name a folder you may write to") from None


def _about(config: RunConfig, precision: Precision, against: str | None) -> dict[str, Any]:
    """What is measured on what."""
    found = environment()
    sizes = model_sizes(config)
    about = {
        "command": command_line(), "time": found["time"],
        "machine": {"device": precision.device_name, "threads": torch.get_num_threads(),
                    **{name: found[name] for name in ("processor", "cpu_count", "memory_gb", "platform", "python")}},
        "torch": torch.__version__,
        "model": {"n_params": parameter_count(sizes), **sizes.to_dict()},
        "amp": precision.amp, "optimizer": config.optimizer, "compile": config.compile, "seed": config.seed,
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
