"""How to talk to an SQLite file that other processes use, too.

It is switched to WAL, where who reads and who writes do not wait for each other. Transactions take
the lock for writing when they begin, and not when they have read what they then may no longer
change.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

READ_ONLY = "optllm_read_only"
"""The execution option of a connection that will only read: it waits for nobody who writes."""

_BEGIN = "BEGIN IMMEDIATE"


def sqlite_engine(url: URL, patience: float) -> Engine:
    """An engine whose connections wait for a lock for so many seconds; it creates the file."""
    engine = create_engine(url, connect_args={"timeout": patience})
    _create_private(url)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        # Of processes that switch a new file at once, SQLite turns all but one away unwaited.
        _patiently(connection, "PRAGMA journal_mode=WAL", patience)
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(READ_ONLY):
            connection.exec_driver_sql("BEGIN")
        else:
            raw: Any = connection.connection.dbapi_connection
            try:
                _patiently(raw, _BEGIN, patience)
            except sqlite3.OperationalError as error:  # told as any statement's failure is
                raise OperationalError(_BEGIN, None, error) from error

    return engine


def _patiently(connection: sqlite3.Connection, statement: str, patience: float) -> None:
    """Execute what needs SQLite's lock, waiting for it as often as everybody else does.

    SQLite itself looks ever more rarely, so that among busy processes the one that has waited
    longest has the least chance.
    """
    end = time.monotonic() + patience
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute(statement)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= end:
                    raise
                time.sleep(random.uniform(0.001, 0.01))
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(1000 * patience)}")


def _create_private(url: URL) -> None:
    """Create the file for its owner only: it holds what people asked."""
    path = url.database or ""
    if path.startswith("file:"):
        return
    with contextlib.suppress(OSError):  # there already; or SQLite will say what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
