"""The one reader of a run directory: its records as types, its text and the trained model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.results.legacy import read_metrics, read_recall, read_samples
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.corpus import Corpus, demonstration, load_corpus
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.events import Event, history, read_events
from gpt2_nb_utils.training.events import summary as summary_of
from gpt2_nb_utils.training.records import RecallRow, Row, Sample, Summary, TrainingLoss

_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OSError, csv.Error, RecursionError)
"""What reading a damaged file raises: ValueError where it is neither UTF-8 nor JSON."""
_Part = TypeVar("_Part")
_History = tuple[list[Event], list[Row], list[RecallRow], list[Sample]]


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint, in eval mode, and what was known about it when it was written.

    Attributes:
        model: the network.
        file: name of its checkpoint, `best.pt` or `last.pt`.
        step: updates that it has had.
        recorded: the training loss of exactly these weights, if it was measured then.
    """

    model: GPT2
    file: str
    step: int
    recorded: TrainingLoss | None


@dataclass(frozen=True)
class Record:
    """What a run directory holds.

    Attributes:
        directory: its paths.
        summary: content of summary.json.
        config: the settings of the run; see `setting` for those that may not have been recorded.
        environment: content of environment.json, or nothing.
        rows: the metrics, in order.
        recall: what was counted of recall at each measurement, in order; runs of earlier versions
            recorded none.
        samples: the periodic generations, in order.
        events: the lines of events.jsonl; none for runs of earlier versions.
        missing: what is missing or damaged, a line each that names the fix.
        damaged: those of them that are about damage.
    """

    directory: RunDirectory
    summary: Summary
    config: RunConfig
    environment: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    recall: list[RecallRow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    def setting(self, name: str) -> Any:
        """A setting as it was recorded; None where it was not."""
        return getattr(self.config, name) if name in self.config.model_fields_set else None

    @property
    def notes(self) -> list[str]:
        """What was noted beside its figures while it trained: each line once."""
        noted = (event.get("text") for event in self.events if event["event"] == "note")
        return list(dict.fromkeys(one_line(str(text)) for text in noted))

    @cached_property
    def corpus(self) -> Corpus:
        """The text that the run was trained on, read again.

        Raises:
            UserError: it is gone, or another text is in its place.
        """
        recorded = self.summary.corpus
        # By the recorded path: looking for *some* text could download one.
        try:
            if recorded.source == "demo":
                corpus = demonstration("the run was trained on it")
            else:
                corpus = load_corpus(recorded.path or self.config.input_file)
        except UserError as error:
            raise UserError(
                f"the text of the run in {self.directory} cannot be read again: {error}"
            ) from None
        if corpus.sha256 != recorded.sha256:
            raise UserError(
                f"{corpus.path} is not the text that the run in {self.directory} was trained on "
                f"(sha256 {corpus.sha256[:12]}… instead of {str(recorded.sha256)[:12]}…): put that "
                f"text back, or start a new run on this one"
            )
        return corpus

    @cached_property
    def windows(self) -> TokenDataset:
        """The tokens that the run was trained on, cut as in training."""
        # Not from the run's tokens.bin, which could hold another cut of the same text.
        ids = torch.from_numpy(encode(self.corpus.text))
        return TokenDataset(ids[: self.config.max_tokens or None], self.config.seq_len)

    def load_model(self, device: torch.device | str = "cpu") -> TrainedModel:
        """The model of best.pt (the lowest training loss), or of last.pt where there is no best.pt.

        Raises:
            UserError: there is no checkpoint, or it is damaged.
        """
        path = _checkpoint(self.directory)
        if path is None:
            raise UserError(_no_checkpoint(self.directory))
        content = read_checkpoint(path)
        state = content.get("state") or {}
        loss, step = state.get("train_loss"), state.get("step")
        measured = loss is not None and state.get("train_loss_step") == step
        return TrainedModel(
            model_from(content, device),
            path.name,
            int(step or 0),
            TrainingLoss(loss, state.get("train_loss_windows")) if measured else None,
        )


def read_record(path: str | Path, to_audit: bool = False) -> Record:
    """Read a run directory. Only its summary must be there; `missing` names what else is not.

    Args:
        to_audit: leave values of the wrong kind out of the summary, for an audit to find them.

    Raises:
        UserError: there is no run, its summary is damaged, or its settings are invalid.
    """
    directory = RunDirectory(path)
    missing: list[str] = []
    damaged: list[str] = []

    def part(
        file: Path, read: Callable[[Path], _Part], consequence: str, otherwise: _Part
    ) -> _Part:
        try:
            if file.exists():
                return read(file)
            missing.append(
                f"{file} is missing: {consequence}; copy it back, or run notebook 03 again"
            )
        except _DAMAGE as error:
            damaged.append(
                f"{file} cannot be read ({type(error).__name__}): restore it, or remove it to do "
                f"without; {consequence}"
            )
        except UserError as error:
            damaged.append(f"{error}; {consequence}")
        return otherwise

    events, rows, recall, samples = nothing = [], [], [], []
    if directory.events.exists():
        events, rows, recall, samples = part(
            directory.events, _read_history, "its other records are read instead", nothing
        )
    try:
        content = directory.read_summary()
    except UserError:
        if not events or not directory.summary.is_file():
            raise
        content = summary_of(history(events))  # a power cut may have emptied the file
        damaged.append(
            f"{directory.summary} is damaged: shown is what the events give, from which "
            f"--resume auto writes it again"
        )
    summary = _typed(content, directory, to_audit)
    saved = summary.config
    if directory.config.exists():
        saved = part(directory.config, directory.read_json, "summary.json has its settings", saved)
    if not events:  # runs of earlier versions have none
        rows = part(directory.metrics, read_metrics, "curves are not shown", [])
        samples = part(
            directory.samples,
            read_samples,
            "samples are not shown; they are drawn every sample_every steps (0 means none)",
            [],
        )
        if directory.recall.exists():
            recall = part(directory.recall, read_recall, "how recall grew is not shown", [])
    environment = part(directory.environment, _read_environment, "the machine is not named", {})
    if _checkpoint(directory) is None:
        missing.append(_no_checkpoint(directory))
    try:
        config = RunConfig.resolve({}, saved=saved)
    except UserError as error:
        raise UserError(f"the settings of the run in {directory} are invalid: {error}") from None
    return Record(
        directory,
        summary,
        config,
        environment,
        rows,
        recall,
        samples,
        events,
        missing=(*damaged, *missing),
        damaged=tuple(damaged),
    )


def _typed(content: dict[str, Any], directory: RunDirectory, to_audit: bool) -> Summary:
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    if to_audit:
        wrong = {problem["loc"][0] for problem in problems}
        right = {name: value for name, value in content.items() if name not in wrong}
        return Summary.model_validate(right)
    place = problems[0]["loc"]
    name = ".".join(map(str, place[: 2 if place[0] in ("corpus", "resumed_with") else 1]))
    raise UserError(
        f"{directory.summary}: {name} {ascii(problems[0]['input'])[:80]} cannot be right: "
        f"restore it, or start a new run with --overwrite"
    )


def _read_history(path: Path) -> _History:
    events = read_events(path)
    of_run = history(events)
    lines = (Row, of_run.rows), (RecallRow, of_run.recall), (Sample, of_run.samples)
    # The file may be anybody's: every value gets its type here, or the file is damaged.
    return events, *(
        TypeAdapter(list[kind]).validate_python(list(map(asdict, of_kind)))
        for kind, of_kind in lines
    )


def _read_environment(path: Path) -> dict[str, Any]:
    content = json.loads(read_regular(path).decode("utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("packages") or {}, dict):
        raise ValueError
    return content


def _checkpoint(directory: RunDirectory) -> Path | None:
    return next((path for path in (directory.best, directory.last) if path.exists()), None)


def _no_checkpoint(directory: RunDirectory) -> str:
    return (
        f"{directory} has no checkpoint (checkpoints/best.pt or last.pt), so what needs the model "
        f"is not shown: run notebook 03 with this out_dir, or copy them back"
    )
