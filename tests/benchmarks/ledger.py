"""How many reservations the ledger keeps durably per second, and what it adds to a request.

    python tests/benchmarks/ledger.py --json

One pair is a reservation and its settlement, each waited for until it is on disk. Figures are
medians over ``--runs`` runs, on SQLite (WAL, ``synchronous=FULL``) and on PostgreSQL, for one
caller alone, for 64 callers in one process, and for 64 callers in four; "leased threads" draw from
block leases, as the client does, and wait for no commit. After every run the books must be right
to the nano-dollar, or the benchmark fails. Beside them, from the same run: a flush of this disk (no
durable commit can be faster), the plain ``sqlite3`` module with one transaction per operation, and
what a request through the client takes when the model answers at once, and which part of that is
the ledger's: with block leases, and with a commit for each step ("direct").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy

from optllm_router import Budget, Candidate, OptLLM, Price
from optllm_router._steps import Close, Reserve
from optllm_router._types import Call, Completion, Usage
from optllm_router.ledger import LeasingLedger, Ledger, Refusal, Reservation
from optllm_router.store import Database

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/postgres"
BUDGET = Budget(1_000_000)
MOST_NANO = 1_000_000


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98]}


def median_figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number over the runs."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


# Pairs per second: the parent starts workers, which hold the callers.


def one_pair(ledger: Ledger, id: str, cost: int) -> float:
    """Reserve, settle, and wait for both; seconds taken."""
    start = time.perf_counter()
    granted_as = ledger.reserve(
        Reservation(id, id, "benchmark", MOST_NANO, (), "benchmark", 600.0)
    ).result()
    if isinstance(granted_as, Refusal) or not ledger.settle(id, cost).result():
        raise AssertionError(f"{id}: refused ({granted_as}) or settled before")
    return time.perf_counter() - start


async def one_async_pair(ledger: Ledger, id: str, cost: int) -> float:
    """As :func:`one_pair`, for coroutines."""
    start = time.perf_counter()
    reservation = Reservation(id, id, "benchmark", MOST_NANO, (), "benchmark", 600.0)
    granted_as = await asyncio.wrap_future(ledger.reserve(reservation))
    if isinstance(granted_as, Refusal) or not await asyncio.wrap_future(ledger.settle(id, cost)):
        raise AssertionError(f"{id}: refused ({granted_as}) or settled before")
    return time.perf_counter() - start


def as_threads(ledger: Ledger, callers: int, costs: list[int]) -> list[float]:
    """Seconds of each pair, from so many threads."""

    def call(n: int) -> list[float]:
        mine = range(n, len(costs), callers)
        return [one_pair(ledger, new_id(), costs[i]) for i in mine]

    with ThreadPoolExecutor(callers) as pool:
        return [seconds for part in pool.map(call, range(callers)) for seconds in part]


def as_tasks(ledger: Ledger, callers: int, costs: list[int]) -> list[float]:
    """Seconds of each pair, from so many asyncio tasks."""

    async def call(n: int) -> list[float]:
        mine = range(n, len(costs), callers)
        return [await one_async_pair(ledger, new_id(), costs[i]) for i in mine]

    async def everyone() -> list[list[float]]:
        return await asyncio.gather(*(call(n) for n in range(callers)))

    return [seconds for part in asyncio.run(everyone()) for seconds in part]


CALLERS: dict[str, Callable[[Ledger, int, list[int]], list[float]]] = {
    "threads": as_threads,
    "leased threads": as_threads,
    "tasks": as_tasks,
}


def new_id() -> str:
    """An id like those of decisions: it begins with the time."""
    return f"{time.time_ns():016x}{random.getrandbits(48):012x}"


def work(url: str, kind: str, callers: int, pairs: int) -> None:
    """What a worker process does: wait for the start, make the pairs, print what came of it."""
    costs = [random.randrange(MOST_NANO) for _ in range(pairs)]
    with closing(Database(url)) as database:
        ledger = (LeasingLedger if kind.startswith("leased") else Ledger)(database)
        print("ready", flush=True)
        sys.stdin.readline()
        start, busy = time.time(), time.process_time()
        seconds = CALLERS[kind](ledger, callers, costs)
        if isinstance(ledger, LeasingLedger):
            ledger.close()  # all of it is on disk
        end, busy = time.time(), time.process_time() - busy
    result = {"seconds": seconds, "start": start, "end": end, "busy": busy, "spent": sum(costs)}
    print(json.dumps(result), flush=True)


def one_run(url: str, kind: str, processes: int, callers: int, pairs: int) -> dict[str, float]:
    """Pairs per second of all workers together, from the first start to the last end."""
    with closing(Database(url)) as database:
        ledger = Ledger(database)
        ledger.set_budget(BUDGET)
        command = [sys.executable, __file__, "--worker", url, kind]
        command += [str(callers // processes), str(pairs // processes)]
        pipe = subprocess.PIPE
        workers = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)
        ]
        for worker in workers:
            if worker.stdout is None or worker.stdout.readline() != "ready\n":
                raise AssertionError("a worker did not start")
        # communicate() would give each its start only after the one before has ended.
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.write("go\n")
                worker.stdin.flush()
        results = [json.loads(worker.communicate()[0]) for worker in workers]
        balance, differences = ledger.balance(BUDGET.name), ledger.verify()
    spent = sum(result["spent"] for result in results)
    if (balance.spent_nano, balance.reserved_nano, differences) != (spent, 0, []):
        raise AssertionError(f"{spent} nano-dollars were spent, but: {balance} {differences}")
    seconds = [second for result in results for second in result["seconds"]]
    wall = max(result["end"] for result in results) - min(result["start"] for result in results)
    busy = sum(result["busy"] for result in results)
    return {
        "pairs_per_second": len(seconds) / wall,
        "cpu_us_per_pair": 1e6 * busy / len(seconds),
        **quantiles(seconds),
    }


@contextmanager
def empty_sqlite(folder: Path) -> Iterator[str]:
    """URL of a new file."""
    with tempfile.TemporaryDirectory(dir=folder) as mine:
        yield f"sqlite:///{mine}/ledger.db"


@contextmanager
def empty_postgresql(server: str) -> Iterator[str]:
    """URL of a new schema, dropped in the end."""
    schema = f"optllm_benchmark_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    try:
        yield f"{server}?options=-csearch_path%3D{schema}"
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        engine.dispose()


def pair_figures(
    empty: Callable[[], Any], options: argparse.Namespace, *kinds: str
) -> list[dict[str, Any]]:
    """One entry per shape of the load."""
    shapes = [("threads", 1, 1, options.pairs // 20)]
    shapes += [(kind, 1, options.callers, options.pairs) for kind in kinds]
    shapes += [("threads", 4, options.callers, options.pairs)]
    figures = []
    for kind, processes, callers, pairs in shapes:
        runs = []
        for _ in range(options.runs):
            with empty() as url:
                runs.append(one_run(url, kind, processes, callers, pairs))
        shape = {"callers": callers, "callers_are": kind, "processes": processes, "pairs": pairs}
        figures.append({**shape, **median_figures(runs)})
    return figures


# What the disk and the database do without us


def flush_figures(folder: Path, flushes: int = 200) -> dict[str, float]:
    """Writing two pages of a file over and flushing them, as a commit must at least."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4_096 * 256))
        for n in range(flushes):
            os.pwrite(file.fileno(), os.urandom(8_192), 4_096 * (n % 250))
            start = time.perf_counter()
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            seconds.append(time.perf_counter() - start)
    return quantiles(seconds)


