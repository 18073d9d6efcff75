"""Single rows by their primary key, as they are committed at the moment they are asked for.

From an SQLite file a row takes some ten microseconds over a connection that is kept: less than to
hand the question to another thread, so that an event loop may ask itself, as long as nothing has to
be waited for. To open that connection, or to wait for a file that is locked, takes a thread; so
does a PostgreSQL server, which is a round trip away.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias, cast

from sqlalchemy import Connection, Engine, Select, Table, bindparam, select

from optllm_router.store._sqlite import READ_ONLY
from optllm_router.store.faults import closed, explained

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
        self._closed = False

    def row(self, table: Table, key: str) -> Found:
        """The row of that key.

        Raises:
            StoreError: the database cannot be read, or :meth:`close` was called.
        """
        self._check_open()
        with explained(self._name):
            if self._kept is None:
                return self._row_of_pool(table, key, isolation_level="AUTOCOMMIT")
            self._kept.open()
            rows = self._kept.rows(table, key)
            if rows is None:
                return self._row_of_pool(table, key, **{READ_ONLY: True})
            return _only(rows)

    async def arow(self, table: Table, key: str) -> Found:
        """As :meth:`row`, without blocking the event loop."""
        self._check_open()
        rows = None if self._kept is None else self._kept.rows(table, key)
        if rows is None:
            return await asyncio.to_thread(self.row, table, key)
        return _only(rows)

    def close(self) -> None:
        """Let go of the connection that is kept; nothing is read any more."""
        self._closed = True
        if self._kept is not None:
            self._kept.close()

    def _row_of_pool(self, table: Table, key: str, **options: Any) -> Found:
        with self._engine.connect() as connection:
            connection.execution_options(**options)
            return connection.execute(_by_key(table), {"key": key}).first()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()


class _KeptConnection:
    """A connection to an SQLite file that, once it is open, waits for no lock; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._closed = False
        self._lock = threading.Lock()  # held for as long as a read takes, never while one waits

    def open(self) -> None:
        """Open it if it is not, which may wait: for a lock, and for a place in the engine's pool.

        Raises:
            SQLAlchemyError: it cannot be opened.
            StoreError: it was closed for good.
        """
        if self._connection is not None:
            return
        connection = self._engine.connect()
        try:
            _driver(connection).execute("PRAGMA busy_timeout=0")
        except BaseException:
            _let_go(connection)
            raise
        with self._lock:
            ended = self._closed
            if self._connection is None and not ended:
                self._connection = connection
                return
        _let_go(connection)  # another thread was faster, or it is too late
        if ended:
            raise closed()

    def rows(self, table: Table, key: str) -> list[Sequence[Any]] | None:
        """What has that key; ``None`` when that cannot be told at once.

        It is not open, or the file is locked, or something is wrong: an open connection of the
        engine's can wait, and will tell what it is.
        """
        with self._lock:
            if self._connection is None:
                return None
            try:
                # All there is, not the first: else the snapshot would stay open.
                return _driver(self._connection).execute(_sql_by_key(table), (key,)).fetchall()
            except sqlite3.Error as error:
                if "locked" not in str(error):
                    self._drop()
                return None

    def close(self) -> None:
        """Close it for good."""
        with self._lock:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            _let_go(self._connection)
            self._connection = None


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: Any = connection.connection.driver_connection
    return cast("sqlite3.Connection", driver)


def _let_go(connection: Connection) -> None:
    """Close it, and keep it out of the pool, whose connections wait for locks."""
    connection.invalidate()
    connection.close()


def _only(rows: Sequence[Sequence[Any]]) -> Found:
    return rows[0] if rows else None


@lru_cache
def _by_key(table: Table) -> Select[Any]:
    (column,) = table.primary_key.columns
    return select(table).where(column == bindparam("key"))


@lru_cache
def _sql_by_key(table: Table) -> str:
    (column,) = table.primary_key.columns
    names = ", ".join(f'"{one.name}"' for one in table.columns)
    return f'SELECT {names} FROM {table.name} WHERE "{column.name}" = ?'  # noqa: S608 - names of our own schema
