"""Several processes that train one model: what they share, what they agree on, and which of them
reports a failure.

torchrun starts N copies of `python -m gpt2_nb_utils train …`. Each holds the whole model and takes
its N-th of the windows of every micro-batch; DistributedDataParallel averages their gradients, so
that all make the same update. A batch is what the config says, whatever N is: the losses are those
of one process, and a run can be resumed with another N. Rank 0 alone writes. When a rank fails or
is killed, torchrun ends the others: SIGTERM at once, SIGKILL after 30 seconds.

How far that scales, on paper, for GPT-2 124M and the `full` preset (24 × 128 tokens a step). The
speeds are assumptions, not measurements: 100 TFLOP/s in matrix products, about a tenth of an H100's
dense fp16 peak (NVIDIA's data sheet: 989 TFLOP/s); 450 GB/s each way between the 8 GPUs of a
machine (NVLink, same sheet: 900 GB/s both ways); 50 GB/s from each GPU to those of other machines
(a 400 Gb/s network card each).

    what a step does                                                 1 GPU    8 GPUs    64 GPUs
    forward and backward, 6 · 124.4 M · 3,072 = 2.29 TFLOP, shared   23 ms    2.9 ms     0.4 ms
    Muon's Newton–Schulz, 1.63 TFLOP, the same on each               16 ms     16 ms      16 ms
    all-reduce of 498 MB (fp32), 2(N − 1)/N · 498 MB a GPU               –    1.9 ms      20 ms
    in all, nothing overlapped                                       39 ms     21 ms      36 ms

So 8 GPUs gain 1.9 ×; the limit is the part of Muon that each of them repeats: sharding its matrices
would be next. 64 GPUs are slower than 8: the gradients do not shrink with N, and 48 tokens a GPU
are too little work to hide the all-reduce behind. They could not even start on this batch, which
has 24 windows; and 8 GPUs with 3 windows of 128 tokens each do not fill their matrix units, so the
first row flatters them. More GPUs need a larger batch, which is another recipe: fewer updates per
epoch.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2_nb_utils import dist_env
from gpt2_nb_utils.errors import UserError


class _Reported(UserError):
    """An error whose message needs no rank in front: it names one, or every rank raises it."""


class RankFailed(_Reported):
    """Another rank died or failed: no wrong input, but one line as well."""

    exit_status = 1


@dataclass(frozen=True)
class DistContext:
    """The processes of a run; `SINGLE` where there is one.

    Attributes:
        rank: number of this one, from 0.
        world_size: how many there are.
        local_rank: number of this one on its machine.
        local_world_size: how many there are on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # Sharding

    def check_batch_size(self, batch_size: int) -> None:
        """Raise a UserError where a micro-batch of so many windows cannot be shared evenly."""
        n = self.world_size
        if batch_size % n:
            raise UserError(
                f"batch_size {batch_size} cannot be shared evenly by {n} processes: take a "
                f"multiple of {n}, such as --batch_size {-(-batch_size // n) * n}, or start a "
                f"number of processes that divides {batch_size} (--nproc_per_node)"
            )

    def shard(self, rows: Tensor) -> Tensor:
        """This process's rows of a micro-batch (B, …): (B / world_size, …), a view."""
        n = len(rows) // self.world_size
        return rows[self.rank * n : (self.rank + 1) * n]

    def data_parallel(
        self, model: nn.Module, loss_sum: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`loss_sum`, whose backward pass now leaves the mean of all ranks' gradients in the
        parameters of `model`."""
        if self.world_size == 1:
            return loss_sum
        if model.device.type == "cuda":
            torch.cuda.set_device(model.device)  # NCCL's own buffers belong there too
        # As views of the buckets that are sent, gradients are not kept twice.
        return DistributedDataParallel(_Module(model, loss_sum), gradient_as_bucket_view=True)

    def gradient_sync(self, loss_sum: Any, last: bool) -> contextlib.AbstractContextManager:
        """The context of one micro-batch: only the last of a step exchanges gradients."""
        return contextlib.nullcontext() if self.world_size == 1 or last else loss_sum.no_sync()

    # Agreement: every rank must make each of these calls, in the same order

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the ranks (in float64)."""
        if self.world_size == 1:
            return list(values)
        # On the CPU, by gloo: NCCL would wait forever for a dead rank.
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        return totals.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum(flag)[0] > 0

    def check_equal(self, seen: Any = None, error: UserError | None = None) -> None:
        """Raise on every rank what went wrong on any, or that they do not see the same.

        Args:
            seen: what must be equal everywhere.
            error: what went wrong on this rank.
        """
        if self.world_size == 1:
            return
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, (seen, None if error is None else str(error)))
        for rank, (_, message) in enumerate(gathered):
            if message is not None:
                raise _Reported(message if rank == 0 else self._with_rank(message, rank))
        for rank, (theirs, _) in enumerate(gathered):
            if theirs != gathered[0][0]:
                raise _Reported(
                    f"rank {rank} of {self.world_size} reads another text or checkpoint than rank "
                    f"0: give all processes the same files"
                )

    @contextlib.contextmanager
    def errors_shared(self) -> Iterator[None]:
        """A context that re-raises any rank's UserError on every rank."""
        try:
            yield
        except _Reported:
            raise
        except UserError as error:
            self.check_equal(error=error)
            raise
        self.check_equal()

    # Failure

    def explain(self, error: Exception) -> Exception:
        """The error to record and to report: `error`, or the failure of another rank that it only
        follows from."""
        if self.world_size == 1 or isinstance(error, _Reported):
            return error
        # Gloo has no exception of its own.
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error)
        ):
            died = (
                f"one of the {self.world_size} processes died (killed, or out of memory; "
                f"torchrun's report names its rank): resume from the last checkpoint with --resume "
                f"auto, on any number of processes that divides batch_size"
            )
            return RankFailed(first_failure(died)[1])
        if not isinstance(error, UserError):  # a traceback of its own follows
            first_failure(self._with_rank(f"{type(error).__name__}: {error}", self.rank))
            return error
        message = str(error) if self.is_main else self._with_rank(str(error), self.rank)
        first_failure(message)
        return _Reported(message)

    def _with_rank(self, message: str, rank: int) -> str:
        return f"rank {rank} of {self.world_size}: {message}"


