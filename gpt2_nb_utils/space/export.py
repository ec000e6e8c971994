"""What of a run goes out: its best model, its text, and the facts that its readers get, gathered and checked.

What stands in best.pt counts, for that is the file that goes out; the rest is the summary's. It deliberately writes nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.results.audit import CannotCheck
from gpt2_nb_utils.results.evidence import Evidence, misfits
from gpt2_nb_utils.results.run import load_run
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.space.card import Described
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.tokenization.bpe import decode
from gpt2_nb_utils.training.checkpoints import model_from
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.resume import model_sizes
from gpt2_nb_utils.training.state import State

_MOST_STEPS = 10**15


@dataclass(frozen=True)
class Export:
    """What goes into the folder of a Space.

    Attributes:
        model: the network with the weights of best.pt.
        text: what it was trained on: the whole corpus, or its beginning.
        about: what is said about it.
    """

    model: GPT2
    text: str
    about: Described


def read_export(directory: RunDirectory, dtype: str) -> Export:
    """The best model of a run, and all that is said about it.

    Args:
        directory: a run directory with checkpoints/best.pt.
        dtype: number format in which the weights are to be stored.

    Raises:
        UserError: there is no such run, no sound best.pt, or its text is gone.
    """
    run = load_run(directory.path)
    evidence = Evidence(run, Precision(torch.device("cpu"), "fp32"))
    best = evidence.loaded
    if best is None:
        raise UserError(
            f"{directory} has no checkpoints/best.pt, the model to export: a run writes it when it measures the training "
            f"loss (eval_every, and at its end); go on with it (--resume auto), or copy the file back"
        )
    if isinstance(best, UserError):
        raise best
    state, config = _state_and_config(best, directory)
    model = model_from(best)
    try:
        corpus, tokens = evidence.corpus, evidence.tokens[: config.max_tokens or None]
    except CannotCheck as error:
        raise UserError(
            f"{error}; the Space needs it, to tell memory from composition: put it back where the run found it"
        ) from None
    text = (
        decode(tokens).rstrip("\ufffd") if config.max_tokens else corpus.text
    )  # the last token may end within a letter
    measured = (
        state.train_loss if state.train_loss_step == state.step else None
    )  # of exactly these weights
    windows = state.train_loss_windows if measured is not None else None
    name = corpus.path if corpus.source == "demo" else PurePath(corpus.path).name
    training_run = {
        "name": one_line(directory.path.resolve().name),
        "train_loss": measured if windows == "all" else None,
        "target_loss": config.target_loss,
        "steps": state.step,
        "n_params": model.n_params,
        "corpus": {
            "name": one_line(name),
            "source": corpus.source,
            "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
            "tokens": len(tokens),
        },
        "seq_len": config.seq_len,
        "prompt": config.prompt,
    }
    summary = {
        **run.summary,
        "corpus": {**(run.summary.get("corpus") or {}), "path": name},
        "best_train_loss": measured,
        "best_train_loss_windows": windows,
        "best_train_loss_step": state.step,
    }
    recalled = next((row.recalled for row in reversed(run.recall) if row.step == state.step), None)
    return Export(model, text, Described(summary, config, run.rows, recalled, training_run, dtype))


def _state_and_config(best: dict[str, Any], directory: RunDirectory) -> tuple[State, RunConfig]:
    """What a checkpoint says of itself, which may be anybody's."""
    mend = "put back the file that the run wrote"
    problems = misfits(best)
    if problems:
        raise UserError(
            f"{directory.best} does not hold the weights of a GPT-2 ({problems[0]}): {mend}"
        )
    try:
        state = State.restored(best["state"])
        config = RunConfig.resolve({}, saved=best["config"])
        if state.step > _MOST_STEPS or not (
            state.train_loss is None
            or isinstance(state.train_loss, float)
            and math.isfinite(state.train_loss)
        ):
            raise ValueError("a step or a loss beyond all measure")
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{directory.best} holds what no run writes ({error}): {mend}") from None
    if model_sizes(config) != GPT2Config(**best["model_config"]):
        raise UserError(f"{directory.best} holds a model of other sizes than its config: {mend}")
    return state, config
