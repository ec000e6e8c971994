"""What an audit looks at: the parts of a run, each read from its file, and what is measured with
them.

A part that is missing or unreadable raises CannotCheck where a check asks for it, so that the other
checks are made.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.parts import parameter_shapes
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.results.audit import CannotCheck
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE, encode
from gpt2_nb_utils.tokenization.corpus import DEFAULT_PATH, Corpus, demonstration, load_corpus
from gpt2_nb_utils.tokenization.dataset import EpochSampler, TokenDataset
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.corpus_loss import read_windows
from gpt2_nb_utils.training.events import History, history, read_events, rendered
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.verbatim import counted_openings

_PROJECT = Path(__file__).parents[2]
_LARGEST_BATCH = 1_000_000
_PARTS_OF_BEST = {
    "model": dict,
    "model_config": dict,
    "config": dict,
    "state": dict,
    "corpus_sha256": str,
}


@dataclass(frozen=True)
class Measurement:
    """Losses measured again.

    Attributes:
        losses: by window number, the loss of each of its targets (t,), fp32, nats.
        n_right: by window number, the tokens continued verbatim after its opening; None where that
            was not counted.
    """

    losses: dict[int, Tensor]
    n_right: dict[int, int | None]

    def mean(self, indices: Iterable[int] | None = None) -> float:
        """Mean loss over these windows (all measured ones, when None), nats per token."""
        chosen = self.losses if indices is None else indices
        return torch.cat([self.losses[index] for index in chosen]).double().mean().item()


class Evidence:
    """The parts of one run.

    Where the run has events, its records are taken from these; a run of an earlier version has its
    own files only.

    Args:
        run: the run, as its directory tells it.
        precision: where and how to compute.
        sample: measure only so many windows, for a quick look; 0 measures all.
    """

    def __init__(self, run: Record, precision: Precision, sample: int = 0):
        self.run, self.directory = run, run.directory
        self.precision, self._n_windows = precision, sample
        self.missing: dict[str, None] = {}
        """What was asked for and is not there, in the order in which it was."""

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """All events of the run; for one of an earlier version, those that its files tell of."""
        return _events_of_earlier(self.run) if self.earlier else read_events(self.directory.events)

    @property
    def earlier(self) -> bool:
        """Whether an earlier version recorded the run, without events."""
        return not os.path.lexists(self.directory.events)

    def _lack(self, what: str) -> CannotCheck:
        self.missing[what] = None
        return CannotCheck(what)

    def need_events(self) -> None:
        """Raise CannotCheck where an earlier version recorded the run."""
        if self.earlier:
            raise CannotCheck("recorded by an earlier version, without logs/events.jsonl")

    @cached_property
    def history(self) -> History:
        """The events that count."""
        return history(self.events)

    @property
    def steps(self) -> dict[int, dict[str, Any]]:
        """The optimizer steps on record, one or more."""
        if not self.history.steps:
            raise self._lack("no steps are on record (logs/train_metrics.csv is missing or empty)")
        return self.history.steps

    @property
    def first_measured(self) -> dict[str, Any]:
        """The measurement of the random weights, at step 0."""
        nothing = {"train_loss": None, "windows": "all"}
        return next((each for each in self.history.measurements if each["step"] == 0), nothing)

    @property
    def best_measured(self) -> dict[str, Any]:
        """The measurement of best.pt; the step may have been done again since."""
        step = self.best["state"]["step"]
        return [e for e in self.events if e["event"] == "measured" and e["step"] == step][-1]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The summary of the run."""
        if self.earlier:
            return self.directory.read_summary()
        return json.loads(rendered(self.events)["summary.json"])

    @property
    def settings(self) -> RunConfig:
        """The settings with which the run ended."""
        return self.settings_at(math.inf)

    def settings_at(self, step: float) -> RunConfig:
        """The settings with which a step was done; an earlier version kept the last ones only."""
        return [config for begun, config in self._settings_from if begun < step][-1]

    @cached_property
    def _settings_from(self) -> list[tuple[int, RunConfig]]:
        return [
            (start.get("step", 0), RunConfig.resolve({}, saved=start["config"]))
            for start in self.history.starts
        ]

    @property
    def recorded_corpus(self) -> dict[str, Any]:
        """What is on record about the text."""
        corpus = (self.summary if self.earlier else self.history.starts[-1]).get("corpus")
        return corpus if isinstance(corpus, dict) else {}

    @cached_property
    def loaded(self) -> dict[str, Any] | UserError | None:
        """The content of best.pt, loaded without running anything in it; or what is wrong with it;
        None where there is none."""
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
        if self.loaded is None:
            raise self._lack("checkpoints/best.pt is missing")
        raise CannotCheck("checkpoints/best.pt cannot be loaded")

    def chosen(self, windows: int | str) -> list[int]:
        """The numbers of the windows of a measurement on so many of them, or "all"."""
        return self.windows.evenly_spread(0 if windows == "all" else windows)

    def openings(self, windows: int | str) -> list[int]:
        """The windows whose openings such a measurement has counted."""
        return counted_openings(self.windows, self.chosen(windows))

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
        raise self._lack(
            f"the text of the run, sha256 {str(sha256)[:12]}…, is not on this machine{others}"
        )

    def _places(self) -> list[Path]:
        """Where the text may lie; a run directory may have come from another machine."""
        named = [self.run.config.input_file, self.recorded_corpus.get("path")]
        places = [
            Path(os.path.expanduser(name)) for name in named if isinstance(name, str) and name
        ]
        return list(dict.fromkeys([*places, DEFAULT_PATH, _PROJECT / DEFAULT_PATH]))

    @cached_property
    def tokens(self) -> Tensor:
        """All tokens of the text (N,)."""
        return torch.from_numpy(encode(self.corpus.text))

    @cached_property
    def windows(self) -> TokenDataset:
        """The tokens that the run was trained on, cut as in training."""
        return TokenDataset(self.tokens[: self.settings.max_tokens or None], self.settings.seq_len)

    @cached_property
    def order(self) -> EpochSampler:
        """The order in which the run visited its windows."""
        return EpochSampler(len(self.windows), self.settings.seed, self.settings.randomize_batches)

    def tokens_after(self, steps: int) -> int:
        """Predictions that so many steps train on: the last window of each epoch is shorter than
        the others."""
        windows = self.windows
        epochs, rest = divmod(steps * windows_per_step(self.settings), len(windows))
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
        return GPT2(GPT2Config.of(self.settings), seed=self.settings.seed).eval()

    @cached_property
    def measurement(self) -> Measurement:
        """Losses of the weights of best.pt on the text of the run."""
        windows = self.windows
        openings: list[int] = []  # those that were counted with these weights
        with contextlib.suppress(IndexError):
            openings = self.openings(self.best_measured["windows"])
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
        model, progress = model.to(self.precision.device), Progress(len(indices), label)
        readings = read_windows(
            model, self.windows, indices, self.precision, progress.update, openings
        )
        progress.close()
        return Measurement(
            {index: one.losses for index, one in zip(indices, readings)},
            {index: one.n_right for index, one in zip(indices, readings)},
        )


