"""Memory that was freed goes back to the system.

A fit needs a hundred megabytes for a second. glibc keeps what was freed, in a pool for each of
several threads, and so a process seems to grow with every thread that once did a fit.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back_freed_memory() -> None:
    """Hand freed memory back, where the C library can: 20 ms for 100 MB, 0.4 ms for none."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; other C libraries have none, or need none."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except OSError:  # a program without dynamic libraries
        return None
