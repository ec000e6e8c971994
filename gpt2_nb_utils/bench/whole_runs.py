"""The parts `files`, `run` and `processes`: commands as a person gives them.

`files`: how long it takes to start, to read the corpus, to save and to load a checkpoint.

`run`: what logs, metrics, samples, measurements and checkpoints cost around the bare steps. Of a
summary, `seconds` are the steps alone, and `wall_seconds` everything between the first step and the
last. Start-up (imports, the corpus, random weights) comes before both, and is reported separately.

`processes`: the same run by one process and by several, under torchrun, with the same batch in all.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gpt2_nb_utils.bench.sides import Side
from gpt2_nb_utils.bench.worker import Figures, Worker, in_turn, ratios
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.report.notebooks import SOURCES
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.training.distributed import DistContext
from gpt2_nb_utils.training.precision import Precision

_LONGEST_COMMAND = 120
_TRAIN = ("gpt2_nb_utils", "train")
_LOAD_CORPUS = """
import sys, time
from pathlib import Path
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.tokenization.token_cache import read_tokens, write_tokens
tokens = Path(sys.argv[2])
begun = time.perf_counter()
corpus = load_corpus(sys.argv[1])
ids = read_tokens(tokens, corpus) if tokens.exists() else encode(corpus.text)
print(time.perf_counter() - begun, len(ids))
write_tokens(tokens, ids)
"""
"""In a new process, as a run does it: the first use of GPT-2's vocabulary is part of the time."""


