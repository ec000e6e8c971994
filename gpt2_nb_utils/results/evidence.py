"""What an audit looks at: the parts of a run, each read from its file, and what is measured with
them.

A part that is missing or unreadable raises CannotCheck where a check asks for it, so that the other
checks are made.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.parts import parameter_count, parameter_shapes
from gpt2_nb_utils.progress import Progress
from gpt2_nb_utils.results.audit import CannotCheck
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE, encode
from gpt2_nb_utils.tokenization.corpus import DEFAULT_PATH, Corpus, demonstration, load_corpus
from gpt2_nb_utils.tokenization.dataset import EpochSampler, TokenDataset
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.corpus_loss import WindowLosses, read_windows
from gpt2_nb_utils.training.events import Event, History, history, read_events, summary
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import Summary
from gpt2_nb_utils.training.verbatim import counted_openings
from gpt2_nb_utils.wording import plural

_PROJECT = Path(__file__).parents[2]
_FEWEST_TOKENS = 128
"""Different tokens below which honest runs differ from all others: their first losses are off by
1 nat, fall by 5 in a step, and training takes the first values of the positions away."""
_LARGEST_BATCH = 1_000_000
_PARTS_OF_BEST = {
    "model": dict,
    "model_config": dict,
    "config": dict,
    "state": dict,
    "corpus_sha256": str,
}


class Evidence:
    """The parts of one run.

    Where the run has events, its records are taken from these; a run of an earlier version has its
    own files only.

    Args:
        run: the run, as its directory holds it.
        precision: where and how to compute.
        sample: measure only so many windows, drawn at random, for a quick look; 0 measures all.

    Attributes:
        earlier: whether an earlier version recorded the run, without events.
        missing: what was asked for and is not there, in the order in which it was.
    """

    def __init__(self, run: Record, precision: Precision, sample: int = 0):
        self.run, self.precision, self._n_windows = run, precision, sample
        self.earlier = not os.path.lexists(run.directory.events)
        self.missing: dict[str, None] = {}

    def _lack(self, what: str) -> CannotCheck:
        self.missing[what] = None
        return CannotCheck(what)

    def need_events(self) -> None:
        """Raise CannotCheck where an earlier version recorded the run."""
        if self.earlier:
            raise CannotCheck("recorded by an earlier version, without logs/events.jsonl")

    @cached_property
    def events(self) -> list[Event]:
        """All events of the run; for one of an earlier version, those that its files give."""
        if self.earlier:
            return _events_of_earlier(self.run)
        # A record leaves out events with a value of the wrong kind: here they are checked.
        return self.run.events or read_events(self.run.directory.events)

    @cached_property
    def history(self) -> History:
        """The events that count."""
        return history(self.events)

    @cached_property
    def summary(self) -> Summary:
        """The summary that the events give, whatever summary.json says."""
        if self.earlier:
            return self.run.summary
        return Summary.model_validate(summary(self.history))

    @property
    def steps(self) -> dict[int, Event]:
        """The optimizer steps on record, one or more."""
        if not self.history.steps:
            raise self._lack("no steps are on record (logs/train_metrics.csv is missing or empty)")
        return self.history.steps

    @property
    def first_measured(self) -> Event:
        """The measurement of the random weights, at step 0."""
        nothing = {"train_loss": None, "windows": "all"}
        return next((each for each in self.history.measurements if each["step"] == 0), nothing)

    @property
    def best_measured(self) -> Event:
        """The measurement of best.pt; the step may have been done again since."""
        step = self.best["state"]["step"]
        return [e for e in self.events if e["event"] == "measured" and e["step"] == step][-1]

    @property
    def settings(self) -> RunConfig:
        """The settings with which the run ended."""
        return self.settings_at(math.inf)

    def settings_at(self, step: float) -> RunConfig:
        """The settings with which a step was done; an earlier version kept the last ones only."""
        begun = [start for start in self.history.starts if start.get("step", 0) < step]
        return RunConfig.resolve({}, saved=begun[-1]["config"])

    @cached_property
    def loaded(self) -> dict[str, Any] | UserError:
        """The content of best.pt, loaded without running anything in it, or what is wrong."""
        path = self.run.directory.best
        if not path.exists():
            raise self._lack("checkpoints/best.pt is missing")
        try:
            content = read_checkpoint(path)
        except UserError as error:
            return error
        lacking = [
            name for name, kind in _PARTS_OF_BEST.items() if not isinstance(content.get(name), kind)
        ]
        if not lacking and type(content["state"].get("step")) is not int:
            lacking = ["number of its step"]
        if lacking:
            return UserError(f"{path} holds no {lacking[0]}: put back the file that the run wrote")
        return content

    @property
    def best(self) -> dict[str, Any]:
        """The content of best.pt."""
        if isinstance(self.loaded, UserError):
            raise CannotCheck("checkpoints/best.pt cannot be loaded")
        return self.loaded

    @cached_property
    def corpus(self) -> Corpus:
        """The text of the run, found on this machine by its sha256; nothing is downloaded."""
        recorded, found = self.summary.corpus, []
        if recorded.source == "demo":
            found.append(demonstration("the run was trained on it"))
        else:  # a run directory may have come from another machine
            named = (self.run.config.input_file, recorded.path, DEFAULT_PATH)
            for path in filter(None, (*named, _PROJECT / DEFAULT_PATH)):
                with contextlib.suppress(UserError, OSError):
                    found.append(load_corpus(str(path)))
        for text in found:
            if text.sha256 == recorded.sha256:
                return text
        others = (
            f" ({found[0].path} is another text, sha256 {found[0].sha256[:12]}…)" if found else ""
        )
        sha256 = str(recorded.sha256)[:12]
        raise self._lack(f"the text of the run, sha256 {sha256}…, is not on this machine{others}")

    @cached_property
    def tokens(self) -> Tensor:
        """All tokens of the text (N,)."""
        return torch.from_numpy(encode(self.corpus.text))

    @cached_property
    def windows(self) -> TokenDataset:
        """The tokens that the run was trained on, cut as in training."""
        return TokenDataset(self.tokens[: self.settings.max_tokens or None], self.settings.seq_len)

    @cached_property
    def too_few_tokens(self) -> str:
        """Of how few different tokens the text is made, where those are too few to tell what is
        usual for a text; else empty."""
        with contextlib.suppress(CannotCheck):  # where the text is not here, it counts as usual
            n = len(self.windows.tokens.unique())
            few = f"the text has only {plural(n, 'different token')}"
            return few if n < _FEWEST_TOKENS else ""
        return ""

    @cached_property
    def order(self) -> EpochSampler:
        """The order in which the run visited its windows."""
        return EpochSampler(len(self.windows), self.settings.seed, self.settings.randomize_batches)

    def chosen(self, windows: int | str) -> list[int]:
        """The numbers of the windows of a measurement on so many of them, or "all"."""
        return self.windows.evenly_spread(0 if windows == "all" else windows)

    def openings(self, windows: int | str) -> list[int]:
        """The windows whose openings such a measurement has counted."""
        return counted_openings(self.windows, self.chosen(windows))

    @property
    def in_fp32(self) -> bool:
        """Whether both the run and the audit compute in fp32."""
        return not {"fp16", "bf16"} & {self.summary.amp, self.precision.amp}

    @cached_property
    def model(self) -> GPT2:
        """The network with the weights of best.pt, in eval mode."""
        if shape_problems(self.best):
            raise CannotCheck("the weights of best.pt are not those of a GPT-2 of its sizes")
        return model_from(self.best, self.precision.device)

    @cached_property
    def initial_model(self) -> GPT2:
        """The network with the random weights of the run's seed."""
        sizes = GPT2Config.of(self.settings)
        # Sizes on record may be anybody's: a page must not allocate whatever they say.
        refuse_what_cannot_fit(
            self.settings, parameter_count(sizes), self.precision.device, training=False
        )
        return GPT2(sizes, seed=self.settings.seed).eval()

    @cached_property
    def measurement(self) -> dict[int, WindowLosses]:
        """What the weights of best.pt make of each window of the text, or of some of them."""
        openings: list[int] = []  # those that were counted with these weights
        with contextlib.suppress(IndexError):
            openings = self.openings(self.best_measured["windows"])
        indices = list(range(len(self.windows)))
        if 0 < self._n_windows < len(indices):
            # Whoever knew which windows are looked at could train on these alone.
            indices = sorted(random.SystemRandom().sample(indices, self._n_windows))
        return self.measure(self.model, indices, "measuring the training loss, window", openings)

    def measure(
        self, model: GPT2, indices: Sequence[int], label: str, openings: Collection[int] = ()
    ) -> dict[int, WindowLosses]:
        """What a model makes of these windows, by their numbers, with a progress line.

        Args:
            openings: those of them whose verbatim continuation is counted in the same forward pass.
        """
        model, progress = model.to(self.precision.device), Progress(len(indices), label)
        read = read_windows(model, self.windows, indices, self.precision, progress.update, openings)
        progress.close()
        return dict(zip(indices, read))


