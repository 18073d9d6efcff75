"""A provider that fails in eleven ways, callers that leave in four: nothing of any call is lost.

Every call ends in an answer or in an error of its own kind, the books are the provider's bill (or
more, where nobody could know it), and all threads, tasks, sockets and memory are given back. The
long form, ten thousand calls, is ``pytest tests/chaos --long --log-cli-level INFO``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import litellm_clients
import pytest
from chaos_calls import End, Order, aask_all, ask_all, is_right, orders
from chaos_checks import Resources, check_books, eventually, is_of_litellm, memory
from chaos_provider import KINDS, LOUD, model_entries

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router.transports.litellm import load_litellm

SEED = 20261122
WARM, CALLS, LONG_CALLS = 40, 250, 5_000
"""Of each kind of client; the first ones only load what stays for the life of the process."""
DEFAULT_CALLS = 50
"""In the short form, with retries: a provider that always fails is waited for for seconds."""
AT_ONCE = {"max_retries": 0, "explore": 0}
"""Settings of a client that gives up at the first fault of the last candidate."""
ROUNDS = 5
MOST_BLOCKS_PER_CALL = 50
"""How many more of Python's blocks of memory are in use for each call after the second round: what
these tests keep of it is twenty, a stream that is not let go of hundreds."""
MOST_MEGABYTES = 150
"""How much more memory the process has after the last round than after the second: answers of
10 MB that come together set a new mark, and what is freed in pieces is not given back."""

_log = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc/self")


@pytest.fixture(autouse=True)
def _no_line_per_decision(caplog):
    """pytest would keep them all, and they would be taken for memory that calls leave behind."""
    caplog.set_level(logging.WARNING, "optllm_router.decisions")


@pytest.fixture
def _litellm_makes_clients_one_by_one(monkeypatch):
    """Where threads come together, litellm makes a client each, keeps one, and leaves the others
    open: their sockets would be taken for ours. Nothing public keeps it from that: it makes a
    client for every new time limit, at any moment, and does not hand out those that it forgets.
    """
    load_litellm()
    from litellm.llms.openai.openai import OpenAIChatCompletion

    make, lock = OpenAIChatCompletion._get_openai_client, threading.Lock()

    def make_alone(*args, **kw):
        with lock:
            return make(*args, **kw)

    monkeypatch.setattr(OpenAIChatCompletion, "_get_openai_client", make_alone)


@pytest.fixture
def count(long) -> int:
    return LONG_CALLS if long else CALLS


@pytest.fixture
def default_count(long) -> int:
    return LONG_CALLS if long else DEFAULT_CALLS


FROM_THREADS = ("read", "read", "close", "drop")
FROM_TASKS = (*FROM_THREADS, "cancel", "cancel")


@pytest.mark.usefixtures("_litellm_makes_clients_one_by_one")
def test_threads(provider, count, tmp_path, caplog):
    warm = orders(SEED, WARM, FROM_THREADS)
    storm(provider, warm, tmp_path / "warm.db", threads, **AT_ONCE)
    asked = orders(SEED + 1, count, FROM_THREADS)
    storm(provider, asked, tmp_path / "books.db", threads, **AT_ONCE)
    assert not complaints(caplog)


def test_tasks(provider, count, tmp_path, caplog):
    warm = orders(SEED + 2, WARM, FROM_TASKS)
    storm(provider, warm, tmp_path / "warm.db", tasks, **AT_ONCE)
    asked = orders(SEED + 3, count, FROM_TASKS)
    storm(provider, asked, tmp_path / "books.db", tasks, **AT_ONCE)
    assert not complaints(caplog)


@pytest.mark.usefixtures("_litellm_makes_clients_one_by_one")
def test_threads_with_retries_and_fallbacks(provider, default_count, tmp_path, caplog):
    """As who sets nothing has them: two retries, and all other candidates to fall back to."""
    asked = orders(SEED + 4, default_count, FROM_THREADS, (*KINDS, LOUD))
    storm(provider, asked, tmp_path / "books.db", threads)
    assert not complaints(caplog)


def test_tasks_with_retries_and_fallbacks(provider, default_count, tmp_path, caplog):
    asked = orders(SEED + 5, default_count, FROM_TASKS, (*KINDS, LOUD))
    storm(provider, asked, tmp_path / "books.db", tasks)
    assert not complaints(caplog)


def storm(provider, asked: Sequence[Order], store: Path, ask, **settings) -> None:
    """Ask for all of it, then look at everything that must be right, or as before."""
    _log.info("%d calls in %s, seed %d", len(asked), ask.__name__, SEED)
    before, billed_before = Resources.now(), provider.bill()
    began = time.monotonic()
    ends = ask(
        asked,
        models=model_entries(provider.base_url),
        budget="1000 USD",
        store=f"sqlite:///{store}",
        seed=SEED,
        **settings,
    )
    _log.info("%.1f s; %s", time.monotonic() - began, summary(ends))
    assert [end for end in ends if not is_right(end)] == []
    billed = {name: nano - billed_before.get(name, 0) for name, nano in provider.bill().items()}
    check_books(store, billed)
    with suppress(AssertionError):
        eventually(lambda: not Resources.now().beyond(before))
    assert Resources.now().beyond(before) == []


def in_rounds(asked: Sequence[Order]) -> Iterator[Sequence[Order]]:
    """The calls in a few parts, where they are many; nothing may be left of the later ones."""
    if len(asked) < CALLS:
        yield asked
        return
    calls = len(asked) // ROUNDS
    blocks, megabytes = [], []
    for part in range(ROUNDS):
        yield asked[part * calls : (part + 1) * calls]
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        megabytes.append(memory() / 2**20)
    _log.info("blocks after each round: %s; MB: %s", blocks, [round(one) for one in megabytes])
    if len(asked) == LONG_CALLS:  # else what is loaded on first use outweighs them
        assert blocks[-1] - blocks[1] < MOST_BLOCKS_PER_CALL * calls * (ROUNDS - 2)
    assert megabytes[-1] - megabytes[1] < MOST_MEGABYTES


def threads(asked: Sequence[Order], **settings) -> list[End]:
    """Ask from threads, with a client of their own."""
    with OptLLM(**settings) as client:
        client.check()
        ends = [end for some in in_rounds(asked) for end in ask_all(client, some)]
        gc.collect()
        eventually(lambda: client.balance.reserved_nano == 0)
        assert client.verify() == []
    litellm_clients.close()
    return ends


def tasks(asked: Sequence[Order], **settings) -> list[End]:
    """Ask from tasks, with a client and an event loop of their own."""

    async def ask() -> list[End]:
        complained: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complained.append(context)
        )
        before = asyncio.all_tasks()
        async with AsyncOptLLM(**settings) as client:
            await client.check()
            ends = [end for some in in_rounds(asked) for end in await aask_all(client, some)]
            gc.collect()
            await asyncio.to_thread(eventually, lambda: client.balance.reserved_nano == 0)
            assert client.verify() == []
        left = asyncio.all_tasks() - before
        assert [task for task in left if not is_of_litellm(task)] == []
        assert complained == []
        return ends

    return litellm_clients.run(ask())


def summary(ends: Sequence[End]) -> str:
    kinds = Counter("cancelled" if e.cancelled else type(e.error).__name__ for e in ends)
    latest = max(ends, key=lambda end: end.late)
    return f"{dict(kinds)}; {latest.late:+.2f} s late at most: {latest.order}"


def complaints(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
