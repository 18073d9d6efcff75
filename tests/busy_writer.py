"""Keeps a database's writer busy, so that what comes next forms one group."""

from __future__ import annotations

import threading

from optllm_router.store import Database


def busy(database: Database) -> threading.Event:
    """The writer is at work until the event is set; what is submitted meanwhile is one group."""
    at_work, go = threading.Event(), threading.Event()

    def work(connection) -> None:
        at_work.set()
        go.wait(10)

    database.submit(work)
    assert at_work.wait(10)  # else the first of what comes next would be in the group of this one
    return go
