"""Single rows by their primary key, as they are committed at the moment they are asked for.

From an SQLite file a row takes some ten microseconds over a connection that is kept: less than to
hand the question to another thread, so that an event loop may ask itself. A PostgreSQL server is a
round trip away, and is asked in a thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import Engine, PoolProxiedConnection, Select, Table, bindparam, select

from optllm_router.store.faults import explained

Found: TypeAlias = Sequence[Any] | None
"""A row's values in the order of its table's columns; ``None`` where there is no such row."""


class PointReads:
    """Finds rows by their primary key; thread-safe.

    Args:
        engine: of the database.
        name: of the database, for error messages.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._kept = _KeptConnection(engine) if engine.dialect.name == "sqlite" else None

    def row(self, table: Table, key: str) -> Found:
        """The row of that key.

        Raises:
            StoreError: the database cannot be read.
        """
        statement = _by_key(table)
        with explained(self._name), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="AUTOCOMMIT")
            return connection.execute(statement, {"key": key}).first()

    async def arow(self, table: Table, key: str) -> Found:
        """As :meth:`row`, without blocking the event loop."""
        if self._kept is not None:
            try:
                return self._kept.row(_sql_by_key(table), key)
            except sqlite3.Error:
                self._kept.close()  # as when the file is locked: a thread can wait, and tell why
        return await asyncio.to_thread(self.row, table, key)

    def close(self) -> None:
        """Let go of the connection that is kept."""
        if self._kept is not None:
            self._kept.close()


class _KeptConnection:
    """A connection to an SQLite file that is opened when it is needed, and waits for no lock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None
        self._lock = threading.Lock()

    def row(self, sql: str, key: str) -> Found:
        with self._lock:
            if self._connection is None:
                self._connection = self._opened()
            # All there is, not the first: else the snapshot would stay open.
            rows = self._connection.driver_connection.execute(sql, (key,)).fetchall()  # type: ignore[union-attr]
            return rows[0] if rows else None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.invalidate()
                self._connection = None

    def _opened(self) -> PoolProxiedConnection:
        connection = self._engine.raw_connection()
        connection.driver_connection.execute("PRAGMA busy_timeout=0")  # type: ignore[union-attr]
        return connection


@lru_cache
def _by_key(table: Table) -> Select[Any]:
    (column,) = table.primary_key.columns
    return select(table).where(column == bindparam("key"))


@lru_cache
def _sql_by_key(table: Table) -> str:
    (column,) = table.primary_key.columns
    names = ", ".join(f'"{one.name}"' for one in table.columns)
    return f'SELECT {names} FROM {table.name} WHERE "{column.name}" = ?'  # noqa: S608 - names of our own schema
