"""``optllm serve`` in the same weather, with callers that hang up: openai's client never learns of
anything but OpenAI's errors, and the server holds in the end what it held in the beginning.

It runs as who sets nothing has it, but for its time limit: two retries, and all other candidates to
fall back to. The long form is ``pytest tests/chaos --long --log-cli-level INFO``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from chaos_checks import calls_under_way, check_books, eventually
from chaos_provider import embedding_entries, model_entries
from chaos_requests import Asked, Heard, ask_all, is_late, is_right, requests
from running import RunningServer, write_config

from optllm_router.ledger import Ledger
from optllm_router.store import Database

SEED = 20261126
WARM, CALLS, LONG_CALLS = 30, 80, 10_000
TIMEOUT_SECONDS = 8
"""Of the server's answers: what nobody answers is given up by it, too."""
MOST_LATE = 0.05
"""Of the others, the part that may be given up: litellm takes seconds for each stream of 10 MB, in
which the server does nothing else."""
MOST_THREADS = {
    "asyncio": min(32, (os.cpu_count() or 1) + 4),
    "AnyIO worker thread": 40,
}
"""Of the pools that grow with use and keep what they have: as many as each may ever have."""
SERVER = str(Path(__file__).with_name("chaos_server.py"))

_log = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc/self")


def test_a_server(provider, long, tmp_path):
    entries = [*model_entries(provider.base_url), *embedding_entries(provider.base_url)]
    config = write_config(
        tmp_path, entries, budget="1000 USD", timeout_seconds=TIMEOUT_SECONDS, seed=SEED
    )
    store, billed_before = tmp_path / "optllm.db", provider.bill()
    with RunningServer(config, program=(SERVER,)) as server:
        storm(server, requests(SEED, WARM, hurried=1.0), store)
        before = held(server)
        asked = requests(SEED + 1, LONG_CALLS if long else CALLS, hurried=0.8)
        storm(server, asked, store)
        with suppress(AssertionError):
            eventually(lambda: left_over(held(server), before) == [], 15)
        assert left_over(held(server), before) == []
        with closing(Database(f"sqlite:///{store}")) as database:
            ledger = Ledger(database)
            assert ledger.verify() == []
        billed = provider.bill()
        assert server.stop() == 0
    check_books(store, {name: nano - billed_before.get(name, 0) for name, nano in billed.items()})
    assert complaints(server.log) == []


def storm(server: RunningServer, asked: Sequence[Asked], store: Path) -> None:
    """Ask for all of it, and wait until the server has closed every call."""
    began = time.monotonic()
    heard = asyncio.run(ask_all(f"{server.url}/v1", asked))
    _log.info("%d requests, %.1f s; %s", len(asked), time.monotonic() - began, summary(heard))
    late = [one for one in heard if is_late(one)]
    assert len(late) <= MOST_LATE * len(asked), late
    assert [one for one in heard if not (is_right(one) or is_late(one))] == []
    eventually(lambda: calls_under_way(store) == 0, TIMEOUT_SECONDS + 5)
    eventually(lambda: "optllm_requests_under_way 1.0" in metrics(server))  # the one that looks


def held(server: RunningServer) -> dict:
    """What the server holds now."""
    told = len(server.events("held"))
    server.process.send_signal(signal.SIGUSR1)
    eventually(lambda: len(server.events("held")) > told, 30)
    return server.events("held")[-1]


def left_over(now: dict, before: dict) -> list[str]:
    """What was not given back: tasks, threads (of a pool those beyond its bound), sockets."""
    found = list((Counter(now["tasks"]) - Counter(before["tasks"])).elements())
    most = _kinds(before["threads"]) | Counter(MOST_THREADS)
    for kind, count in (_kinds(now["threads"]) - most).items():
        found.append(f"{count} more threads {kind!r} than {most[kind]}")
    if now["sockets"] > before["sockets"]:
        found.append(f"{now['sockets']} sockets instead of {before['sockets']}")
    return found


def _kinds(threads: Sequence[str]) -> Counter[str]:
    """How many there are of each name without its numbers."""
    return Counter(re.sub(r"[_\s-]?\d+", "", one) for one in threads)


HELD = {"threads": ["MainThread 1", "asyncio_0 2", "optllm-store 3"], "sockets": 1, "tasks": ["a"]}


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("optllm-store", 1000, ["1000 more threads 'optllm-store' than 1"]),
        ("optllm-hedge", 1, ["1 more threads 'optllm-hedge' than 0"]),
        ("asyncio", MOST_THREADS["asyncio"] - 1, []),
        ("asyncio", MOST_THREADS["asyncio"] + 2, ["3 more threads 'asyncio' than"]),
        ("AnyIO worker thread", 40, []),
        ("AnyIO worker thread", 41, ["1 more threads 'AnyIO worker thread' than 40"]),
    ],
)
def test_threads_that_are_left_over_are_counted(kind, more, told):
    threads = [*HELD["threads"], *(f"{kind}_{n} {1000 + n}" for n in range(1, more + 1))]
    found = left_over({**HELD, "threads": threads}, HELD)
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def metrics(server: RunningServer) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=60).text


def summary(heard: Sequence[Heard]) -> str:
    kinds = Counter("left" if one.left else type(one.error).__name__ for one in heard)
    return str(dict(kinds))


def complaints(log: Sequence[str]) -> list[str]:
    """Lines of the log that tell of what nobody expected."""
    return [line for line in log if re.search(r"unexpected|Traceback|never retrieved", line)]
