"""The loss of every token that was measured, kept as `token_losses.npz`: the report paints it without the model or the text.

Whoever measures the weights of a run keeps what it found: `verify` every prediction, notebook 04 what it could afford. The
file holds plain arrays, and nothing in it is executed when it is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import write_atomically
from gpt2_nb_utils.results.audit import audited_state
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.tokenization.windows import Windows


@dataclass(frozen=True)
class WindowLosses:
    """One measured window.

    Attributes:
        index: its number in the text.
        start: number of its first token in the text.
        tokens: its tokens and the one after it (t + 1,): the first is given, the others are predicted.
        losses: the loss of each of the others (t,), nats.
    """

    index: int
    start: int
    tokens: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> float:
        """Mean loss, nats per token."""
        return float(self.losses.mean(dtype=np.float64))


@dataclass(frozen=True)
class TokenLosses:
    """What a file holds.

    Attributes:
        state: which state of the run was measured (`audited_state`).
        loss: mean over all measured predictions, nats per token.
        n_windows: windows of the text, measured or not.
        seq_len: tokens in a window.
        windows: those that were measured, in the order of the text.
    """

    state: Mapping[str, Any]
    loss: float
    n_windows: int
    seq_len: int
    windows: tuple[WindowLosses, ...]

    @property
    def whole(self) -> bool:
        """Whether every prediction of the text was measured."""
        return len(self.windows) == self.n_windows

    @property
    def n_targets(self) -> int:
        """Predictions that were measured."""
        return sum(len(window.losses) for window in self.windows)

    def all_losses(self) -> np.ndarray:
        """The losses of all measured predictions, in the order of the text, nats."""
        return np.concatenate([window.losses for window in self.windows])

    def is_of(self, summary: Mapping[str, Any]) -> bool:
        """Whether the run still has the weights that were measured."""
        return dict(self.state) == audited_state(dict(summary))


def keep(
    run: RunDirectory, summary: Mapping[str, Any], windows: Windows, losses: Mapping[int, Tensor]
) -> None:
    """Write `token_losses.npz`, unless the one there shows more of the same weights than some windows measured now.

    Weights that give no finite loss are not shown.

    Args:
        summary: the content of summary.json.
        windows: all windows of the text.
        losses: by number of the window the loss of each of its targets (t,), nats.
    """
    try:
        before = read_token_losses(run.token_losses)
        if (
            before.is_of(summary)
            and len(before.windows) > len(losses)
            and len(losses) < len(windows)
        ):
            return
    except UserError:
        pass  # none there, or a damaged one
    indices = sorted(losses)
    values = np.concatenate([losses[index].double().numpy() for index in indices])
    if not np.isfinite(values).all():
        return
    about = {
        "state": audited_state(dict(summary)),
        "loss": float(values.mean()),
        "n_windows": len(windows),
        "seq_len": windows.seq_len,
    }
    tokens = [
        windows.tokens[
            index * windows.seq_len : index * windows.seq_len + len(losses[index]) + 1
        ].numpy()
        for index in indices
    ]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.array(json.dumps(about)),
        indices=np.array(indices, dtype="<i4"),
        tokens=np.concatenate(tokens).astype("<u2"),
        lengths=np.array([len(losses[index]) for index in indices], dtype="<i4"),
        losses=values.clip(max=60_000).astype("<f2"),
    )
    write_atomically(run.token_losses, file.getvalue())


def read_token_losses(path: Path) -> TokenLosses:
    """The content of a `token_losses.npz`.

    Raises:
        UserError: it is missing, cannot be read, or is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            indices, lengths, tokens = (
                file[name].astype(np.int64) for name in ("indices", "lengths", "tokens")
            )
            losses = file["losses"].astype(np.float32)
        windows = tuple(_windows(about["seq_len"], indices, lengths, tokens, losses))
        if (
            not windows
            or tokens.max() >= VOCAB_SIZE
            or not np.isfinite(losses).all()
            or not dict(about["state"])
        ):
            raise ValueError
        return TokenLosses(
            about["state"],
            float(about["loss"]),
            int(about["n_windows"]),
            int(about["seq_len"]),
            windows,
        )
    except Exception as error:  # numpy, zipfile and json raise what the damage makes them
        raise UserError(
            f"{path} is not a readable file of token losses: make it again with `python -m gpt2_nb_utils verify "
            f"{path.parent}`, or remove it to do without"
        ) from error


def _windows(
    seq_len: int, indices: np.ndarray, lengths: np.ndarray, tokens: np.ndarray, losses: np.ndarray
) -> Iterator[WindowLosses]:
    if (
        lengths.min() < 1
        or lengths.sum() != len(losses)
        or lengths.sum() + len(lengths) != len(tokens)
        or len(lengths) != len(indices)
    ):
        raise ValueError
    at = 0
    for number, (index, length) in enumerate(zip(indices.tolist(), lengths.tolist())):
        yield WindowLosses(
            index,
            index * seq_len,
            tokens[at + number : at + number + length + 1],
            losses[at : at + length],
        )
        at += length