def _events_of_earlier(run: Record) -> list[dict[str, Any]]:
    """What the files of a run without events tell, as events.

    Of its measurements, only on how many windows the first and the best were made is known.
    """
    summary = run.directory.read_summary()
    best = summary.get("best_train_loss_step")
    recall = {row.step: asdict(row.recalled) for row in run.recall}
    machine = [run.environment, *run.environment.get("resumed", [])][-1]
    start = {**summary, "config": run.config.model_dump(), "environment": machine}
    own = {"run_id": None, "sources_sha256": None, "step": 0}
    windows = {best: summary.get("best_train_loss_windows"), 0: run.config.eval_windows or "all"}
    return [
        {**start, **own, "event": "start"},
        *(
            {**vars(row), "event": "step", "skipped": False, "wall_s": row.elapsed_s}
            for row in run.rows
            if row.loss is not None
        ),
        *(
            {
                **vars(row),
                "event": "measured",
                "windows": windows[row.step],
                "recall": recall.get(row.step),
            }
            for row in run.rows
            if row.step in windows and row.train_loss is not None
        ),
        {"event": "samples", "step": 0, "samples": [asdict(sample) for sample in run.samples]},
        {**summary, "event": "end"},
    ]


def windows_per_step(settings: RunConfig) -> int:
    """The windows that a step takes.

    Raises:
        ValueError: so many that no run can have taken them.
    """
    count = settings.batch_size * settings.grad_accum
    if count > _LARGEST_BATCH:
        raise ValueError(f"{count:,} windows a step")
    return count


def misfits(best: dict[str, Any]) -> list[str]:
    """What keeps the tensors of a checkpoint from being the fp32 weights of GPT-2 as published, in
    the sizes that it states."""
    tensors, stated = best["model"], best["model_config"]
    if set(stated) != set(GPT2Config().to_dict()) or not all(
        type(size) is int and size > 0 for size in stated.values()
    ):
        return [f"its sizes are {stated}"]
    sizes = GPT2Config(**stated)
    if sizes.n_layer > len(tensors):  # before the shapes of so many layers are listed
        return [f"{len(tensors)} tensors cannot be {sizes.n_layer:,} layers"]
    expected = {
        name: f"{list(shape)} {torch.float32} {torch.strided}, on a device"
        for name, shape in parameter_shapes(sizes).items()
    }
    there = {
        name: f"{list(one.shape)} {one.dtype} {one.layout}, "
        f"on {'no' if one.is_meta else 'a'} device"
        for name, one in tensors.items()
    }
    problems = []
    if sizes.vocab_size != VOCAB_SIZE or sizes.n_embd % sizes.n_head:
        problems.append(f"its sizes are {stated}")
    return problems + [
        f"{name}: {there.get(name, 'nothing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | there.keys())
        if there.get(name) != expected.get(name)
    ]


def _text_at(path: Path) -> Corpus | None:
    try:
        return load_corpus(str(path)) if path.exists() else None
    except (UserError, OSError):
        return None
