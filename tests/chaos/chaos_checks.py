"""What must be right, or as before, once a storm is over: the books, and what a process holds."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from chaos_provider import billed_as
from sqlalchemy import func, select

from optllm_router.store import Database
from optllm_router.store.schema import reservations


def check_books(store: Path, billed: dict[str, int]) -> None:
    """No reservation is open; what was spent is the bill, or more where it was estimated."""
    calls = reservations.c.candidate != ""  # the others are blocks
    with closing(Database(f"sqlite:///{store}")) as database, database.read() as connection:
        states = Counter(connection.scalars(select(reservations.c.state)))
        rows = connection.execute(
            select(
                reservations.c.candidate,
                func.sum(reservations.c.settled_nano),
                func.sum(reservations.c.estimated),
            )
            .where(calls)
            .group_by(reservations.c.candidate)
        ).all()
    assert states["open"] == 0
    spent: Counter[str] = Counter()
    guesses: Counter[str] = Counter()
    for name, nano, estimated in rows:
        spent[billed_as(name)] += nano
        guesses[billed_as(name)] += estimated
    wrong = {}
    for name, nano in billed.items():
        booked, estimated = spent[name], guesses[name]
        if booked < nano or (booked > nano and not estimated):
            wrong[name] = {"spent": booked, "billed": nano, "estimated": estimated}
    assert wrong == {}


def calls_under_way(store: Path) -> int:
    """How many calls have money set aside."""
    open_ones = (reservations.c.candidate != "") & (reservations.c.state == "open")
    with closing(Database(f"sqlite:///{store}")) as database, database.read() as connection:
        return connection.scalar(select(func.count()).where(open_ones)) or 0


class Resources(NamedTuple):
    """What a process holds.

    Attributes:
        threads: by name.
        sockets: how many are open.
    """

    threads: frozenset[str]
    sockets: int

    @classmethod
    def now(cls) -> Resources:
        named = frozenset(
            f"{one.name} {one.ident}"
            for one in threading.enumerate()
            if not one.name.startswith("litellm")  # keeps some for the life of the process
        )
        return cls(named, sockets())

    def beyond(self, before: Resources) -> list[str]:
        """What was not given back."""
        found = sorted(self.threads - before.threads)
        if self.sockets > before.sockets:
            found.append(f"{self.sockets} sockets instead of {before.sockets}")
        return found


def sockets() -> int:
    found = 0
    for one in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(one.path).startswith("socket:")
    return found


def memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_of_litellm(task: asyncio.Task) -> bool:
    """It has one for the life of the event loop."""
    return "litellm" in task.get_coro().cr_code.co_filename


def eventually(check, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