def run_command(words: Sequence[str], **environment: str) -> tuple[float, str]:
    """Run a command to its end.

    Args:
        environment: variables that differ from those of this process.

    Returns:
        Seconds from its start to its end, and what it printed.

    Raises:
        UserError: it failed; the line says which and what it complained about.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        lines = done.stderr.split("\n")
        complaints = [line for line in lines if line.startswith("error: ")] or lines[-2:]
        command = shlex.join([Path(words[0]).name, *words[1:]])[:_LONGEST_COMMAND]
        raise UserError(
            f"`{command}` ended with status {done.returncode}: "
            f"{complaints[0].removeprefix('error: ') or 'no message'}"
        )
    return seconds, done.stdout


def measure_files(config: RunConfig, rounds: int, out_dir: Path | None) -> Figures:
    """Time start-up and files.

    Args:
        out_dir: an existing folder on whose disk the checkpoint is written for a while; the
            system's temporary one if None.

    Returns:
        The keys of bench.json that this part fills, in seconds.
    """

    def seconds_of(*words: str) -> float:
        return run_command([sys.executable, *words])[0]

    def load_corpus() -> float:
        nonlocal n_tokens
        words = [sys.executable, "-c", _LOAD_CORPUS, config.input_file, str(tokens)]
        seconds, n_tokens = run_command(words)[1].split()
        return float(seconds)

    def load_from_text() -> float:
        tokens.unlink(missing_ok=True)
        return load_corpus()

    n_tokens = ""
    # The weights and the optimizer's averages are what takes room; the smallest batch fills them.
    small = config.model_copy(update={"batch_size": 1, "seq_len": 1, "grad_accum": 1})
    size = "the weights and the averages of the optimizer"
    with (
        tempfile.TemporaryDirectory(dir=out_dir, prefix=".checkpoint-") as folder,
        Worker("ours", size, Side, small) as ours,
    ):
        tokens, checkpoint = Path(folder, "tokens.bin"), Path(folder, "last.pt")
        ours.ask("warm_up")
        took = in_turn(
            {
                "help_s": partial(seconds_of, "-m", "gpt2_nb_utils", "--help"),
                "import_s": partial(seconds_of, "-c", "import gpt2_nb_utils.training.train"),
                "corpus_load_s": load_from_text,
                "corpus_again_s": load_corpus,
                "checkpoint_save_s": partial(ours.ask, "save", checkpoint),
                "checkpoint_load_s": partial(ours.ask, "load", checkpoint),
            },
            rounds,
            "start-up and files",
        )
        gigabytes = checkpoint.stat().st_size / 2**30
    return {
        **{name: np.median(seconds) for name, seconds in took.items()},
        "corpus_tokens": int(n_tokens),
        "checkpoint_gb": gigabytes,
    }


def _train(
    config: RunConfig, *module: str, papermill: bool = False, **environment: str
) -> list[float]:
    """Train with the settings of a config, by a Python module.

    Returns:
        Tokens/s by the steps' own time, tokens/s by the wall clock, and the seconds of the command
        that are outside both.
    """
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "run"
        given = {**config.given, "preset": config.preset, "out_dir": out_dir}
        if config.input_file:
            given["input_file"] = Path(config.input_file).absolute()
        if papermill:
            module = (*module, str(SOURCES / "03_training.ipynb"), f"{folder}/executed.ipynb")
            words = [word for name, value in given.items() for word in ("-p", name, str(value))]
        else:
            words = [f"--{name}={value}" for name, value in given.items()]
        seconds, _ = run_command([sys.executable, "-m", *module, *words], **environment)
        summary = read_record(out_dir).summary
    tokens, wall_seconds = summary.tokens_seen, summary.wall_seconds
    return [tokens / summary.seconds, tokens / wall_seconds, seconds - wall_seconds]


def measure_run(config: RunConfig, rounds: int) -> Figures:
    """Train three times in each round: bare steps (a quarter as many give their rate), the command
    `train`, and papermill with notebook 03.

    Returns:
        The key `run` of bench.json: speeds in tokens/s, by the steps' own time and by the wall
        clock; each cost is the share of the speed that is lost, of `train` against the bare steps
        and of papermill against `train`, by the wall clock.
    """
    size = f"batch_size {config.batch_size} and seq_len {config.seq_len}"
    with Worker("ours", size, Side, config) as ours:
        ours.ask("warm_up")
        took = in_turn(
            {
                "bare": partial(ours.ask, "turn", max(1, config.steps // 4)),
                "train": partial(_train, config, *_TRAIN),
                "papermill": partial(_train, config, "papermill", papermill=True),
            },
            rounds,
            "run around the step",
        )
    bare, train, papermill = config.tokens_per_step / took["bare"], took["train"], took["papermill"]
    names = ("tok_per_s", "wall_tok_per_s", "start_up_s")
    shown = {"steps", "batch_size", "seq_len"}
    shown |= {"log_every", "eval_every", "save_every", "sample_every"}
    return {
        "run": {
            **config.model_dump(include=shown),
            "bare_tok_per_s": np.median(bare),
            "train": dict(zip(names, np.median(train, axis=0))),
            "papermill": dict(zip(names, np.median(papermill, axis=0))),
            "train_cost": np.median(1 - train[:, 1] / bare),
            "papermill_cost": np.median(1 - papermill[:, 1] / train[:, 1]),
        }
    }


def check_processes(config: RunConfig, n_processes: int) -> None:
    """Refuse a batch that cannot be shared evenly, and more processes than there are GPUs, where
    GPUs are used.

    Raises:
        UserError: one of these.
    """
    context = DistContext(world_size=n_processes, local_world_size=n_processes)
    context.check_batch_size(config.batch_size)
    Precision.of(config, context)


def measure_processes(config: RunConfig, rounds: int, n_processes: int) -> Figures:
    """Train with one process and with `n_processes`, in turn. The CPU's threads are divided among
    the processes.

    Returns:
        The key `processes` of bench.json: what was trained, and a row for each number of processes,
        with tokens/s by the steps' own time, and how many times as fast as one process it is.
    """
    # Nothing but steps is asked for; the measurement and the checkpoint that end every run are
    # outside `tok_per_s`.
    only_steps = dict(
        sample_every=0, eval_windows=1, eval_every=config.steps, save_every=config.steps
    )
    config = RunConfig.resolve({**only_steps, **config.given, "preset": config.preset})

    def speed(n: int) -> float:
        threads = max(1, torch.get_num_threads() // n)
        torchrun = ("torch.distributed.run", "--standalone", f"--nproc_per_node={n}", "-m")
        return _train(config, *torchrun, *_TRAIN, OMP_NUM_THREADS=str(threads))[0]

    took = in_turn({n: partial(speed, n) for n in sorted({1, n_processes})}, rounds, "processes")
    rows = [{"n": n, "tok_per_s": np.median(took[n]), **ratios(took[n], took[1])} for n in took]
    shown = {"batch_size", "seq_len", "grad_accum", "steps"}
    return {"processes": {**config.model_dump(include=shown), "rows": rows}}
