"""Memory that was freed is the system's again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optllm_router._memory import give_back_freed_memory

of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory"
)

BLOCKS, BLOCK_BYTES = 2_000, 60_000  # each too small for pages of its own


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@of_glibc
def test_what_was_freed_below_what_is_in_use_goes_back():
    blocks = [np.ones(BLOCK_BYTES, dtype=np.uint8) for _ in range(BLOCKS)]
    last = blocks.pop()  # nothing below it goes back by itself
    del blocks
    before = resident_bytes()
    give_back_freed_memory()
    assert before - resident_bytes() > BLOCKS * BLOCK_BYTES / 2
    assert last.all()


LARGE_AFTER_LARGE = """
import ctypes
import numpy as np
from optllm_router._memory import give_back_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
give_back_freed_memory()
del_me = np.ones(16_000_000, dtype=np.uint8)
del del_me  # glibc would now keep blocks of up to this size
before = mallinfo().hblkhd
block = np.ones(4_000_000, dtype=np.uint8)
print(mallinfo().hblkhd - before >= len(block))
"""


@of_glibc
@pytest.mark.parametrize(
    ("told", "apart"),
    [
        ({}, True),
        ({"GLIBC_TUNABLES": "glibc.pthread.rseq=1"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False),
    ],
)
def test_large_blocks_stay_apart_unless_the_environment_says_what_to_keep(told, apart):
    environment = {
        name: value
        for name, value in os.environ.items()
        if "MALLOC" not in name and name != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", LARGE_AFTER_LARGE],
        env={**environment, **told},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(apart)
