"""Single rows by their key: read past who writes, and never waited for on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Awaitable, Iterator

import pytest
from sqlalchemy import event

from optllm_router import StoreError
from optllm_router.store import AccessKeys, Database
from optllm_router.store._point_reads import Found
from optllm_router.store.schema import access_keys


@pytest.fixture
def unshared_url(tmp_path) -> str:
    """A new file where SQLite has no shared memory, so no WAL: who reads waits for who writes."""
    return f"sqlite:///file:{tmp_path}/unshared.db?uri=true&vfs=unix-dotfile"


@contextlib.contextmanager
def held(url: str) -> Iterator[sqlite3.Connection]:
    """Another connection that is about to write."""
    file = url.removeprefix("sqlite:///")
    connection = sqlite3.connect(
        file, uri=file.startswith("file:"), isolation_level=None, check_same_thread=False
    )
    with contextlib.closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def a_key(url: str) -> str:
    with contextlib.closing(Database(url)) as database:
        _, made = AccessKeys(database).create()
    return made.id


async def with_longest_pause(reading: Awaitable[Found]) -> tuple[Found | StoreError, float]:
    """What was read, or why not; and for how many seconds the event loop stood still."""
    task, longest = asyncio.ensure_future(reading), 0.0
    while not task.done():
        start = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - start)
    error = task.exception()
    if error is None:
        return task.result(), longest
    assert isinstance(error, StoreError), repr(error)
    return error, longest


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_row_is_read_while_another_process_writes(sqlite_url, asked_before):
    id = a_key(sqlite_url)
    with contextlib.closing(Database(f"{sqlite_url}?timeout=0")) as database:
        if asked_before:
            database.row(access_keys, id)
        with held(sqlite_url):
            assert database.row(access_keys, id)[0] == id
            assert asyncio.run(database.arow(access_keys, id))[0] == id


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_file_that_is_locked_is_waited_for_without_blocking_the_loop(unshared_url, asked_before):
    id = a_key(unshared_url)
    with contextlib.closing(Database(f"{unshared_url}&timeout=20")) as database:
        if asked_before:
            database.row(access_keys, id)

        async def read_twice_while_locked() -> list[tuple[Found | StoreError, float]]:
            reads = [with_longest_pause(database.arow(access_keys, id)) for _ in range(2)]
            first, second = (asyncio.create_task(one) for one in reads)
            done, _ = await asyncio.wait([first, second], timeout=0.5)
            assert not done
            return await asyncio.gather(first, second)

        with held(unshared_url) as holder:
            threading.Timer(1.0, holder.rollback).start()
            told = asyncio.run(read_twice_while_locked())
        assert [row[0] for row, _ in told] == [id, id]
        assert max(pause for _, pause in told) < 0.5


def test_a_connection_outlives_a_moment_in_which_the_file_is_locked(unshared_url):
    id = a_key(unshared_url)
    with contextlib.closing(Database(f"{unshared_url}&timeout=0")) as database:
        database.row(access_keys, id)
        with held(unshared_url):
            with pytest.raises(StoreError, match="locked"):
                asyncio.run(database.arow(access_keys, id))
            with pytest.raises(StoreError, match="locked"):
                database.row(access_keys, id)
        opened: list[object] = []
        event.listen(database._engine, "checkout", lambda *args: opened.append(args))
        assert asyncio.run(database.arow(access_keys, id))[0] == id
        assert database.row(access_keys, id)[0] == id
    assert opened == []


def test_a_connection_that_broke_is_replaced(sqlite_url):
    id = a_key(sqlite_url)
    with contextlib.closing(Database(sqlite_url)) as database:
        assert database.row(access_keys, id)[0] == id
        for _ in range(2):
            database._points._kept._connection.connection.driver_connection.close()
            assert asyncio.run(database.arow(access_keys, id))[0] == id
            database._points._kept._connection.connection.driver_connection.close()
            assert database.row(access_keys, id)[0] == id
            assert asyncio.run(database.arow(access_keys, id))[0] == id


def test_a_connection_that_cannot_be_had_is_waited_for_without_blocking_the_loop(sqlite_url):
    id = a_key(sqlite_url)
    with contextlib.closing(Database(sqlite_url)) as database:
        pool = database._engine.pool
        pool._timeout = 1.0
        with contextlib.ExitStack() as taken:
            for _ in range(pool.size() + pool._max_overflow):
                taken.enter_context(database._engine.connect())
            error, pause = asyncio.run(with_longest_pause(database.arow(access_keys, id)))
        assert "QueuePool limit" in str(error)
        assert pause < 0.5
        assert asyncio.run(database.arow(access_keys, id))[0] == id


def test_a_closed_database_is_not_opened_again(store_url):
    database = Database(store_url)
    text, made = AccessKeys(database).create()
    asyncio.run(AccessKeys(database).afind(text))
    database.close()
    opened: list[object] = []
    event.listen(database._engine, "connect", lambda *args: opened.append(args))
    with pytest.raises(StoreError, match="closed; create a new client"):
        database.row(access_keys, made.id)
    with pytest.raises(StoreError, match="closed; create a new client"):
        asyncio.run(database.arow(access_keys, made.id))
    assert opened == []
