"""Whether memory and the database grow with the number of calls, and by how much.

    python tests/benchmarks/soak.py --calls 200000 --json

The calls go through the client, at full speed from 64 threads, to models that answer at once:
each is decided, recorded, reserved, settled. Memory and file are measured ten times on the way:
memory when no refit is under way, which needs tens of megabytes for a moment, and its peak so far.
Flat means: memory at the end is what it was after the first tenth, and the last tenth took as many
bytes per call of the database as the second. The books are verified at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ledger import BUDGET, INSTANT_CALL_NANO, INSTANT_MODELS, Instant, machine

from optllm_router import OptLLM

PARTS = 10


def resident_megabytes() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def database_bytes(file: Path) -> int:
    """Size of the database without its log, which is bounded by checkpoints."""
    return file.stat().st_size


def soak(file: Path, calls: int, callers: int) -> dict[str, Any]:
    """Make the calls and measure after each tenth."""
    tenths: list[dict[str, float]] = []
    client = OptLLM(
        INSTANT_MODELS, budget=BUDGET, store=f"sqlite:///{file}", transport=Instant(), seed=0
    )
    with client, ThreadPoolExecutor(callers) as pool:
        share = calls // PARTS // callers
        before = database_bytes(file)

        def call(caller: int) -> None:
            for n in range(share):
                messages = [{"role": "user", "content": f"What is {caller} + {n}?"}]
                client.chat.completions.create(messages=messages)

        for _ in range(PARTS):
            start = time.perf_counter()
            list(pool.map(call, range(callers)))
            seconds = time.perf_counter() - start
            client._session.runtime.router.wait()
            after = database_bytes(file)
            tenth = {
                "calls_per_second": share * callers / seconds,
                "resident_mb": resident_megabytes(),
                "peak_mb": peak_megabytes(),
                "database_bytes_per_call": (after - before) / (share * callers),
                "log_mb": Path(f"{file}-wal").stat().st_size / 1e6,
            }
            tenths.append(tenth)
            before = after
        balance, differences = client.balance, client.verify()
    spent = PARTS * share * callers * INSTANT_CALL_NANO
    if balance is None or balance.reserved_nano or balance.spent_nano != spent or differences:
        raise AssertionError(f"{spent} nano-dollars were spent, but: {balance} {differences}")
    return {
        "calls": PARTS * share * callers,
        "callers": callers,
        "resident_mb_growth": tenths[-1]["resident_mb"] - tenths[0]["resident_mb"],
        "tenths": tenths,
        "machine": machine(),
    }


def main() -> None:
    """Measure, and print one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true", help="one line for machines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as mine:
        figures = soak(Path(mine) / "soak.db", options.calls, options.callers)
    print(json.dumps(figures, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
