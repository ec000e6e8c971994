"""The part `processes`: the same run by one process and by several, under torchrun, with the same batch in all."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.bench.rounds import in_turn, median, ratios
from gpt2_nb_utils.bench.run_command import as_flags, given_settings, run_command
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.processes import Processes


def check_processes(config: RunConfig, n_processes: int) -> None:
    """Refuse a batch that cannot be shared out evenly, and more processes than there are GPUs, where GPUs are used.

    Raises:
        UserError: one of these.
    """
    Processes(count=n_processes).refuse_uneven(config.batch_size)
    if Precision.of(config).device.type == "cuda" and n_processes > torch.cuda.device_count():
        raise UserError(
            f"nproc_per_node {n_processes} exceeds the {torch.cuda.device_count()} CUDA devices of this machine: "
            f"lower nproc_per_node, or take --device cpu"
        )


def measure_processes(config: RunConfig, n_processes: int, rounds: int) -> dict[str, Any]:
    """Train with one process and with `n_processes`, in turn. The CPU's threads are shared out among the processes.

    Returns:
        The key `processes` of bench.json: what was trained, and a row for each number of processes, with tokens/s by the
        steps' own time, and how many times as fast as one process it is.
    """
    numbers = sorted({1, n_processes})
    took = in_turn(
        {str(n): lambda number, n=n: _tokens_per_second(config, n) for n in numbers},
        rounds,
        "processes",
    )
    rows = [
        {"n": n, "tok_per_s": median(took[str(n)]), **ratios(took[str(n)], took["1"])}
        for n in numbers
    ]
    return {
        "processes": {
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "grad_accum": config.grad_accum,
            "steps": config.steps,
            "rows": rows,
        }
    }


def _tokens_per_second(config: RunConfig, n_processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "run"
        # Nothing but steps is asked for; the measurement and the checkpoint that end every run stand outside `tok_per_s`.
        settings = {
            "sample_every": "0",
            "eval_windows": "1",
            "eval_every": str(config.steps),
            "save_every": str(config.steps),
            **given_settings(config, out_dir),
        }
        run_command(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={n_processes}",
                "-m",
                "gpt2_nb_utils",
                "train",
                *as_flags(settings),
            ],
            OMP_NUM_THREADS=str(max(1, torch.get_num_threads() // n_processes)),
        )
        return RunDirectory(out_dir).read_summary()["tok_per_s"]
