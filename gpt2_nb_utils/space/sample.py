"""The command `sample --from_hf`: let a model in the Hugging Face format continue a prompt, with the sampling of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_nb_utils.results.sample import continuations
from gpt2_nb_utils.space.hf_reader import read_hf


def sample_from_hf(folder: str | Path, given: dict[str, Any]) -> tuple[list[str], bool]:
    """Texts that a model in the Hugging Face format writes.

    Args:
        folder: a folder that `transformers` could load, or a Space's.
        given: settings given by hand, as for `sample`; the others are those that came with the model. With one seed, an export
            in float32 writes what the model of its run does.

    Returns:
        The texts, and whether the model says that it was trained on the demonstration corpus.

    Raises:
        UserError: no such model there, or a bad value.
    """
    source = read_hf(folder)
    return continuations(source.load_model, source.settings, given), source.demo
