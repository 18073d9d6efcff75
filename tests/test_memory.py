"""Memory that was freed is the system's again."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from optllm_router._memory import give_back_freed_memory

BLOCKS, BLOCK_BYTES = 2_000, 60_000  # each too small for pages of its own


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_what_was_freed_below_what_is_in_use_goes_back():
    blocks = [np.ones(BLOCK_BYTES, dtype=np.uint8) for _ in range(BLOCKS)]
    last = blocks.pop()  # nothing below it goes back by itself
    del blocks
    before = resident_bytes()
    give_back_freed_memory()
    assert before - resident_bytes() > BLOCKS * BLOCK_BYTES / 2
    assert last.all()
