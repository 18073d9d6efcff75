"""Disks that fill up, files that turn read-only, connections that break, clocks that jump."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from busy_writer import busy
from postgresql_proxy import PostgresqlProxy
from sqlalchemy import func, select

from optllm_router._errors import OptLLMError, StoreError
from optllm_router._money import Budget
from optllm_router.ledger import Ledger, Refusal, Reservation
from optllm_router.store import Database
from optllm_router.store.schema import balances, reservations

LIMIT = 10**12


def reservation(id: str, amount: int = 100) -> Reservation:
    return Reservation(id, f"for {id}", "m", amount, (), "test", 60.0)


def ledger_of(database: Database, clock=time.time) -> Ledger:
    ledger = Ledger(database, clock)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    return ledger


def open_ids(database: Database) -> set[str]:
    with database.read() as connection:
        return set(
            connection.scalars(select(reservations.c.id).where(reservations.c.state == "open"))
        )


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB; skips where one may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_calls_and_loses_nothing(small_disk):
    with closing(Database(f"sqlite:///{small_disk}/ledger.db")) as database:
        ledger = ledger_of(database)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(1_200_000))
        granted = set()
        fault = None
        while fault is None:
            id = f"r{len(granted)}"
            fault = ledger.reserve(reservation(id)).exception()
            granted |= set() if fault else {id}
        assert isinstance(fault, StoreError)
        assert "full; free some disk space" in str(fault)
        assert granted
        assert open_ids(database) == granted
        assert ledger.verify() == []
        ballast.unlink()
        settled = [ledger.settle(id, 7) for id in sorted(granted)]
        assert all(future.result() for future in settled)
        assert ledger.balance("default").spent_nano == 7 * len(granted)
        assert ledger.balance("default").reserved_nano == 0
        assert ledger.verify() == []


def test_a_full_disk_tells_every_caller_of_a_group(small_disk):
    with closing(Database(f"sqlite:///{small_disk}/ledger.db")) as database:
        ledger = ledger_of(database)
        (small_disk / "ballast").write_bytes(bytes(1_500_000))
        futures = [ledger.reserve(reservation(f"r{n}")) for n in range(20_000)]
        faults = {n: future.exception() for n, future in enumerate(futures)}
        assert {type(fault) for fault in faults.values()} == {type(None), StoreError}
        assert open_ids(database) == {f"r{n}" for n, fault in faults.items() if fault is None}
        assert ledger.verify() == []


def test_a_lock_is_waited_for_once_per_group(tmp_path):
    """Sixty callers that wait for the same lock are told together, not one timeout each."""
    with closing(Database(f"sqlite:///{tmp_path}/ledger.db?timeout=0.2")) as database:
        ledger = ledger_of(database)
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            futures = [ledger.reserve(reservation(f"r{n}")) for n in range(60)]
            faults = [future.exception() for future in futures]
        assert all("locked" in str(fault) for fault in faults)
        assert len({id(fault) for fault in faults}) <= 3
        assert open_ids(database) == set()
        assert ledger.reserve(reservation("r0")).result() is None
        assert ledger.verify() == []


LIMITED = """
    import resource, sys
    from optllm_router._errors import StoreError
    from optllm_router._money import Budget
    from optllm_router.ledger import Ledger, Reservation
    from optllm_router.store import Database

    database = Database(sys.argv[1])
    ledger = Ledger(database)
    ledger.set_budget(Budget(1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    granted = 0
    try:
        while True:
            name = f"r{granted}"
            ledger.reserve(Reservation(name, name, "m", 100, (), "test", 60)).result()
            granted += 1
    except StoreError as error:
        complaint = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "store sqlite" in complaint, complaint
    assert ledger.balance("default").reserved_nano == 100 * granted
    assert ledger.verify() == []
    for n in range(granted):
        assert ledger.settle(f"r{n}", 1).result()
    assert ledger.balance("default").spent_nano == granted > 0
    assert ledger.verify() == []
    database.close()
    print(complaint)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits on a file's size are posix")
def test_a_file_that_may_not_grow_refuses_calls_and_loses_nothing(sqlite_url):
    complaint = program(LIMITED, sqlite_url)
    assert "check that the disk is healthy and not full" in complaint or "full" in complaint


def program(text: str, *arguments: str, **options) -> str:
    command = [sys.executable, "-c", textwrap.dedent(text), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


# A file that turns read-only


READER = """
    import os, sqlite3, sys
    from optllm_router._errors import StoreError
    from optllm_router.store import Database

    if os.geteuid() == 0:  # to whom permissions mean nothing
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        Database(sys.argv[1])
    except StoreError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions are posix")
def test_a_file_that_turned_read_only_is_refused_and_kept():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "ledger.db")
        with closing(Database(f"sqlite:///{file}")) as database:
            ledger_of(database).reserve(reservation("a")).result()
        file.chmod(0o444)
        Path(folder).chmod(0o555)
        complaint = program(READER, f"sqlite:///{file}")
        Path(folder).chmod(0o755)
        file.chmod(0o644)
        assert "make the file and its folder writable, or choose another store" in complaint
        with closing(Database(f"sqlite:///{file}")) as database:
            assert open_ids(database) == {"a"}
            assert Ledger(database).verify() == []


# Connections that break


@pytest.fixture
def proxy(postgresql_url):
    with PostgresqlProxy() as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(postgresql_url, proxy):
    with closing(Database(postgresql_url.replace(":5432", f":{proxy.port}"))) as database:
        yield database


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_whose_reply_is_lost_counts_once(behind_proxy, proxy, moment):
    """Each kind of operation meets a connection that breaks just before or after its commit."""
    ledger = ledger_of(behind_proxy)
    proxy.cut_next_commit(moment)
    assert ledger.reserve(reservation("a")).result() is None
    assert ledger.balance("default").reserved_nano == 100
    proxy.cut_next_commit(moment)
    assert ledger.settle("a", 30).result() is True
    assert ledger.settle("a", 30).result() is False
    for id, close in (("b", ledger.release), ("c", ledger.settle_in_full)):
        assert ledger.reserve(reservation(id)).result() is None
        proxy.cut_next_commit(moment)
        assert close(id).result() is True
        assert close(id).result() is False
    assert proxy.cuts == 4
    balance = ledger.balance("default")
    assert (balance.spent_nano, balance.reserved_nano) == (130, 0)
    assert ledger.verify() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_second_reservation_of_an_id_is_no_repetition(behind_proxy, proxy, moment):
    ledger = ledger_of(behind_proxy)
    assert ledger.reserve(reservation("a")).result() is None
    proxy.cut_next_commit(moment)
    with pytest.raises(OptLLMError, match="unique"):
        ledger.reserve(reservation("a")).result()
    assert ledger.balance("default").reserved_nano == 100


def test_a_whole_group_whose_reply_is_lost_counts_once(behind_proxy, proxy):
    ledger = ledger_of(behind_proxy)
    go = busy(behind_proxy)
    reserved = [ledger.reserve(reservation(f"r{n}")) for n in range(30)]
    settled = [ledger.settle(f"r{n}", 5) for n in range(20)]
    proxy.cut_next_commit("after")
    go.set()
    assert [future.result() for future in reserved] == [None] * 30
    assert [future.result() for future in settled] == [True] * 20
    balance = ledger.balance("default")
    assert (balance.spent_nano, balance.reserved_nano) == (100, 1_000)
    assert ledger.verify() == []


def test_callers_notice_nothing_when_their_connections_are_terminated(postgresql_url):
    name = f"optllm-{random.getrandbits(48):x}"
    with (
        closing(Database(f"{postgresql_url}&application_name={name}")) as database,
        closing(Database(postgresql_url)) as executioner,
        ThreadPoolExecutor(8) as pool,
    ):
        ledger = ledger_of(database)

        progress = threading.Semaphore(0)

        def keep_calling(caller: int) -> None:
            for n in range(25):
                id = f"{caller}-{n}"
                assert ledger.reserve(reservation(id)).result() is None
                assert ledger.settle(id, 3).result() is True
                progress.release()

        callers = [pool.submit(keep_calling, n) for n in range(8)]
        ended = 0
        for _ in range(10):
            for _ in range(15):
                assert progress.acquire(timeout=30), [caller.exception(0) for caller in callers]
            ended += executioner.submit(lambda connection: terminate(connection, name)).result()
        for caller in callers:
            caller.result()
        assert ended >= 5
        balance = ledger.balance("default")
        assert (balance.spent_nano, balance.reserved_nano) == (600, 0)
        assert ledger.verify() == []


def terminate(connection, name: str) -> int:
    found = connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        (name,),
    ).all()
    return len(found)


# Clocks that jump


def test_a_clock_that_jumps_loses_no_money(store_url):
    chance = random.Random(11)
    now = [1.7e9]
    with closing(Database(store_url)) as database:
        ledger = Ledger(database, lambda: now[0])
        ledger.set_budget(Budget("1000e-9", "hour"))
        under_way: list[str] = []
        for n in range(150):
            now[0] += chance.choice((0, 1, 61, 3_600, -3_600, -86_400, 86_400))
            granted_as = ledger.reserve(reservation(f"r{n}", chance.randint(1, 400))).result()
            under_way += [] if isinstance(granted_as, Refusal) else [f"r{n}"]
            if chance.random() < 0.5 and under_way:
                id = under_way.pop(chance.randrange(len(under_way)))
                assert chance.choice((ledger.release, ledger.settle_in_full))(id).result() is True
            if chance.random() < 0.1:
                ledger.recover()
            if n % 10 == 0:
                assert ledger.verify() == []
                assert most_used(database) <= 1_000
        for id in under_way:
            assert ledger.settle(id, 0).result() is True
        assert ledger.verify() == []
        with database.read() as connection:
            assert connection.scalar(select(func.sum(balances.c.reserved_nano))) == 0


def most_used(database: Database) -> int:
    used = func.max(balances.c.spent_nano + balances.c.reserved_nano)
    with database.read() as connection:
        return connection.scalar(select(used)) or 0
