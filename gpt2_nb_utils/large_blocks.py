"""Keep memory that a training step frees for the next step, in huge pages where Linux has them.

A step on a CPU allocates and frees hundreds of blocks, some of 200 MB. The C library returns large
ones to the operating system at once and requests them again: each step of GPT-2 124M would map and
zero over 100,000 pages.
"""

from __future__ import annotations

import ctypes
import os
import sys

import psutil

# Their numbers in glibc's malloc.h, where mallopt(3) explains them.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1  # with the largest number, a heap with 2 GiB free at its end would still be returned
_MOST_UNUSED = 2**30
"""Bytes by which a process may grow before it returns unused memory. If that were less than the
copies made for a checkpoint, their memory would be requested again for each one."""


def keep_large_blocks() -> bool:
    """Keep freed memory in this process from now on. The numbers that it computes stay the same.

    torch decides with its first tensor whether it asks for huge pages: a later call keeps the
    memory, in small pages.

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
    # One heap instead of separate mappings, for all threads (the backward pass has its own), and
    # never shortened.
    return bool(
        mallopt(_MMAP_MAX, 0) and mallopt(_ARENA_MAX, 1) and mallopt(_TRIM_THRESHOLD, _NEVER)
    )


class FreedMemory:
    """Freed memory that nothing can use again, returned to the operating system before it adds up.

    Once a small object stays where a large block was freed, the next large block does not fit
    there, and the heap grows by it. In a notebook, where drawings leave objects behind, that can be
    150 MB for each of them.
    """

    def __init__(self) -> None:
        self._least: int | None = None  # the first step still has to allocate what all share

    def give_back(self) -> bool:
        """Return all freed memory if this process has grown by over 1 GiB; it takes about 0.05 s.

        Returns:
            Whether it did.
        """
        resident = _resident()
        if self._least is None or resident - self._least <= _MOST_UNUSED:
            self._least = min(resident, self._least or resident)
            return False
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError, TypeError):  # not glibc; TypeError: Windows
            return False
        self._least = _resident()  # it may need more now than it did
        return True


def _resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss
