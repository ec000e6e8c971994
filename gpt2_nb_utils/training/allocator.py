"""Keep freed memory in the process, so that the next step does not ask the system for it again.

The C library hands every large block back to the system when it is freed. A training step on a CPU frees and takes the same
blocks of up to 200 MB again and again, and the system fills each page with zeros first: a fifth of the time of a step.
"""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed. True where that worked: with glibc; elsewhere nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])
