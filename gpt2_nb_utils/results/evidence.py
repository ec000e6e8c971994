"""What an audit looks at: the parts of a run, each read anew from its file, and what is measured with them.

A part that is missing or unreadable raises CannotCheck where a check asks for it, so that the other checks are made all
the same. It deliberately decides nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.parts import parameter_shapes
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.results.audit import CannotCheck
from gpt2_nb_utils.results.run import RunResults
from gpt2_nb_utils.results.train_log import Section, read_log, surviving_measurements
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE, encode
from gpt2_nb_utils.tokenization.corpus import DEFAULT_PATH, Corpus, demonstration, load_corpus
from gpt2_nb_utils.tokenization.windows import WindowOrder, Windows
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.corpus_loss import read_windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.run_log import RecallRow, Row
from gpt2_nb_utils.training.start import model_sizes
from gpt2_nb_utils.training.verbatim import counted_openings

_PROJECT = Path(__file__).parents[2]
_PARTS_OF_BEST = {
    "model": dict,
    "model_config": dict,
    "config": dict,
    "state": dict,
    "corpus_sha256": str,
}


@dataclass(frozen=True)
class Measurement:
    """Losses measured anew.

    Attributes:
        losses: by window number, the loss of each of its targets (t,), fp32, nats.
        n_windows: windows of the text; fewer measured ones are an estimate.
        n_right: by window number, the tokens continued verbatim after its opening, where that was counted.
    """

    losses: dict[int, Tensor]
    n_windows: int
    n_right: dict[int, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every window was measured."""
        return len(self.losses) == self.n_windows

    @property
    def n_targets(self) -> int:
        """Predictions measured."""
        return sum(len(window) for window in self.losses.values())

    def mean(self, indices: Sequence[int] | None = None) -> float:
        """Mean loss over these windows (all measured ones, when None), nats per token."""
        chosen = (
            list(self.losses.values())
            if indices is None
            else [self.losses[index] for index in indices]
        )
        return sum(window.double().sum().item() for window in chosen) / sum(
            len(window) for window in chosen
        )


