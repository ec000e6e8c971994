"""The part `files`: how long it takes to start, to read the corpus, to save and to load a checkpoint."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.bench.rounds import in_turn, median
from gpt2_nb_utils.bench.run_command import run_command
from gpt2_nb_utils.bench.steps import OurStep
from gpt2_nb_utils.bench.worker import Worker
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.training.checkpoints import read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.start import model_sizes

_HELP = ("-m", "gpt2_nb_utils", "--help")
_IMPORT = ("-c", "import gpt2_nb_utils.training.loop")
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


class Checkpoint:
    """What `train` writes to last.pt after its first step, written to and read from a folder of its own.

    Args:
        folder: is there already.
    """

    def __init__(self, config: RunConfig, folder: str):
        # The weights and the optimizer's averages are what takes room; the smallest batch fills them.
        small = config.model_copy(
            update={
                "batch_size": 1,
                "seq_len": min(8, config.seq_len),
                "grad_accum": 1,
                "compile": False,
            }
        )
        step = OurStep(small)
        step.warm_up()
        self.path, self.device = Path(folder) / "last.pt", step.precision.device
        self.content = {
            "model_config": model_sizes(config).to_dict(),
            "config": config.model_dump(),
            "model": step.model.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "scaler": step.scaler.state_dict(),
            "random_states": {"cpu": torch.get_rng_state()},
        }

    def save(self) -> float:
        """Seconds until it is on the disk."""
        begun = time.perf_counter()
        save_checkpoint(self.path, self.content)
        return time.perf_counter() - begun

    def load(self) -> float:
        """Seconds until it is in memory; the operating system has the file at hand, for it was just written."""
        begun = time.perf_counter()
        read_checkpoint(self.path, self.device)
        return time.perf_counter() - begun

    def gigabytes(self) -> float:
        """Size of the file, in GiB."""
        return self.path.stat().st_size / 2**30


def measure_files(
    config: RunConfig, ours: Worker, rounds: int, out_dir: Path | None
) -> dict[str, Any]:
    """Time start-up and files.

    Args:
        out_dir: an existing folder on whose disk the checkpoint is written for a while; the system's temporary one if None.

    Returns:
        The keys of bench.json that this part fills, in seconds.
    """
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".checkpoint-") as folder:
        ours.build(
            "checkpoint",
            Checkpoint,
            config,
            folder,
            size="the weights and the averages of the optimizer",
        )
        took = in_turn(
            {
                "help_s": lambda number: run_command([sys.executable, *_HELP])[0],
                "import_s": lambda number: run_command([sys.executable, *_IMPORT])[0],
                "corpus": lambda number: _load_corpus(config, Path(folder, f"{number}.bin")),
                "kept_tokens": lambda number: _load_corpus(config, Path(folder, f"{number}.bin")),
                "checkpoint_save_s": lambda number: ours.ask("checkpoint", "save"),
                "checkpoint_load_s": lambda number: ours.ask("checkpoint", "load"),
            },
            rounds,
            "start-up and files",
        )
        gigabytes = ours.ask("checkpoint", "gigabytes")
    corpus, kept = took.pop("corpus"), took.pop("kept_tokens")
    return {
        **{name: median(seconds) for name, seconds in took.items()},
        "corpus_load_s": median([float(seconds) for seconds, _ in corpus]),
        "corpus_tokens": int(corpus[0][1]),
        "corpus_again_s": median([float(seconds) for seconds, _ in kept]),
        "checkpoint_gb": gigabytes,
    }


def _load_corpus(config: RunConfig, tokens: Path) -> list[str]:
    """Seconds and tokens, as printed; from the text, or from `tokens` where an earlier call left them."""
    return run_command([sys.executable, "-c", _LOAD_CORPUS, config.input_file, str(tokens)])[
        1
    ].split()
