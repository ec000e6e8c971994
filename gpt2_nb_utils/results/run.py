"""Load what a run directory holds: records, samples, the text it was trained on and the trained model.

It knows which file holds what, and says by name what is missing and how to mend it. It deliberately judges nothing.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.results.summary_types import check_summary
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.corpus import Corpus, demonstration, load_corpus
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.run_log import RecallRow, Row, read_metrics, read_recall
from gpt2_nb_utils.training.samples_file import Sample, read_samples


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint, in eval mode, and what was known about it when it was written.

    Attributes:
        model: the network.
        file: name of its checkpoint, `best.pt` or `last.pt`.
        step: updates that it has had.
        train_loss: the training loss recorded for exactly these weights, in nats per token, if it was measured then.
        train_loss_windows: "all", or on how many windows that was.
    """

    model: GPT2
    file: str
    step: int
    train_loss: float | None
    train_loss_windows: str | int | None


@dataclass(frozen=True)
class RunResults:
    """A run as its directory tells it. `load_run` makes one.

    Attributes:
        directory: its paths.
        summary: content of summary.json.
        config: all settings of the run (not those of the notebook that looks at it).
        environment: content of environment.json, or nothing.
        rows: the metrics, in order.
        samples: the periodic generations, in order.
        missing: what is not there, a line each with the mend.
        recall: what the model knew by heart at each measurement, in order; runs of earlier versions recorded none.
    """

    directory: RunDirectory
    summary: dict[str, Any]
    config: RunConfig
    environment: dict[str, Any]
    rows: list[Row]
    samples: list[Sample]
    missing: tuple[str, ...]
    recall: tuple[RecallRow, ...] = ()

    @cached_property
    def corpus(self) -> Corpus:
        """The text that the run was trained on, read again.

        Raises:
            UserError: it is gone, or another text is in its place.
        """
        recorded = self.summary.get("corpus") or {}
        # By the path on record: looking for *some* text could download one, and reading results must not.
        try:
            if recorded.get("source") == "demo":
                corpus = demonstration("the run was trained on it")
            else:
                corpus = load_corpus(recorded.get("path") or self.config.input_file)
        except UserError as error:
            raise UserError(
                f"the text of the run in {self.directory} cannot be read again: {error}"
            ) from None
        if corpus.sha256 != recorded.get("sha256"):
            raise UserError(
                f"{corpus.path} is not the text that the run in {self.directory} was trained on (sha256 "
                f"{corpus.sha256[:12]}… instead of {str(recorded.get('sha256'))[:12]}…): put that text "
                f"back, or start a new run on this one"
            )
        return corpus

    @cached_property
    def windows(self) -> Windows:
        """The tokens that the run was trained on, cut as in training (`max_tokens` and `seq_len` respected).

        They are encoded anew: the run's own tokens.bin could hold another cut of the same text.
        """
        ids = torch.from_numpy(encode(self.corpus.text))
        return Windows(
            ids[: self.config.max_tokens] if self.config.max_tokens else ids, self.config.seq_len
        )

    @property
    def has_model(self) -> bool:
        """Whether there is a checkpoint."""
        return self.directory.best.exists() or self.directory.last.exists()

    def load_model(self, device: torch.device | str = "cpu") -> TrainedModel:
        """The model of best.pt (the lowest training loss), or of last.pt where there is no best.pt.

        Raises:
            UserError: there is no checkpoint, or it is damaged.
        """
        if not self.has_model:
            raise UserError(no_checkpoint(self.directory))
        path = self.directory.best if self.directory.best.exists() else self.directory.last
        content = read_checkpoint(path)
        state = content.get("state") or {}
        measured_then = state.get("train_loss") is not None and state.get(
            "train_loss_step"
        ) == state.get("step")
        return TrainedModel(
            model_from(content, device),
            path.name,
            int(state.get("step") or 0),
            state["train_loss"] if measured_then else None,
            state.get("train_loss_windows") if measured_then else None,
        )


def load_run(path: str | Path, to_audit: bool = False) -> RunResults:
    """Read a run directory. Parts that are missing or damaged are named in `missing`; only the summary must be there.

    Args:
        to_audit: take the summary with values of the wrong kind in it, which an audit has to find.

    Raises:
        UserError: there is no run, its summary is no JSON, or its settings are not to be understood.
    """
    directory = RunDirectory(path)
    if not directory.summary.exists():
        raise UserError(
            f"{directory} holds no run (summary.json is missing): run notebook 03 with this out_dir first, "
            f"or name the out_dir of a run"
        )
    summary = directory.read_summary()
    if not to_audit:
        check_summary(summary, directory)
    saved = directory.read_config() if directory.config.exists() else summary.get("config") or {}
    missing: list[str] = []
    rows = _part(missing, directory.metrics, read_metrics, "curves are not shown")
    samples = _part(
        missing,
        directory.samples,
        read_samples,
        "samples are not shown; they are drawn every sample_every steps (0 means none)",
    )
    recall = None
    if directory.recall.exists():  # runs of earlier versions have none, which is no fault
        recall = _part(missing, directory.recall, read_recall, "how recall grew is not shown")
    environment = (
        _part(missing, directory.environment, _read_json, "the machine is not named") or {}
    )
    if not (directory.best.exists() or directory.last.exists()):
        missing.append(no_checkpoint(directory))
    return RunResults(
        directory,
        summary,
        RunConfig.resolve({}, saved=saved),
        environment,
        rows or [],
        samples or [],
        tuple(missing),
        tuple(recall or ()),
    )


def no_checkpoint(directory: RunDirectory) -> str:
    """The line that says that a run has no checkpoint, and the mend."""
    return (
        f"{directory} has no checkpoint (checkpoints/best.pt or last.pt), so what needs the model is not shown: "
        f"run notebook 03 with this out_dir, or copy them back"
    )


def _part(missing: list[str], path: Path, read: Any, consequence: str) -> Any:
    if not path.exists():
        missing.append(f"{path} is missing: {consequence}; copy it back, or run notebook 03 again")
        return None
    try:
        return read(path)
    except (
        UserError,
        ValueError,
        OSError,
        csv.Error,
        RecursionError,
    ) as error:  # ValueError: neither UTF-8 nor JSON
        unreadable = f"{path} cannot be read ({type(error).__name__}): restore it"
        missing.append(f"{error if isinstance(error, UserError) else unreadable}; {consequence}")
        return None


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError
    return content
