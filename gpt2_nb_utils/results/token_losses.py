"""The loss of every token that was measured, kept as `token_losses.npz` for the report to paint.

Whoever measures the weights of a run keeps what it found: `verify` every prediction, notebook 04
what it could afford. The file holds plain arrays, and nothing in it is executed when it is read.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import read_regular, write_atomically
from gpt2_nb_utils.results.audit import audited_state
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.corpus_loss import WindowLosses
from gpt2_nb_utils.training.records import Summary


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
        return torch.cat([window.losses for window in self.windows]).numpy()

    def all_targets(self) -> Tensor:
        """The tokens that were predicted, in the order of the text."""
        return torch.cat([window.tokens[1:] for window in self.windows])

    def mean_on(self, indices: Collection[int]) -> float:
        """The mean loss of the windows with these numbers, nats per token."""
        chosen = [window.losses for window in self.windows if window.index in indices]
        return torch.cat(chosen).double().mean().item()

    def is_of(self, summary: Summary) -> bool:
        """Whether the run still has the weights that were measured."""
        return dict(self.state) == audited_state(summary)


def keep(
    run: RunDirectory, summary: Summary, windows: TokenDataset, losses: Mapping[int, Tensor]
) -> None:
    """Write `token_losses.npz`, unless the one there shows more of the same weights.

    Weights that give no finite loss are not shown.

    Args:
        windows: all windows of the text.
        losses: by number of the window the loss of each of its targets (t,), nats.

    Raises:
        NotWritten: the disk is full, or a folder is in the place of the file.
    """
    with contextlib.suppress(UserError):  # none there, or a damaged one
        before = read_token_losses(run.token_losses)
        if before.is_of(summary) and len(windows) > len(losses) < len(before.windows):
            return
    indices = sorted(losses)
    lengths = [len(losses[index]) for index in indices]
    values = torch.cat([losses[index].double() for index in indices])
    if not values.isfinite().all():
        return
    about = {
        "state": audited_state(summary),
        "loss": values.mean().item(),
        "n_windows": len(windows),
        "seq_len": windows.seq_len,
    }
    tokens = [torch.cat([x, y[-1:]]) for x, y in map(windows.window, indices)]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.array(json.dumps(about)),
        indices=np.array(indices, dtype="<i4"),
        tokens=torch.cat(tokens).numpy().astype("<u2"),
        lengths=np.array(lengths, dtype="<i4"),
        losses=values.clip(max=60_000).numpy().astype("<f2"),
    )
    try:
        write_atomically(run.token_losses, file.getvalue())
    except OSError as error:
        raise NotWritten(run.token_losses, error) from error


def read_token_losses(path: Path) -> TokenLosses:
    """The content of a `token_losses.npz`.

    Raises:
        UserError: it is missing, cannot be read, or is no such file.
    """
    try:
        with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            lengths, indices = (file[name].tolist() for name in ("lengths", "indices"))
            # Raises where the lengths do not add up to what is there.
            tokens = torch.from_numpy(file["tokens"].astype(np.int64)).split(
                [n + 1 for n in lengths]
            )
            losses = torch.from_numpy(file["losses"].astype(np.float32)).split(lengths)
        seq_len = int(about["seq_len"])
        windows = tuple(
            WindowLosses(index, index * seq_len, *window)
            for index, *window in zip(indices, tokens, losses, strict=True)
        )
        found = TokenLosses(
            dict(about["state"]), float(about["loss"]), int(about["n_windows"]), seq_len, windows
        )
        sound = min(lengths) > 0 and np.isfinite(found.all_losses()).all() and found.state
        if not sound or max(int(window.tokens.max()) for window in windows) >= VOCAB_SIZE:
            raise ValueError
        return found
    except Exception as error:  # numpy, zipfile and json raise what the damage makes them
        raise UserError(
            f"{path} is not a readable file of token losses: make it again with `python -m "
            f"gpt2_nb_utils verify {path.parent}`, or remove it to do without"
        ) from error