class Evidence:
    """The parts of one run.

    Args:
        run: the run, as its directory tells it.
        precision: where and how to compute.
        sample: measure only so many windows, for a quick look; 0 measures all.
    """

    def __init__(self, run: RunResults, precision: Precision, sample: int = 0):
        self.run, self.directory, self.summary, self.settings = (
            run,
            run.directory,
            run.summary,
            run.config,
        )
        self.precision, self._n_windows = precision, sample
        corpus = run.summary.get("corpus")
        self.recorded_corpus: dict[str, Any] = corpus if isinstance(corpus, dict) else {}

    @cached_property
    def loaded(self) -> dict[str, Any] | UserError | None:
        """The content of best.pt, loaded without running anything in it; or what is wrong with it; None where there is none."""
        path = self.directory.best
        if not path.exists():
            return None
        try:
            content = read_checkpoint(path)
        except UserError as error:
            return error
        lacking = [
            name for name, kind in _PARTS_OF_BEST.items() if not isinstance(content.get(name), kind)
        ]
        if not lacking and type(content["state"].get("step")) is not int:
            lacking = ["number of its step"]
        return (
            UserError(f"{path} holds no {lacking[0]}: put back the file that the run wrote")
            if lacking
            else content
        )

    @property
    def best(self) -> dict[str, Any]:
        """The content of best.pt."""
        if isinstance(self.loaded, dict):
            return self.loaded
        raise CannotCheck(
            "checkpoints/best.pt " + ("is missing" if self.loaded is None else "cannot be loaded")
        )

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        if not self.directory.config.exists():
            raise CannotCheck("config.json is missing")
        return self.directory.read_config()

    @property
    def rows(self) -> list[Row]:
        """The metrics, one row or more."""
        if not self.run.rows:
            raise CannotCheck("logs/train_metrics.csv is missing or holds no row")
        return self.run.rows

    @cached_property
    def sections(self) -> list[Section]:
        """The sections of train.log, one or more."""
        try:
            sections = read_log(self.directory.log)
        except (OSError, ValueError):
            sections = []
        if not sections:
            raise CannotCheck("logs/train.log is missing, or is no log of a run")
        return sections

    @property
    def recall(self) -> tuple[RecallRow, ...]:
        """What was counted of recall at each measurement, one row or more."""
        if not self.run.recall:
            raise CannotCheck("logs/recall.csv holds no row that can be read")
        return self.run.recall

    @cached_property
    def measurements(self) -> list[tuple[int, int | str]]:
        """The measurements of the training loss, as the log tells them: (step, windows), in order."""
        return surviving_measurements(self.sections)

    def openings(self, windows: int | str) -> list[int]:
        """The windows whose openings a measurement on so many windows (or "all") has counted."""
        return counted_openings(
            self.windows, self.windows.evenly_spread(0 if windows == "all" else windows)
        )

    @cached_property
    def corpus(self) -> Corpus:
        """The text of the run, found on this machine by its sha256; nothing is downloaded."""
        recorded = self.recorded_corpus
        sha256 = (
            self.loaded["corpus_sha256"]
            if isinstance(self.loaded, dict)
            else recorded.get("sha256")
        )
        if recorded.get("source") == "demo":
            found = [demonstration("the run was trained on it")]
        else:
            found = [text for path in self._places() if (text := _text_at(path)) is not None]
        for text in found:
            if text.sha256 == sha256:
                return text
        others = (
            f" ({found[0].path} is another text, sha256 {found[0].sha256[:12]}…)" if found else ""
        )
        raise CannotCheck(
            f"the text of the run, sha256 {str(sha256)[:12]}…, is not on this machine{others}"
        )

    def _places(self) -> list[Path]:
        """Where the text may lie; a run directory may have come from another machine."""
        named = [self.settings.input_file, self.recorded_corpus.get("path")]
        places = [
            Path(os.path.expanduser(name)) for name in named if isinstance(name, str) and name
        ]
        return list(dict.fromkeys([*places, DEFAULT_PATH, _PROJECT / DEFAULT_PATH]))

    @cached_property
    def tokens(self) -> Tensor:
        """All tokens of the text (N,)."""
        return torch.from_numpy(encode(self.corpus.text))

    @cached_property
    def windows(self) -> Windows:
        """The tokens that the run was trained on, cut as in training."""
        return Windows(self.tokens[: self.settings.max_tokens or None], self.settings.seq_len)

    @cached_property
    def order(self) -> WindowOrder:
        """The order in which the run visited its windows."""
        return WindowOrder(len(self.windows), self.settings.seed, self.settings.randomize_batches)

    def tokens_after(self, steps: int) -> int:
        """Predictions that so many steps train on: the last window of each epoch is shorter than the others."""
        settings, windows = self.settings, self.windows
        epochs, rest = divmod(steps * settings.batch_size * settings.grad_accum, len(windows))
        short = windows.seq_len - (windows.n_targets - (len(windows) - 1) * windows.seq_len)
        missing = short if len(windows) - 1 in self.order.take(epochs * len(windows), rest) else 0
        return epochs * windows.n_targets + rest * windows.seq_len - missing

    @cached_property
    def model(self) -> GPT2:
        """The network with the weights of best.pt, in eval mode."""
        if misfits(self.best):
            raise CannotCheck("the weights of best.pt are not those of a GPT-2 of its sizes")
        return model_from(self.best, self.precision.device)

    @cached_property
    def initial_model(self) -> GPT2:
        """The network with the random weights of the run's seed."""
        return GPT2(model_sizes(self.settings), seed=self.settings.seed).eval()

    @cached_property
    def measurement(self) -> Measurement:
        """Losses of the weights of best.pt on the text of the run.

        Raises:
            UserError: `sample` is not below the number of windows.
        """
        windows = self.windows
        if self._n_windows >= len(windows):
            raise UserError(
                f"sample {self._n_windows} is not below the {len(windows):,} windows of the text: leave it out to measure all"
            )
        openings: set[int] = set()  # those that were counted with these weights
        with contextlib.suppress(CannotCheck):
            openings.update(
                *(
                    self.openings(n)
                    for step, n in self.measurements
                    if step == self.best["state"].get("step")
                )
            )
        return self.measure(
            self.model,
            windows.evenly_spread(self._n_windows),
            "measuring the training loss, window",
            openings,
        )

    def measure(
        self, model: GPT2, indices: Sequence[int], label: str, openings: Collection[int] = ()
    ) -> Measurement:
        """The losses of a model on these windows, with a progress line.

        Args:
            openings: those of them whose verbatim continuation is counted in the same forward pass.
        """
        progress = Progress(len(indices), label)
        readings = dict(
            zip(
                indices,
                read_windows(
                    model.to(self.precision.device),
                    self.windows,
                    indices,
                    self.precision,
                    progress.update,
                    openings,
                ),
            )
        )
        progress.close()
        return Measurement(
            {index: reading.losses for index, reading in readings.items()},
            len(self.windows),
            {
                index: reading.n_right
                for index, reading in readings.items()
                if reading.n_right is not None
            },
        )


def misfits(best: dict[str, Any]) -> list[str]:
    """What keeps the tensors of a checkpoint from being the fp32 weights of GPT-2 as published, in the sizes that it states."""
    tensors, stated = best["model"], best["model_config"]
    if set(stated) != set(GPT2Config().to_dict()) or not all(
        type(size) is int and size > 0 for size in stated.values()
    ):
        return [f"its sizes are {stated}"]
    sizes = GPT2Config(**stated)
    problems = (
        []
        if sizes.vocab_size == VOCAB_SIZE
        else [f"its vocabulary has {sizes.vocab_size:,} tokens"]
    )
    if sizes.n_embd % sizes.n_head:
        problems.append(f"n_embd {sizes.n_embd} is not divisible by n_head {sizes.n_head}")
    if sizes.n_layer > len(tensors):  # before the shapes of so many layers are listed
        return [*problems, f"{len(tensors)} tensors cannot be {sizes.n_layer:,} layers"]
    expected = parameter_shapes(sizes)
    problems += [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is stored besides" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensor.shape)} in {tensor.dtype}, not {expected[name]} in torch.float32"
        for name, tensor in tensors.items()
        if name in expected
        and (tuple(tensor.shape) != expected[name] or tensor.dtype != torch.float32)
    ]
    problems += [
        f"{name} is no plain tensor ({tensor.layout}, {tensor.device.type})"
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and (tensor.layout != torch.strided or tensor.is_meta)
    ]
    return problems


def _text_at(path: Path) -> Corpus | None:
    try:
        return load_corpus(str(path)) if path.exists() else None
    except (UserError, OSError):
        return None
