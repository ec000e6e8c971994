"""Several processes that train one model: what they share out, what they agree on, and how they end when one dies.

torchrun starts N copies of `python -m gpt2_nb_utils train …`. Each holds the whole model and takes its N-th of the windows of
every micro-batch; DistributedDataParallel takes the mean of their gradients, so that all make the same update. A batch is what
the config says, whatever N is: the losses are those of one process, and a run may go on with another N. Rank 0 alone
writes. One process is the usual case: `ALONE` answers everything below at no cost, and torch.distributed stays out of it.

How far that goes, on paper, for GPT-2 124M and the `full` preset (16 × 128 tokens, 3 micro-batches). The speeds are assumptions,
not measurements: 100 TFLOP/s in matrix products, about a tenth of an H100's dense fp16 peak (NVIDIA's data sheet: 989 TFLOP/s);
450 GB/s each way between the 8 GPUs of a machine (NVLink, same sheet: 900 GB/s both ways); 50 GB/s from each GPU to those of
other machines (a 400 Gb/s network card each).

    what a step does                                                      1 GPU      8 GPUs     64 GPUs
    forward and backward, 6 · 124.4 M · 6,144 = 4.59 TFLOP, shared out    46 ms      5.7 ms     0.7 ms
    Muon's Newton–Schulz, 1.63 TFLOP, the same on each                    16 ms      16 ms      16 ms
    all-reduce of 498 MB (fp32), 2(N − 1)/N · 498 MB through each GPU     –          1.9 ms     20 ms
    in all, nothing overlapped                                            62 ms      24 ms      37 ms

So 8 GPUs gain 2.6 ×, and what stands in the way is the part of Muon that each of them repeats: sharing its matrices out
would be next. 64 GPUs are slower than 8: the gradients do not shrink with N, and 96 tokens a GPU are too little work to hide
them behind. They could not even start on this batch, whose micro-batches have 16 windows; and 8 GPUs with 2 windows of 128
tokens each do not fill their matrix units, so that the first row flatters them. More GPUs want a larger batch, which
is another recipe: fewer updates an epoch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2_nb_utils import torchrun
from gpt2_nb_utils.errors import ProcessLost, UserError

_POLL = 0.5
"""Seconds between two looks at whether the others live."""
_GRACE = 10.0
"""Seconds for a process to find out by itself that another is gone, and to finish a checkpoint; torchrun kills after 30."""


class _Agreed(UserError):
    """What went wrong in some process, raised in all."""


class Processes:
    """The processes of a run; `ALONE` where there is one.

    Args:
        rank: number of this one, from 0.
        count: how many there are.
        local_rank: number of this one on its machine.
        local_count: how many there are on its machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1):
        self.rank, self.count, self.local_rank, self.local_count = (
            rank,
            count,
            local_rank,
            local_count,
        )
        self._note: Callable[[str], bool] = lambda line: True
        self._loss: str | None = None
        self._found, self._over = threading.Event(), threading.Event()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # What is shared out

    def refuse_uneven(self, batch_size: int) -> None:
        """Raise a UserError where a micro-batch of so many windows cannot be shared out evenly."""
        if batch_size % self.count:
            raise UserError(
                f"batch_size {batch_size} cannot be shared out evenly over {self.count} processes: take a multiple of "
                f"{self.count}, such as --batch_size {-(-batch_size // self.count) * self.count}, or start a number "
                f"of processes that divides {batch_size} (--nproc_per_node)"
            )

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a micro-batch (B, …): (B / count, …), a view."""
        n = len(rows) // self.count
        return rows[self.rank * n : (self.rank + 1) * n]

    def data_parallel(
        self, model: nn.Module, loss_sum: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`loss_sum`, whose backward pass now leaves the mean of all processes' gradients in the parameters of `model`."""
        if self.count == 1:
            return loss_sum
        if model.device.type == "cuda":
            torch.cuda.set_device(model.device)  # NCCL's own buffers belong there too
        # As views of the buckets that are sent, gradients are not kept twice.
        return DistributedDataParallel(_Module(model, loss_sum), gradient_as_bucket_view=True)

    def adding_up(self, loss_sum: Any, last: bool) -> contextlib.AbstractContextManager:
        """The context of one micro-batch: only the last of a step sends gradients to the others."""
        return contextlib.nullcontext() if self.count == 1 or last else loss_sum.no_sync()

    # What is agreed on: every process must make each of these calls, in the same order

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes (in float64)."""
        if self.count == 1:
            return list(values)
        totals = torch.tensor(
            values, dtype=torch.float64
        )  # on the CPU, by gloo: NCCL would wait for ever for a dead process
        dist.all_reduce(totals)
        return totals.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.sum(flag)[0] > 0

    def check(self, seen: Any = None, error: UserError | None = None) -> None:
        """Raise in every process what went wrong in any, or that they do not see the same.

        Args:
            seen: what must be equal everywhere.
            error: what went wrong in this process.
        """
        if self.count == 1:
            return
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, (seen, None if error is None else str(error)))
        for rank, (_, message) in enumerate(told):
            if message is not None:
                raise _Agreed(message if rank == 0 else f"rank {rank} of {self.count}: {message}")
        for rank, (theirs, _) in enumerate(told):
            if theirs != told[0][0]:
                raise _Agreed(
                    f"rank {rank} of {self.count} reads another text or checkpoint than rank 0: give all "
                    f"processes the same files"
                )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context which all processes leave well, or all with the same UserError."""
        try:
            yield
        except _Agreed:
            raise
        except UserError as error:
            self.check(error=error)
            raise
        self.check()

    # What happens when one dies

    def on_loss(self, note: Callable[[str], bool]) -> None:
        """Say how to write down that the run failed, where the process that writes no longer can.

        Args:
            note: given the line; returns False where the end of the run was written down before.
        """
        if self.count > 1:
            self._note = note

    def reason(self, error: Exception) -> Exception:
        """Why the run really ends: the error itself, or the loss of the process that it came from."""
        if self.count == 1 or self._over.is_set() or isinstance(error, (_Agreed, ProcessLost)):
            return error
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # torchrun's answer to the loss: this process is ending already
        if isinstance(error, RuntimeError):  # a connection that broke is one
            self._found.wait(_GRACE)
        self._over.set()
        if isinstance(error, RuntimeError) and self._loss is not None:
            if not self.first:
                self._speak()
            return ProcessLost(self._loss)
        if not self.first:  # rank 0 will say it
            message = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            self._report(f"rank {self.rank} of {self.count}: {message}")
        return error

    def _connect(self) -> None:
        """Get to know the others, and watch over them until the end."""
        dist.init_process_group(
            "cpu:gloo,cuda:nccl"
            if torch.cuda.is_available() and dist.is_nccl_available()
            else "gloo"
        )
        # A store of torchrun's: it outlives each of the processes.
        self._store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
        )
        self._key = f"gpt2_nb_utils/{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ['TORCHELASTIC_RESTART_COUNT']}/failed"
        self._places: list[Any] = [None] * self.count
        dist.all_gather_object(self._places, (socket.gethostname(), os.getpid()))
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Wait for a loss. The main thread meets it in its next call to the others, but not while it computes or NCCL hangs."""
        while not self._over.wait(_POLL):
            self._loss = self._lost()
            if self._loss is not None:
                self._found.set()
                if not self._over.wait(_GRACE):
                    try:
                        self._speak()
                    finally:
                        os._exit(ProcessLost.exit_status)
                return

    def _lost(self) -> str | None:
        """A line about a process that failed or died."""
        dead = self._dead()
        try:
            if not dead:
                return (
                    self._store.get(self._key).decode() if self._store.check([self._key]) else None
                )
            return self._report(self._died(dead[0]))
        except RuntimeError:  # the store went with torchrun
            return self._died(dead[0]) if dead else None

    def _died(self, rank: int) -> str:
        return (
            f"rank {rank} of {self.count} died (killed, or out of memory), and the run cannot go on without it: go on from "
            f"the last checkpoint with --resume auto, on any number of processes that divides batch_size"
        )

    def _report(self, line: str) -> str:
        """Tell the others that a process is lost. The first report counts, for one loss draws others after it."""
        return self._store.compare_set(self._key, "", line).decode()

    def _dead(self) -> list[int]:
        """Ranks of this machine that are gone. torchrun is the parent of all and leaves no zombies."""
        dead = []
        for rank, (host, pid) in enumerate(self._places):
            if (
                host == socket.gethostname() and os.name == "posix"
            ):  # elsewhere signal 0 is no question
                try:
                    os.kill(pid, 0)
                except ProcessLookupError:
                    dead.append(rank)
        return dead

    def _speak(self) -> None:
        """Write down and say the loss, in one process: rank 0, or the lowest that is left."""
        dead = self._dead()
        if self.rank == min(rank for rank in range(self.count) if rank not in dead) and self._note(
            self._loss
        ):
            print(f"error: {self._loss}", file=sys.stderr, flush=True)


class _Module(nn.Module):
    """A loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, loss_sum: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.loss_sum = model, loss_sum

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss_sum(x, y)


ALONE = Processes()
"""One process, which has nothing to share out and nobody to ask."""


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, connected to each other; `ALONE` where it started none.

    None leaves before all have come to the end, so that rank 0 can say how the run went.
    """
    if torchrun.world_size() == 1:
        yield ALONE
        return
    processes = Processes(
        torchrun.rank(), torchrun.world_size(), torchrun.local_rank(), torchrun.local_world_size()
    )
    processes._connect()
    try:
        yield processes
        processes.sum(0)
    except Exception as error:
        raise processes.reason(error)
    finally:
        processes._over.set()
    dist.destroy_process_group()
