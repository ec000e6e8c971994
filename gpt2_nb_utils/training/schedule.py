"""The learning rate of each step, as a pure function of the config."""

from __future__ import annotations

import math

from gpt2_nb_utils.config import RunConfig


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """The share of the peak learning rate that update number `step` (from 0) uses.

    It rises linearly over `warmup_steps`, then follows `lr_schedule` and ends at `min_lr_ratio`:
    `constant` stays; `linear` and `cosine` fall from the end of the warm-up to the last step; `wsd`
    (warm-up, stable, decay: Hu et al., arXiv 2404.06395) stays at the peak and falls linearly over
    the last `decay_share` of the steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    falls_from = config.warmup_steps
    if config.lr_schedule == "wsd":
        falls_from = max(falls_from, round(config.steps * (1 - config.decay_share)))
    if step < falls_from:
        return 1.0
    # The update after the last one would stand at 1: the last one still learns a little.
    fallen = min(1.0, (step - falls_from + 1) / max(1, config.steps - falls_from + 1))
    falling = (
        0.5 * (1 + math.cos(math.pi * fallen)) if config.lr_schedule == "cosine" else 1 - fallen
    )
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * falling
