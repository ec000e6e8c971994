"""The command `sample`: let the model of a run continue a prompt."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training.checkpoints import model_from, read_checkpoint
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit, samples_fit
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.samples import draw_samples


def sample(run_dir: str, given: dict[str, Any]) -> list[str]:
    """Texts that a run's best model writes.

    Args:
        run_dir: a run directory with checkpoints/best.pt (last.pt is taken where there is no best).
        given: settings given by hand (prompt, num_prompts, max_new_tokens, top_k, temperature, seed, device); the
            others are the run's own. Without a seed each call draws anew. `num_prompts` texts continue the same prompt.

    Raises:
        UserError: no run there, no checkpoint, or a bad value.
    """
    directory = RunDirectory(run_dir)
    if not directory.holds_run:
        directory.read_summary()  # says what is missing
    checkpoint = read_checkpoint(directory.best if directory.best.exists() else directory.last)
    return continuations(lambda device: model_from(checkpoint, device), checkpoint["config"], given)


def continuations(
    model_on: Callable[[torch.device], GPT2], saved: dict[str, Any], given: dict[str, Any]
) -> list[str]:
    """Texts that a model writes.

    Args:
        model_on: makes the model on a device.
        saved: settings that came with it.
        given: settings given by hand, as for `sample`.

    Raises:
        UserError: a bad value.
    """
    given = {"num_prompts": 1, "seed": secrets.randbelow(2**31), "device": "auto", **given}
    config = RunConfig.resolve(given, saved=saved)
    precision = Precision.of(config)
    model = model_on(precision.device)
    refuse_what_cannot_fit(config, model.n_params, precision.device, training=False)
    with samples_fit(config):
        return [
            drawn.text
            for drawn in draw_samples(model, config, [config.prompt] * config.num_prompts, step=0)
        ]
