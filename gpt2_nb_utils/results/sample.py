"""The command `sample`: let the model of a run continue a prompt."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit, samples_fit
from gpt2_nb_utils.training.precision import Precision, check_device
from gpt2_nb_utils.training.samples import draw_samples


def sample_from_run(run_dir: str, given: dict[str, Any]) -> tuple[list[str], bool]:
    """Texts that a run's best model writes.

    Args:
        run_dir: a run directory with checkpoints/best.pt (last.pt is taken where there is no best).
        given: settings given by hand (prompt, num_prompts, max_new_tokens, top_k, temperature,
            seed, device); the others are the run's own. Without a seed each call draws other samples.
            `num_prompts` texts continue the same prompt.

    Returns:
        The texts, and whether the model was trained on the demonstration corpus.

    Raises:
        UserError: no run there, no checkpoint, or a bad value.
    """
    run = read_record(run_dir)
    texts = continuations(
        lambda device: run.load_model(device).model, run.config.model_dump(), given
    )
    return texts, run.summary.corpus.source == "demo"


def continuations(
    model_on: Callable[[torch.device], GPT2], saved: dict[str, Any], given: dict[str, Any]
) -> list[str]:
    """Texts that a model writes.

    Args:
        model_on: makes the model on a device.
        saved: settings that came with it.
        given: settings given by hand, as for `sample_from_run`.

    Raises:
        UserError: a bad value.
    """
    given = {"num_prompts": 1, "seed": secrets.randbelow(2**31), "device": "auto", **given}
    config = RunConfig.resolve(given, saved=saved)
    device = Precision.of(config).device
    check_device(Precision(device, "fp32"))
    model = model_on(torch.device("cpu"))
    refuse_what_cannot_fit(config, model.n_params, device, training=False)
    with samples_fit(config):
        model.to(device)
        return [
            drawn.text
            for drawn in draw_samples(model, config, [config.prompt] * config.num_prompts, step=0)
        ]
