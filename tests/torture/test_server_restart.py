"""A PostgreSQL server of our own is killed and started again while callers spend."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from optllm_router._errors import StoreError
from optllm_router._money import Budget
from optllm_router.ledger import (
    Charge,
    LeasingLedger,
    Ledger,
    Period,
    Reservation,
    reconcile,
)
from optllm_router.store import Database

LIMIT = 10**9
MOST, COST = 1_000, 300


def binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A cluster in a folder, run by a user who may."""

    def __init__(self, folder: Path) -> None:
        programs = binaries()
        if programs is None:
            pytest.skip("PostgreSQL's initdb is not installed here")
        self._programs, self._data = programs, folder / "data"
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            try:
                shutil.chown(folder, self._user)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-p {self.port} -k {folder} -c listen_addresses=127.0.0.1"
        self._options = ("-w", "-D", self._data, "-l", folder / "log", "-o", options)
        self._run("pg_ctl", "start", *self._options)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def crash_and_restart(self) -> None:
        """As if the power had failed."""
        self._run("pg_ctl", "restart", "-m", "immediate", *self._options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", self._data)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(
            command, user=self._user, cwd="/", stdout=subprocess.DEVNULL, timeout=120, check=False
        )
        assert done.returncode == 0, command


@pytest.fixture
def own_server():
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="optllm-pg-") as folder:
        server = Server(Path(folder))
        yield server
        server.stop()


@pytest.mark.parametrize("kind", [Ledger, LeasingLedger])
def test_a_server_that_is_restarted_loses_and_doubles_no_money(own_server, kind):
    database = Database(own_server.url)
    ledger = kind(database)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    stop = threading.Event()
    seen: Counter[str] = Counter()
    sent: list[list[str]] = [[] for _ in range(8)]

    def keep_calling(caller: int) -> int:
        charged = 0
        n = 0
        while not stop.is_set():
            n += 1
            id = f"{caller}-{n}"
            try:
                granted = ledger.reserve(Reservation(id, id, "m", MOST, (), "test", 1.0)).result()
            except StoreError as error:
                named = own_server.url.rpartition("@")[2] in str(error)
                seen["refused for a fault" if named else "refused without a name"] += 1
                ledger.release(id)  # as a flow does: the write may have arrived
                time.sleep(0.01)
                continue
            assert granted is None
            charged += 1
            sent[caller].append(id)
            try:
                assert ledger.settle(id, COST).result() is True
                seen["settled"] += 1
            except StoreError:
                seen["stays open"] += 1
        return charged

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(keep_calling, n) for n in range(8)]
        for _ in range(3):
            time.sleep(1.0)
            own_server.crash_and_restart()
        time.sleep(1.0)
        before = seen["settled"]
        time.sleep(1.0)
        assert seen["settled"] > before, "nobody gets anywhere after a restart"
        stop.set()
        charged = sum(caller.result() for caller in callers)
    if isinstance(ledger, LeasingLedger):
        try:
            ledger.close()
        except StoreError:
            seen["told at the end"] += 1
    later = Ledger(database, lambda: time.time() + 3_600)
    later.recover()
    with closing(database):
        assert later.verify() == []
        (balance,) = later.balances()
        bill = [Charge(id, COST) for ids in sent for id in ids]
        reconcile(later, database, bill, complete=Period(0.0, time.time() + 3_600))
        assert later.verify() == []
        assert later.balance("default").spent_nano == COST * charged == COST * len(bill)
    assert seen["refused for a fault"] > seen["refused without a name"] == 0
    assert balance.reserved_nano == 0
    assert charged * COST <= balance.spent_nano <= LIMIT
    if kind is Ledger:  # what could not be settled counts in full, and so may what was refused
        unsure = seen["stays open"] + seen["refused for a fault"]
        assert balance.spent_nano <= seen["settled"] * COST + unsure * MOST