def plain_sqlite_run(path: Path, pairs: int) -> dict[str, float]:
    """The same money with the ``sqlite3`` module: one caller, one transaction per operation."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
            "CREATE TABLE balance (spent INTEGER, reserved INTEGER);"
            "CREATE TABLE entries (id TEXT PRIMARY KEY, amount INTEGER, cost INTEGER);"
            "INSERT INTO balance VALUES (0, 0)"
        )
        seconds = []
        for _ in range(pairs):
            start = time.perf_counter()
            plain_sqlite_pair(connection, new_id(), random.randrange(MOST_NANO))
            seconds.append(time.perf_counter() - start)
    return {"pairs_per_second": pairs / sum(seconds), **quantiles(seconds)}


def plain_sqlite_pair(connection: sqlite3.Connection, id: str, cost: int) -> None:
    """Reserve and settle."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "UPDATE balance SET reserved = reserved + ?1 WHERE spent + reserved + ?1 <= ?2",
        (MOST_NANO, BUDGET.limit_nano),
    )
    connection.execute("INSERT INTO entries VALUES (?, ?, NULL)", (id, MOST_NANO))
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE entries SET cost = ? WHERE id = ? AND cost IS NULL", (cost, id))
    connection.execute(
        "UPDATE balance SET reserved = reserved - ?, spent = spent + ?", (MOST_NANO, cost)
    )
    connection.execute("COMMIT")