def losses_of(
    measurement: Mapping[int, WindowLosses], indices: Iterable[int] | None = None
) -> Tensor:
    """The losses of these windows (of all measured ones, when None), float64, nats."""
    chosen = measurement if indices is None else indices
    return torch.cat([measurement[index].losses for index in chosen]).double()


def _events_of_earlier(run: Record) -> list[Event]:
    """What the files of a run without events contain, as events.

    Of its measurements, only on how many windows the first and the best were made is known.
    """
    summary, best = run.summary.model_dump(), run.summary.best_train_loss_step
    windows = {best: run.summary.best_train_loss_windows, 0: run.config.eval_windows or "all"}
    recall = {row.step: asdict(row.recalled) for row in run.recall}
    settings = {
        "config": run.config.model_dump(),
        "environment": [run.environment, *run.environment.get("resumed", [])][-1],
        "run_id": None,
        "sources_sha256": None,
    }
    events = [{**summary, **settings, "event": "start", "step": 0}]
    for row in run.rows:
        if row.loss is not None:
            events.append({**vars(row), "event": "step", "skipped": False, "wall_s": row.elapsed_s})
        if row.step in windows and row.train_loss is not None:
            about = {"windows": windows[row.step], "recall": recall.get(row.step)}
            events.append({**vars(row), "event": "measured", **about})
    samples = [asdict(sample) for sample in run.samples]
    end = {name: summary[name] for name in ("step", "status", "wall_seconds")}
    return [
        *events,
        {"event": "samples", "step": 0, "samples": samples},
        {"event": "end", **end},
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


def shape_problems(best: dict[str, Any]) -> list[str]:
    """What keeps the tensors of a checkpoint from being the fp32 weights of GPT-2 as published, in
    the sizes that it states."""
    tensors, stated = best["model"], best["model_config"]
    problem = f"its sizes are {stated}"
    if set(stated) != set(GPT2Config().to_dict()) or not all(
        type(size) is int and size > 0 for size in stated.values()
    ):
        return [problem]
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
    return [problem] * (sizes.vocab_size != VOCAB_SIZE or sizes.n_embd % sizes.n_head > 0) + [
        f"{name}: {there.get(name, 'nothing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | there.keys())
        if there.get(name) != expected.get(name)
    ]
