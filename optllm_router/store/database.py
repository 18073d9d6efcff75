"""One database, SQLite (WAL) or PostgreSQL, through SQLAlchemy Core.

All writes of a process go through one thread that commits what is waiting in one
transaction (group commit): a durable commit costs a disk flush, whether it carries one
write or sixty-four. A write is a function of a connection. It is run again on its own when
its group has to be rolled back, so it must not do anything but talk to the database.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from optllm_router._errors import OptLLMError, StoreError
from optllm_router.store.migrations import migrate

T = TypeVar("T")

_MOST_PER_COMMIT = 64
_LOCK_TIMEOUT_SECONDS = 5.0
_READ_ONLY = "optllm_read_only"


@dataclass(frozen=True)
class _Write(Generic[T]):
    work: Callable[[Connection], T]
    done: Future[T]


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
        self._waiting: queue.SimpleQueue[_Write[Any] | None] = queue.SimpleQueue()
        try:
            with self._explained(), self._engine.begin() as connection:
                migrate(connection, time.time())
        except OptLLMError:
            self._engine.dispose()
            raise
        self._writer = threading.Thread(
            target=_write_groups,
            args=(self._engine, self._waiting, self._explained),
            name="optllm-store",
            daemon=True,
        )
        self._writer.start()
        self._closed = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(
            self, _shut_down, self._waiting, self._writer, self._engine
        )

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Run ``work`` in a durable transaction; the future is done once it is committed.

        Raises:
            StoreError: the database was closed.
        """
        done: Future[T] = Future()
        # From here on it cannot be cancelled: a write whose caller went away is still written.
        done.set_running_or_notify_cancel()
        with self._lock:  # else a write could come after the one that ends the writer
            if self._closed:
                raise StoreError("the database is closed; create a new client")
            self._waiting.put(_Write(work, done))
        return done

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only snapshot: all statements see the same commits."""
        with self._explained(), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection.execution_options(**{_READ_ONLY: True})

    def close(self) -> None:
        """Finish the waiting writes and let go of the database. May be called twice."""
        with self._lock:
            self._closed = True
        self._finalizer()

    @property
    def _explained(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        name = self.url.render_as_string(hide_password=True)
        return lambda: _explain(name)


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(
            f"store {url!r} is not a database URL; write sqlite:///optllm.db or "
            "postgresql://user@host/database"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"store {parsed.render_as_string()!r}: only sqlite and postgresql are supported"
        )
    if parsed.get_backend_name() == "sqlite" and _in_memory(parsed):
        raise StoreError(
            f"store {url!r} is in memory and would forget what was spent; give a file, "
            "like sqlite:///optllm.db"
        )
    return parsed


def _in_memory(url: URL) -> bool:
    path = (url.database or "").removeprefix("file:")
    return path in ("", ":memory:") or url.query.get("mode") == "memory"


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return create_engine(url, pool_pre_ping=True)
        arguments = {} if "timeout" in url.query else {"timeout": _LOCK_TIMEOUT_SECONDS}
        engine = create_engine(url, connect_args=arguments)
    except (ImportError, NoSuchModuleError) as error:
        raise StoreError(
            f"store {url.render_as_string()!r} cannot load its driver ({error}); for PostgreSQL: "
            "pip install 'psycopg[binary]'"
        ) from error

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get(_READ_ONLY)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _write_groups(
    engine: Engine,
    waiting: queue.SimpleQueue[_Write[Any] | None],
    explained: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    running = True
    while running:
        group: list[_Write[Any]] = []
        first = waiting.get()
        if first is None:
            return
        group.append(first)
        while len(group) < _MOST_PER_COMMIT:
            try:
                write = waiting.get_nowait()
            except queue.Empty:
                break
            if write is None:
                running = False
                break
            group.append(write)
        _commit(engine, group, explained)


def _commit(
    engine: Engine,
    group: list[_Write[Any]],
    explained: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    try:
        with explained(), engine.begin() as connection:
            results = [write.work(connection) for write in group]
    except Exception as error:  # noqa: BLE001 - it is handed to the caller that waits for it
        if len(group) == 1:
            group[0].done.set_exception(error)
        else:
            for write in group:
                _commit(engine, [write], explained)
        return
    for write, result in zip(group, results, strict=True):
        write.done.set_result(result)


def _shut_down(
    waiting: queue.SimpleQueue[_Write[Any] | None], writer: threading.Thread, engine: Engine
) -> None:
    waiting.put(None)
    writer.join()
    engine.dispose()


@contextlib.contextmanager
def _explain(name: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no reason"
        raise StoreError(f"store {name}: {cause}; {_remedy(cause)}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"store {name}: {error}") from error


def _remedy(cause: str) -> str:
    for sign, remedy in (
        ("readonly", "make the file and its folder writable, or choose another store"),
        ("read-only", "make the file and its folder writable, or choose another store"),
        ("locked", "another program holds it; close that program or wait for it"),
        ("unable to open", "check that the folder exists and may be written to"),
        ("not a database", "the file is something else; choose another store"),
        ("full", "free some disk space; nothing was spent"),
        ("already exists", "its tables belong to another program; choose another store"),
        ("connection", "check that the server runs and that the URL is right"),
    ):
        if sign in cause:
            return remedy
    return "check that the database is intact and may be written to"
