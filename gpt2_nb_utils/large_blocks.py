"""Memory that a step frees is kept for the next step, in huge pages where Linux has them.

A training step on a CPU allocates and frees hundreds of blocks, some of 200 MB. The C library hands large ones back to the
operating system at once and fetches them anew: in each step of GPT-2 124M over 100,000 pages are mapped and zeroed.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Their numbers in glibc's malloc.h, where mallopt(3) explains them.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1  # the largest number would still give a heap back that has 2 GiB free at its end


def keep_large_blocks() -> bool:
    """Keep freed memory in this process from now on. The numbers that it computes stay the same.

    The huge pages are torch's to ask for, and it decides with its first tensor: call this before, or have the first half only.

    Returns:
        False where the C library cannot (Windows, macOS, musl); nothing has changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # One heap instead of separate mappings, for all threads (the backward pass has its own), and never shortened.
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_ARENA_MAX, 1) and mallopt(_TRIM_THRESHOLD, _NEVER))
