"""What torchrun tells each process that it starts, read from the environment, and how such a process ends.

It deliberately knows nothing of torch: a wrong flag is said at once, and once only, however many processes there are.
What they do together is in `training.processes`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

_LONGEST_WAIT = 30.0
"""Seconds after which a process that waits to be ended goes by itself."""


def world_size() -> int:
    """Processes that torchrun started, on all machines; 1 where it started none."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among them, from 0. Rank 0 alone writes and speaks."""
    return _told("RANK", 0)


def local_world_size() -> int:
    """Processes that torchrun started on this machine."""
    return _told("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """Number of this process among those of this machine: the number of its GPU."""
    return _told("LOCAL_RANK", 0)


def _told(name: str, alone: int) -> int:
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else alone


def let_rank_0_speak() -> None:
    """Wait until torchrun ends this process, which it does when rank 0 has ended.

    The same mistake meets all processes, and rank 0 says what it was. torchrun answers the first end with the end of all:
    one that went before rank 0 would cut it short.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_LONGEST_WAIT)


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a program to its end, and end this process with its exit status.

    One of several processes skips the end of the interpreter: threads of torch.distributed are still alive, and one that asks
    for the interpreter while it ends, to drop the tensors of its last exchange, aborts the process.
    """
    if world_size() == 1:
        sys.exit(main())
    status = 1
    try:
        status = main()
    except SystemExit as end:  # argparse, after --help or --version
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # its reader is gone, or the disk is full
                status = status or 1
        os._exit(status)
