"""What of a run is exported: its best model, its text, and the facts that the model's readers get."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.results.record import Record, read_record
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.records import RecallStats


@dataclass(frozen=True)
class Export:
    """What goes into the folder of a Space.

    Attributes:
        run: its records, with the settings and the best loss of the checkpoint that is exported, and of the path of its text the
            file name only.
        training_run: what config.json of the export says of the run.
        dtype: number format of the stored weights.
        model: the network with the weights of best.pt.
        text: what it was trained on: the whole corpus, or its beginning.
        recalled: what it had memorised when these weights were measured, if that was recorded.
    """

    run: Record
    training_run: dict[str, Any]
    dtype: str
    model: GPT2 | None = None
    text: str = ""
    recalled: RecallStats | None = None


def read_export(directory: RunDirectory, dtype: str) -> Export:
    """The best model of a run, and all that is said about it.

    Args:
        directory: a run directory with checkpoints/best.pt.
        dtype: number format in which the weights are to be stored.

    Raises:
        UserError: there is no such run, no sound best.pt, or its text is gone.
    """
    run = read_record(directory.path)
    if not directory.best.exists():
        raise UserError(
            f"{directory} has no checkpoints/best.pt, the model to export: a run writes it when it measures the training "
            f"loss (eval_every, and at its end); resume the run (--resume auto), or copy the file back"
        )
    best = read_checkpoint(directory.best)
    try:  # the file may have come from anywhere
        model, state = model_from(best), best["state"]
        step, loss, windows = (state[name] for name in ("step", "train_loss", "train_loss_windows"))
        config = RunConfig.resolve({}, saved=best["config"])
        if GPT2Config.of(config) != model.config:
            raise ValueError("other sizes in its weights than in its settings")
        if best["corpus_sha256"] != run.summary.corpus.sha256:
            raise ValueError("the sha256 of another text than the run's")
        if type(step) is not int or not (math.isfinite(loss or 0) and 0 <= step < 10**15):
            raise ValueError("a loss or a step that cannot be right")
    except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{directory.best} holds what no run writes ({error}): put back the file that the run wrote"
        ) from None
    try:
        corpus = run.corpus
    except UserError as error:
        raise UserError(f"{error} (the Space needs it, to tell memory from composition)") from None
    tokens, text = encode(corpus.text), corpus.text
    if config.max_tokens:
        tokens = tokens[: config.max_tokens]
        text = decode(tokens).rstrip("\ufffd")  # the last token may end within a character
    # Only a loss that was measured on exactly these weights, and on the whole text, counts as theirs.
    loss = loss if state.get("train_loss_step") == step else None
    name = corpus.path if corpus.source == "demo" else PurePath(corpus.path).name
    training_run = {
        "name": one_line(directory.path.resolve().name),
        "train_loss": loss if windows == "all" else None,
        "target_loss": config.target_loss,
        "steps": step,
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
    summary = run.summary.model_copy(
        update={
            "corpus": run.summary.corpus.model_copy(update={"path": name}),
            "best_train_loss": loss,
            "best_train_loss_windows": None if loss is None else windows,
            "best_train_loss_step": step,
        }
    )
    shown = replace(run, summary=summary, config=config)
    training_run["verdict"] = verdict.headline(verdict.conditions(shown))
    recalled = next((row.recalled for row in run.recall if row.step == step), None)
    return Export(shown, training_run, dtype, model, text, recalled)
