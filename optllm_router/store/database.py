"""One database, SQLite (WAL) or PostgreSQL, through SQLAlchemy Core.

All writes of a process go through one thread that commits what is waiting in one
transaction (group commit, see :mod:`.writer`). A write is a function of a connection; writes
of one kind that wait together can be one call of it (:meth:`Database.submit_to`).

A write can be run more than once, so it must do nothing but talk to the database: with fewer
others, when one of its group failed and took the group with it; and again, when the connection
broke and nobody knows whether the commit arrived.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from optllm_router._errors import OptLLMError, StoreError
from optllm_router.store._point_reads import Found, PointReads
from optllm_router.store._postgresql import postgresql_engine
from optllm_router.store._sqlite import READ_ONLY, sqlite_engine
from optllm_router.store.faults import closed, explained
from optllm_router.store.migrations import migrate
from optllm_router.store.writer import Write, Writer

A = TypeVar("A")
T = TypeVar("T")

_LOCK_TIMEOUT_SECONDS = 5.0


class Database:
    """A migrated database with group-committed writes; thread-safe.

    Args:
        url: ``sqlite:///path.db`` or ``postgresql://user@host/name``.

    Raises:
        StoreError: the URL is wrong, or the database is locked, read-only, out of reach or
            written by a newer version.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._engine = _engine(self.url)
        self._name = _without_secrets(self.url)
        try:
            with explained(self._name), self._engine.begin() as connection:
                migrate(connection, time.time())
        except OptLLMError:
            self._engine.dispose()
            raise
        self._writer = Writer(self._engine, self._name)
        self._points = PointReads(self._engine, self._name)
        self._closed = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(
            self, _shut_down, self._writer, self._points, self._engine, self._pid
        )

    def submit(self, work: Callable[[Connection], T], *, urgent: bool = True) -> Future[T]:
        """Run ``work`` in a durable transaction; the future is done once it is committed.

        Args:
            work: what to do, maybe more than once.
            urgent: False when nobody waits for it: it may wait a few milliseconds for others.

        Raises:
            StoreError: the database was closed, or opened before this process was forked.
        """
        return self.submit_to(_each, work, urgent=urgent)

    def submit_to(
        self,
        kind: Callable[[Connection, Sequence[A]], Sequence[T]],
        item: A,
        *,
        urgent: bool = True,
    ) -> Future[T]:
        """As :meth:`submit`, for many writes at once: ``kind`` gets all items that wait for it.

        It returns a result per item; an exception among them is raised to who waits for that
        item, and harms no other. Writes of one kind are done in the order in which they were
        submitted; kinds in the order in which they are first seen in a commit.
        """
        self.check_process()
        done: Future[T] = Future()
        # From here on it cannot be cancelled: a write whose caller went away is still written.
        done.set_running_or_notify_cancel()
        with self._lock:  # else a write could come after the one that ends the writer
            if self._closed:
                raise closed()
            self._writer.put(Write(kind, item, done, urgent))
        return done

    @property
    def name(self) -> str:
        """Its URL, without passwords."""
        return self._name

    @property
    def forked(self) -> bool:
        """Whether this process is a copy of the one that opened the database."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise ``StoreError`` in a forked copy: the thread that writes was not copied."""
        if self.forked:
            raise StoreError(
                "the client was made before this process was forked, and cannot write here; "
                "create one in each process"
            )

    @property
    def unwritten(self) -> int:
        """How many writes are waiting or under way."""
        return self._writer.unwritten

    def catch_up(self) -> None:
        """Wait until every write that was submitted so far is done, or has failed."""
        self.check_process()
        self._writer.catch_up()

    @contextlib.contextmanager
    def read(self, *, behind: bool = False) -> Iterator[Connection]:
        """A read-only snapshot: all statements see the same commits.

        Args:
            behind: True does not wait for the writes that were submitted before.
        """
        if not behind:
            self.catch_up()
        with explained(self._name), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection.execution_options(**{READ_ONLY: True})

    def row(self, table: Table, key: str) -> Found:
        """The row of a table with that primary key, as it is committed now.

        It does not wait for the writes that were submitted before.

        Raises:
            StoreError: the database cannot be read, was closed, or was opened before this process
                was forked.
        """
        self.check_process()
        return self._points.row(table, key)

    async def arow(self, table: Table, key: str) -> Found:
        """As :meth:`row`, without blocking the event loop; it is much faster on SQLite."""
        self.check_process()
        return await self._points.arow(table, key)

    def close(self) -> None:
        """Finish the waiting writes and let go of the database. May be called twice.

        In a forked copy it does nothing: writes and connections are the original's.
        """
        if self.forked:
            return
        with self._lock:
            self._closed = True
        self._finalizer()


def _checked(url: str) -> URL:
    try:
        parsed = _with_password_in_its_place(make_url(url))
    except (ArgumentError, ValueError):  # the latter: a port that is not a number
        shown = _PASSWORD.sub(r"\1***", str(url).rpartition("@")[2])  # without a password
        raise StoreError(
            f"store {shown!r} is not a database URL; write sqlite:///optllm.db or "
            "postgresql://user@host/database"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"store {_without_secrets(parsed)!r}: only sqlite and postgresql are supported"
        )
    if parsed.get_backend_name() == "sqlite" and not _patience(parsed) >= 0:
        raise StoreError(
            f"timeout {str(parsed.query['timeout'])[:100]!r} in the store's URL must be a number "
            "of seconds, 0 or more"
        )
    if parsed.get_backend_name() == "sqlite" and _in_memory(parsed):
        raise StoreError(
            f"store {url!r} is in memory and would forget what was spent; give a file, "
            "like sqlite:///optllm.db"
        )
    return parsed


_PASSWORD = re.compile(r"(password=)[^&\s]*", re.IGNORECASE)


def _with_password_in_its_place(url: URL) -> URL:
    """A password may stand among a URL's options, too, and would be shown there."""
    given = url.query.get("password", ())
    if not given:
        return url
    password = given if isinstance(given, str) else given[-1]
    return url.set(password=password).difference_update_query(["password"])


def _without_secrets(url: URL) -> str:
    if "sslpassword" in url.query:
        url = url.update_query_dict({"sslpassword": "***"})
    return url.render_as_string(hide_password=True)


def _patience(url: URL) -> float:
    """For how many seconds to wait for SQLite's lock; NaN when the URL says nothing sensible."""
    try:
        seconds = float(str(url.query.get("timeout", _LOCK_TIMEOUT_SECONDS)))
    except ValueError:
        return math.nan
    return seconds if seconds < math.inf else math.nan


def _in_memory(url: URL) -> bool:
    path = (url.database or "").removeprefix("file:")
    return path in ("", ":memory:") or url.query.get("mode") == "memory"


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return postgresql_engine(url)
        return sqlite_engine(url, _patience(url))
    except (ImportError, NoSuchModuleError) as error:
        raise StoreError(
            f"store {_without_secrets(url)!r} cannot load its driver ({error}); for PostgreSQL: "
            "pip install 'optllm-router[postgresql]'"
        ) from error


def _each(connection: Connection, works: Sequence[Callable[[Connection], T]]) -> list[T]:
    return [work(connection) for work in works]


def _shut_down(writer: Writer, points: PointReads, engine: Engine, pid: int) -> None:
    if os.getpid() != pid:
        return
    writer.finish()
    points.close()
    engine.dispose()