class _Module(nn.Module):
    """A loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, loss_sum: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.loss_sum = model, loss_sum

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss_sum(x, y)


SINGLE = DistContext()
"""One process, which shares nothing and asks nobody; torch.distributed stays out of it."""


@contextlib.contextmanager
def connected() -> Iterator[DistContext]:
    """The processes that torchrun started, connected to each other; `SINGLE` where it started
    none."""
    if dist_env.world_size() == 1:
        yield SINGLE
        return
    context = DistContext(
        dist_env.rank(),
        dist_env.world_size(),
        int(os.environ["LOCAL_RANK"]),
        int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    try:
        yield context
        # None exits before rank 0 has written everything: torchrun would end the others with it.
        context.sum(0)
    except Exception as error:
        # torchrun may have begun to end this process: first it says why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise context.explain(error) from None
    dist.destroy_process_group()


def first_failure(message: str) -> tuple[int, str]:
    """Report a failure to the store of torchrun, which outlives each of its processes.

    Returns:
        Rank and message of the failure that was reported first. That rank prints its message; all
        later failures follow from it.
    """
    environment = os.environ
    try:
        store = dist.TCPStore(
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        run = f"{environment['TORCHELASTIC_RUN_ID']}/{environment['TORCHELASTIC_RESTART_COUNT']}"
        first = store.compare_set(f"gpt2_nb_utils/{run}", "", f"{dist_env.rank()} {message}")
    except (KeyError, RuntimeError):  # torchrun is gone
        return dist_env.rank(), message
    rank, _, message = first.decode().partition(" ")
    return int(rank), message
