"""Memory that runs out: recognised by what Python and torch raise, reported in one line with a
fix."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Iterator

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.machine import memory_limit
from gpt2_nb_utils.tokenization.corpus import MEMORY_PER_BYTE

_ACTIVATIONS = 24
"""Bytes that a block keeps for its backward pass, at least, for each token and each of its n_embd
numbers: in 16 bits the input of each linear map, queries, keys and values, and what the GELU sees;
in 32 the sums in between. All in fp32 is 64."""
_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""torch has an exception of its own on a GPU only; on a CPU and in libraries it raises a
RuntimeError with such words."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory, of a CPU or of a GPU, ran out."""
    return (
        isinstance(error, MemoryError)
        or isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in _SIGNS)
    )


def refuse_what_cannot_fit(
    config: RunConfig,
    n_params: int,
    device: torch.device,
    processes: int = 1,
    local_processes: int = 1,
    training: bool = True,
    chars: int = 0,
) -> None:
    """Refuse sizes that cannot fit into memory, before anything is written or computed.

    On a CPU all memory of the machine counts, on a GPU what is free. Only the least that is needed
    is counted: such sizes would not fail at an allocation, which is one line, but be killed by the
    system, or first keep it busy for hours.

    Args:
        n_params: parameters of the model.
        processes: that share out each micro-batch.
        local_processes: how many of them are on this machine, where a CPU's memory serves them all.
        training: whether the model is to be trained; otherwise it is only asked for samples.
        chars: of the text, which every process keeps in the memory of its CPU.

    Raises:
        UserError: naming the settings that are too large.
    """
    if device.type == "cuda":
        memory, sharing, beside = _free_on(device), 1, f" free on {device}"
    else:
        sharing, beside = local_processes, " beside the text" if chars else ""
        memory = memory_limit() - sharing * MEMORY_PER_BYTE * chars
    tokens = config.batch_size * config.seq_len
    # Weights, gradients and one moment or two in fp32; 30 kB of Python objects for each block.
    model = (12 if training else 4) * n_params + 30_000 * config.n_layer
    samples = (8 * config.max_new_tokens + 1000) * config.num_prompts
    needs = [
        (
            f"a model with n_layer {config.n_layer}, n_embd {config.n_embd} and block_size "
            f"{config.block_size}",
            sharing * model,
            "lower one of them",
        ),
        (_sampling(config), samples, "lower --num_prompts or --max_new_tokens"),
    ]
    if training:
        activations = _ACTIVATIONS * tokens // processes * config.n_embd * config.n_layer
        ids = 16 * tokens * config.grad_accum
        needs.append((_step(config), sharing * (activations + ids), "lower one of them"))
    for what, needed, fix in needs:
        if needed > memory:
            raise UserError(
                f"{what} takes more than {needed / 1e9:,.1f} GB of memory, and there are "
                f"{memory / 1e9:,.1f}{beside}: {fix}"
            )


def _free_on(device: torch.device) -> int:
    """Bytes of free memory on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for this process without using it is free for its next tensors.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _step(config: RunConfig) -> str:
    return (
        f"a step with batch_size {config.batch_size}, seq_len {config.seq_len} and grad_accum "
        f"{config.grad_accum}"
    )


def _sampling(config: RunConfig) -> str:
    return f"sampling {config.max_new_tokens} tokens for {config.num_prompts} prompts at once"


def text_fits() -> contextlib.AbstractContextManager[None]:
    """A context for reading and encoding the text."""
    return _fits("the text", "close other programs, or give a shorter one")


def step_fits(config: RunConfig, processes: int = 1) -> contextlib.AbstractContextManager[None]:
    """A context for a training step whose micro-batches so many processes share out."""
    each, same = config.batch_size // processes, ""
    if each > 1:
        smaller = processes * (each // 2 if each % 2 == 0 else 1)
        grad_accum = config.grad_accum * config.batch_size // smaller
        same = (
            f"--batch_size {smaller} --grad_accum {grad_accum} (the same step in less memory) or "
        )
    return _fits(
        _step(config),
        f"close other programs and resume with --resume auto, or start a new run with {same}a "
        f"lower --seq_len; the last good checkpoint is kept",
    )


def measurement_fits(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """A context for measuring the training loss."""
    return _fits(
        f"measuring the training loss (seq_len {config.seq_len}, n_layer {config.n_layer}, n_embd "
        f"{config.n_embd})",
        "close other programs and resume with --resume auto, or start a new run with a lower "
        "--seq_len or a smaller model; the last good checkpoint is kept",
    )


def samples_fit(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """A context for sampling."""
    return _fits(
        _sampling(config), "lower --num_prompts or --max_new_tokens, or close other programs"
    )


@contextlib.contextmanager
def _fits(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what} does not fit in memory: {fix}") from None


@contextlib.contextmanager
def released_on_error() -> Iterator[None]:
    """A context that gives memory back where it ends in a UserError.

    A notebook keeps the last error, whose frames keep the model and its gradients: the smaller
    batch of the next try would not fit beside them. What the caller of this context holds itself
    stays.
    """
    try:
        yield
    except UserError as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
        raise
