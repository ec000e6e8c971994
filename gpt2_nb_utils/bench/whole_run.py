"""The part `run`: what logs, metrics, samples, measurements and checkpoints cost around the bare steps.

`train` and papermill are run as a person runs them. What counts is their summary: `seconds` of the steps alone, and
`wall_seconds` of everything between the first step and the last. Start-up (imports, the corpus, random weights) comes
before both, and is told apart.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from gpt2_nb_utils.bench.rounds import in_turn, median
from gpt2_nb_utils.bench.run_command import as_flags, given_settings, run_command
from gpt2_nb_utils.bench.steps import OurStep
from gpt2_nb_utils.bench.worker import Worker
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.report.notebooks import SOURCES
from gpt2_nb_utils.run_directory import RunDirectory

_NOTEBOOK = SOURCES / "03_training.ipynb"


def measure_run(config: RunConfig, ours: Worker, rounds: int) -> dict[str, Any]:
    """Train three times in each round: bare steps (a quarter as many give their rate), the command `train`, and papermill with notebook 03.

    Returns:
        The key `run` of bench.json: speeds in tokens/s, by the steps' own time and by the wall clock; each cost is the share
        of the speed that is lost, of `train` against the bare steps and of papermill against `train`, by the wall clock.
    """
    ours.build(
        "step", OurStep, config, size=f"batch_size {config.batch_size} and seq_len {config.seq_len}"
    )
    ours.ask("step", "warm_up")
    took = in_turn(
        {
            "bare": lambda number: (
                config.tokens_per_step / ours.ask("step", "turn", number, max(1, config.steps // 4))
            ),
            "train": lambda number: _train(config),
            "papermill": lambda number: _papermill(config),
        },
        rounds,
        "run around the step",
    )
    train_walls, papermill_walls = (
        [each["wall_tok_per_s"] for each in took[name]] for name in ("train", "papermill")
    )
    return {
        "run": {
            "steps": config.steps,
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "log_every": config.log_every,
            "eval_every": config.eval_every,
            "save_every": config.save_every,
            "sample_every": config.sample_every,
            "bare_tok_per_s": median(took["bare"]),
            **{
                name: {
                    figure: median([each[figure] for each in took[name]])
                    for figure in took[name][0]
                }
                for name in ("train", "papermill")
            },
            "train_cost": median(
                [1 - wall / bare for wall, bare in zip(train_walls, took["bare"])]
            ),
            "papermill_cost": median(
                [1 - wall / train for wall, train in zip(papermill_walls, train_walls)]
            ),
        }
    }


def _train(config: RunConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "run"
        seconds, _ = run_command(
            [
                sys.executable,
                "-m",
                "gpt2_nb_utils",
                "train",
                *as_flags(given_settings(config, out_dir)),
            ]
        )
        return _speeds(RunDirectory(out_dir), seconds)


def _papermill(config: RunConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "run"
        words = [word for pair in given_settings(config, out_dir).items() for word in ("-p", *pair)]
        seconds, _ = run_command(
            [
                sys.executable,
                "-m",
                "papermill",
                str(_NOTEBOOK),
                str(Path(folder) / "executed.ipynb"),
                *words,
            ]
        )
        return _speeds(RunDirectory(out_dir), seconds)


def _speeds(directory: RunDirectory, seconds: float) -> dict[str, float]:
    summary = directory.read_summary()
    return {
        "tok_per_s": summary["tokens_seen"] / summary["seconds"],
        "wall_tok_per_s": summary["tokens_seen"] / summary["wall_seconds"],
        "start_up_s": seconds - summary["wall_seconds"],
    }
