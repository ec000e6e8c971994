"""torchrun's environment variables, and how a process that torchrun started exits. Free of torch:
`--help` stays fast."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def world_size() -> int:
    """Processes that torchrun started, on all machines; 1 where it started none."""
    return _variable("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among them, from 0. Rank 0 alone writes files."""
    return _variable("RANK", 0)


def _variable(name: str, default: int) -> int:
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a program, and end this process with its exit status.

    One of several processes skips the shutdown of the interpreter: threads of torch.distributed are
    still alive, and one that asks for the interpreter meanwhile, to drop the tensors of its last
    exchange, aborts the process.
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
