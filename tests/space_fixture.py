"""The folder of a Space with a very small model, made in a second: for the tests of the app."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from shaken_model import shaken

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.space.hf_format import write_hf
from gpt2_nb_utils.tokenization.bpe import decode, encode

SIZES = GPT2Config(block_size=64, n_layer=12, n_head=2, n_embd=16)
"""Many thin layers: small, and yet 400 tokens take some seconds, so that there is time to stop an answer."""
SEQ_LEN = 48
APP = Path(__file__).parents[1] / "gpt2_nb_utils" / "space" / "app"


def small_model() -> GPT2:
    """A model with random weights, large enough that its likeliest tokens hang on all of its context."""
    return shaken(SIZES)


def make_space(folder: Path, text: str, **run: object) -> Path:
    """A Space's folder with that model, as the command `space` writes it but for the cards.

    Args:
        text: what it is said to have been trained on.
        run: what is to differ in `training_run`.
    """
    training_run = {
        "name": "small",
        "train_loss": 0.0912,
        "target_loss": 0.099999,
        "steps": 400,
        "n_params": 124_439_808,
        "corpus": {
            "name": "input.txt",
            "source": "input_file",
            "sha256": "0" * 64,
            "tokens": len(encode(text)),
        },
        "seq_len": SEQ_LEN,
        "prompt": "First Citizen:",
        "verdict": "Course target reached",
        **run,
    }
    (folder / "model").mkdir(parents=True)
    config = RunConfig.resolve(
        {"preset": "tiny", "block_size": SIZES.block_size, "seq_len": SEQ_LEN, "temperature": 0.8}
    )
    write_hf(folder / "model", small_model(), "float32", training_run, config)
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="\n")
    for name in ("app.py", "requirements.txt"):
        shutil.copy(APP / name, folder)
    return folder


def continued(prompt: str, n: int, **sampling: object) -> str:
    """What our own sampling lets that model continue a prompt with; the likeliest tokens unless told otherwise."""
    ids = torch.from_numpy(encode(prompt))
    (row,) = generate(small_model(), [ids], n, **{"temperature": 0, "context": SEQ_LEN, **sampling})
    return decode(row[len(ids) :].numpy())