def plain_sqlite_figures(options: argparse.Namespace) -> dict[str, float]:
    """Median over the runs."""
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(dir=options.folder) as mine:
            runs.append(plain_sqlite_run(Path(mine) / "plain.db", options.pairs // 20))
    return median_figures(runs)


# Through the client


INSTANT_PRICE = Price(Decimal(150), Decimal(600), "benchmark")
INSTANT_MODELS = [Candidate(name, f"openai/{name}", INSTANT_PRICE, 100) for name in ("a", "b")]
INSTANT_CALL_NANO = 3 * 150 + 2 * 600


class Instant:
    """A transport whose models answer at once."""

    def check(self, candidates: Any) -> None:
        """Every candidate can be called."""

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Two tokens for three."""
        message = {"role": "assistant", "content": "4"}
        body = {
            "id": "instant",
            "object": "chat.completion",
            "created": 0,
            "model": candidate.model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
        return Completion(body, Usage(3, 2))

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`."""
        return self.send(candidate, call)


class Direct(Ledger):
    """The ledger without leases, in the client's place for it."""

    def close(self) -> None:
        """Nothing is held."""


def client_run(url: str, requests: int, *, direct: bool) -> dict[str, float]:
    """What a request takes, and which part of that was the ledger's."""
    whole, ledger = [], []
    with OptLLM(INSTANT_MODELS, budget=BUDGET, store=url, transport=Instant(), seed=0) as client:
        runtime, performer = client._runtime, client._runtime._performer
        if direct:
            runtime.ledger.close()
            own = Direct(runtime._database)
            runtime.ledger = performer._ledger = own  # type: ignore[assignment]
        perform = performer.perform

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return perform(*arguments)
            finally:
                if isinstance(arguments[-1], (Reserve, Close)):
                    ledger[-1] += time.perf_counter() - start

        performer.perform = timed  # type: ignore[method-assign]
        for n in range(requests):
            messages = [{"role": "user", "content": f"What is 2 + {n}?"}]
            ledger.append(0.0)
            start = time.perf_counter()
            client.chat.completions.create(messages=messages)
            whole.append(time.perf_counter() - start)
        balance, differences = client.balance, client.verify()
    spent = requests * INSTANT_CALL_NANO
    if balance is None or balance.reserved_nano or balance.spent_nano != spent or differences:
        raise AssertionError(f"{spent} nano-dollars were spent, but: {balance} {differences}")
    parts = {"request": whole, "ledger": ledger}
    return {
        f"{part}_{name}": value
        for part, seconds in parts.items()
        for name, value in quantiles(seconds).items()
    }


def client_figures(empty: Callable[[], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the runs, with block leases and without."""
    runs: dict[str, list[dict[str, Any]]] = {"leased": [], "direct": []}
    for _ in range(options.runs):
        for kind, figures in runs.items():
            with empty() as url:
                figures.append(client_run(url, options.pairs // 20, direct=kind == "direct"))
    return {kind: median_figures(figures) for kind, figures in runs.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
    }


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """All of them; PostgreSQL's are null when ``--postgresql ''`` is given."""

    def sqlite() -> Any:
        return empty_sqlite(options.folder)

    def postgresql() -> Any:
        return empty_postgresql(options.postgresql)

    return {
        "flush": flush_figures(options.folder),
        "plain_sqlite3": plain_sqlite_figures(options),
        "sqlite": pair_figures(sqlite, options, "threads", "tasks", "leased threads"),
        "postgresql": pair_figures(postgresql, options, "threads", "leased threads")
        if options.postgresql
        else None,
        "client_sqlite": client_figures(sqlite, options),
        "client_postgresql": client_figures(postgresql, options) if options.postgresql else None,
        "machine": machine(),
    }


def main() -> None:
    """Measure, and print one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--postgresql", default=POSTGRESQL, help="server; '' for none")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        url, kind, callers, pairs = options.worker
        work(url, kind, int(callers), int(pairs))
        return
    print(json.dumps(figures(options), indent=None if options.json else 2))


if __name__ == "__main__":
    main()
