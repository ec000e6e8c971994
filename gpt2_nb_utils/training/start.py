"""Before the first step: resolve what is resumed, claim the run directory, read the corpus, write what is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.run_directory import RunDirectory, command_line, environment
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.corpus import Corpus, load_corpus
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.state import State

_KEPT_ON_RESUME = ("max_tokens", "seed", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "seq_len", "grad_accum",
                   "randomize_batches", "optimizer", "amp")
"""Settings that a resumed run cannot change: its weights, its optimizer or its place in the data depend on them."""


@dataclass
class Run:
    """A run that is ready to train.

    Attributes:
        config: complete settings (those of the resumed run, where one is resumed).
        directory: its run directory, claimed.
        corpus: the text.
        windows: its tokens, in windows of `seq_len`.
        precision: device and number format.
        checkpoint: what it goes on from, or None for a new run.
        summary: what `summary.json` says now.
    """

    config: RunConfig
    directory: RunDirectory
    corpus: Corpus
    windows: Windows
    precision: Precision
    checkpoint: dict[str, Any] | None
    summary: dict[str, Any]

    @property
    def model_config(self) -> GPT2Config:
        """Sizes of the network."""
        return model_sizes(self.config)

    def write_summary(self, status: str, state: State) -> dict[str, Any]:
        """Bring `summary.json` up to date and return its content."""
        config = self.config
        self.summary.update(
            status=status, step=state.step, epoch=state.tokens_seen / self.windows.n_targets, tokens_seen=state.tokens_seen,
            seconds=round(state.seconds, 3), wall_seconds=round(state.wall_seconds, 3),
            tok_per_s=round(state.tokens_seen / state.seconds, 1) if state.seconds else None,
            loss=_finite(state.loss), best_batch_loss=state.best_batch_loss, best_batch_step=state.best_batch_step,
            train_loss=_finite(state.train_loss), train_loss_windows=state.train_loss_windows,
            train_loss_step=state.train_loss_step, best_train_loss=state.best_train_loss,
            best_train_loss_windows=state.best_train_loss_windows, best_train_loss_step=state.best_train_loss_step,
            target_loss=config.target_loss, target_reached=state.reached(config.target_loss),
        )
        self.directory.write_json(self.directory.summary, self.summary)
        return self.summary


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON knows no NaN


def model_sizes(config: RunConfig) -> GPT2Config:
    """The sizes of the network that a config asks for."""
    return GPT2Config(block_size=config.block_size, n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)


def start_run(config: RunConfig) -> Run:
    """Check everything that can be checked, then claim the run directory and write what is known.

    Raises:
        UserError: the corpus, the checkpoint, the device or the directory is not fit; nothing was written then.
    """
    directory = RunDirectory(config.out_dir)
    config, checkpoint = _resumed(config, directory)
    precision = Precision.of(config)
    corpus = load_corpus(config.input_file)
    ids = torch.from_numpy(encode(corpus.text))
    n_all = len(ids)
    if config.max_tokens:
        ids = ids[:config.max_tokens]
    windows = Windows(ids, config.seq_len)
    if checkpoint is not None and checkpoint["corpus_sha256"] != corpus.sha256:
        raise UserError(f"the checkpoint was trained on another text (sha256 {checkpoint['corpus_sha256'][:12]}…) than "
                        f"{corpus.path} ({corpus.sha256[:12]}…): name that text (--input_file) or start a new run (--out_dir)")
    directory.claim(config.resume, config.overwrite)
    previous = directory.read_summary() if directory.summary.exists() else {}
    summary = {
        "preset": config.preset, "command": previous.get("command") or command_line(), "seed": config.seed,
        "device": precision.device_name, "amp": precision.amp, "torch": torch.__version__,
        "n_params": parameter_count(model_sizes(config)), "config": config.model_dump(),
        "corpus": {"source": corpus.source, "path": corpus.path, "sha256": corpus.sha256, "chars": corpus.chars,
                   "tokens": len(ids), "is_course_input": corpus.is_course_input and len(ids) == n_all},
    }
    run = Run(config, directory, corpus, windows, precision, checkpoint, summary)
    directory.write_json(directory.config, config.model_dump())
    directory.write_json(directory.environment, _environment(directory, resumed=checkpoint is not None))
    run.write_summary("running", State(**checkpoint["state"]) if checkpoint else State())
    return run


def _environment(directory: RunDirectory, resumed: bool) -> dict[str, Any]:
    """What the run was started on; a resumed run adds what it went on with."""
    if not resumed or not directory.environment.exists():
        return environment()
    first = directory.read_json(directory.environment)
    return {**first, "resumed": [*first.get("resumed", []), environment()]}


def _resumed(config: RunConfig, directory: RunDirectory) -> tuple[RunConfig, dict[str, Any] | None]:
    """The config and the checkpoint from which the run goes on; the config as given and None for a new run."""
    checkpoint = None
    if config.resume == "auto":
        if config.overwrite or not directory.holds_run:
            return config, None
        if directory.last.exists():
            checkpoint = read_checkpoint(directory.last)
        saved = directory.read_config()
    elif config.resume:
        checkpoint = read_checkpoint(Path(config.resume))
        saved = checkpoint["config"]
    else:
        return config, None
    for name, value in config.given.items():
        if name in _KEPT_ON_RESUME and name in saved and value != saved[name]:
            raise UserError(f"{name} {value} differs from {saved[name]}, with which the run in {directory} was started: leave it "
                            f"out to go on with that run, or start a new one in another --out_dir")
    given = {name: value for name, value in config.given.items()} | {"out_dir": config.out_dir}
    return RunConfig.resolve(given, saved=saved), checkpoint
