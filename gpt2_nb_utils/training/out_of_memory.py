"""Memory that runs out: known by what Python and torch raise, told in one line with a mend."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""torch has an exception of its own on a GPU only; on a CPU and in libraries it raises a RuntimeError with such words."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory, of a CPU or of a GPU, ran out."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def refuse_what_cannot_fit(config: RunConfig, n_params: int, device: torch.device) -> None:
    """Refuse sizes that no luck could fit into the memory of this machine, before anything is written or computed.

    Only the least that is needed is counted: such sizes would not fail at an allocation, which is told in a line, but be
    killed by the system, or first keep it busy for hours.

    Args:
        n_params: parameters of the model.

    Raises:
        UserError: naming the settings that are too large.
    """
    memory = _memory(device)
    windows = config.batch_size * config.seq_len
    needs = (
        # Weights, gradients and one moment or two in fp32; about 30 kB of Python objects for each block.
        (f"a model with n_layer {config.n_layer}, n_embd {config.n_embd} and block_size {config.block_size}",
         12 * n_params + 30_000 * config.n_layer, "lower one of them"),
        # The input of each block, and all token ids of a step.
        (f"a step with batch_size {config.batch_size}, seq_len {config.seq_len} and grad_accum {config.grad_accum}",
         4 * windows * config.n_embd * config.n_layer + 16 * windows * config.grad_accum, "lower one of them"),
        (f"sampling {config.max_new_tokens} tokens for {config.num_prompts} prompts at once",
         (8 * config.max_new_tokens + 1000) * config.num_prompts, "lower --num_prompts or --max_new_tokens"),
    )
    for what, needed, mend in needs:
        if memory is not None and needed > memory:
            raise UserError(f"{what} takes more than {needed / 1e9:,.0f} GB of memory, and there are {memory / 1e9:,.0f}: {mend}")


def _memory(device: torch.device) -> int | None:
    """Bytes of memory of a device, or None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def step_fits(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """A context for a training step."""
    batch_size, grad_accum = config.batch_size, config.grad_accum
    smaller = batch_size // 2 if batch_size % 2 == 0 else 1
    same = f"--batch_size {smaller} --grad_accum {grad_accum * batch_size // smaller} (the same step in less memory) or "
    return _fits(f"a step with batch_size {batch_size}, seq_len {config.seq_len} and grad_accum {grad_accum}",
                 f"close other programs and go on with --resume auto, or start anew with {same if batch_size > 1 else ''}a "
                 f"lower --seq_len; the last good checkpoint is kept")


def measurement_fits(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """A context for measuring the training loss."""
    return _fits(f"measuring the training loss (seq_len {config.seq_len}, n_layer {config.n_layer}, n_embd {config.n_embd})",
                 "close other programs and go on with --resume auto, or start anew with a lower --seq_len or a smaller model; "
                 "the last good checkpoint is kept")


def samples_fit(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """A context for sampling."""
    return _fits(f"sampling {config.max_new_tokens} tokens for {config.num_prompts} prompts at once",
                 "lower --num_prompts or --max_new_tokens, or close other programs")


@contextlib.contextmanager
def _fits(what: str, mend: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what} does not fit in memory: {mend}") from None
