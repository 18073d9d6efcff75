"""A budget that concurrent calls cannot walk through, watched from another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import textwrap
import time

import litellm_clients

from optllm_router import AsyncOptLLM, BudgetExceededError
from optllm_router.ledger import Ledger
from optllm_router.simulation import SIMULATED_MODELS, SimulatedModel, SimulationServer
from optllm_router.store import Database

CALLS, PAID = 200, 50
TOKENS, NANO_PER_TOKEN = 5, 3000
LIMIT_NANO = PAID * TOKENS * NANO_PER_TOKEN
# Says more than TOKENS tokens to anything, so that every answer is cut to exactly as many.
MODEL = SimulatedModel("sim-even", 0.0, 3.0, SIMULATED_MODELS[0].skill, 60)

OBSERVER = """
    import json, sys, threading
    from sqlalchemy import create_engine, text

    engine = create_engine(sys.argv[1])
    question = text(
        "SELECT b.spent_nano, b.reserved_nano, l.limit_nano"
        " FROM balances b JOIN budgets l ON l.name = b.budget"
    )
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    seen, polls, over = set(), 0, []
    print("ready", flush=True)
    while not stop.wait(0.002):
        with engine.connect() as connection:
            for spent, reserved, limit in connection.execute(question):
                polls += 1
                seen.add((spent, reserved))
                if spent + reserved > limit:
                    over.append((spent, reserved, limit))
    engine.dispose()
    print(json.dumps({"polls": polls, "seen": sorted(seen), "over": over}), flush=True)
"""


class Observer:
    """A process that polls the balances for as long as the block lasts."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql://", "postgresql+psycopg://")

    def __enter__(self) -> Observer:
        command = [sys.executable, "-c", textwrap.dedent(OBSERVER), self._url]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_) -> None:
        out, _ = self._process.communicate("stop\n", timeout=30)
        assert self._process.returncode == 0
        report = json.loads(out)
        self.polls, self.over = report["polls"], report["over"]
        self.seen = [tuple(pair) for pair in report["seen"]]


def entry(base_url: str) -> dict:
    params = {
        "model": f"openai/{MODEL.name}",
        "api_base": base_url,
        "api_key": "unused",
        "input_cost_per_token": 0,
        "output_cost_per_token": f"{NANO_PER_TOKEN}e-9",
        "max_tokens": TOKENS,
    }
    return {"model_name": MODEL.name, "litellm_params": params}


async def ask_all(client: AsyncOptLLM) -> list:
    def ask(n: int):
        messages = [{"role": "user", "content": f"What is {n} + 30?"}]
        return client.chat.completions.create(messages=messages)

    return await asyncio.gather(*map(ask, range(CALLS)), return_exceptions=True)


def test_a_cap_for_fifty_of_two_hundred_concurrent_calls_pays_for_exactly_fifty(store_url):
    async def run(base_url: str):
        budget = f"{LIMIT_NANO}e-9 USD"
        async with AsyncOptLLM([entry(base_url)], budget=budget, store=store_url) as client:
            with Observer(store_url) as observer:
                results = await ask_all(client)
            return results, observer, client.balance, client.verify()

    with SimulationServer(models=[MODEL], latency_seconds=0.2) as server:
        results, observer, balance, differences = litellm_clients.run(run(server.base_url))
        assert server.requests == {MODEL.name: PAID}
        assert {usage.completion_tokens for usage in server.served[MODEL.name]} == {TOKENS}
    refused = [result for result in results if isinstance(result, BudgetExceededError)]
    answered = [result for result in results if not isinstance(result, BaseException)]
    assert (len(answered), len(refused)) == (PAID, CALLS - PAID)
    assert sum(answer.optllm.cost_nano for answer in answered) == LIMIT_NANO
    assert (balance.spent_nano, balance.reserved_nano) == (LIMIT_NANO, 0)
    assert differences == []
    assert observer.over == []
    # It was watched while it happened: money was seen set aside before it was spent.
    assert observer.polls > 20
    assert any(reserved > 0 for _, reserved in observer.seen)
    assert max(sum(pair) for pair in observer.seen) == LIMIT_NANO


def test_the_observer_can_see_an_overspent_budget(sqlite_url):
    """A watchman who never cries is no watchman."""
    from sqlalchemy import text

    from optllm_router._money import Budget
    from optllm_router.ledger import Reservation

    database = Database(sqlite_url)
    ledger = Ledger(database)
    ledger.set_budget(Budget("10e-9"))
    ledger.reserve(Reservation("a", "a", "m", 10, (), "test", 60.0)).result()
    database.submit(lambda c: c.execute(text("UPDATE balances SET spent_nano = 1"))).result()
    with Observer(sqlite_url) as observer:
        time.sleep(0.2)
    database.close()
    assert observer.over
    assert set(map(tuple, observer.over)) == {(1, 10, 10)}


def test_clients_that_share_a_store_share_its_budget(sqlite_url):
    async def run(base_url: str):
        budget = f"{LIMIT_NANO}e-9 USD"
        made = [AsyncOptLLM([entry(base_url)], budget=budget, store=sqlite_url) for _ in range(3)]
        try:
            results = await asyncio.gather(*map(ask_all, made))
            return [result for each in results for result in each]
        finally:
            for client in made:
                await client.close()  # what each has set aside for calls to come is given back

    with SimulationServer(models=[MODEL]) as server:
        results = litellm_clients.run(run(server.base_url))
        assert server.requests == {MODEL.name: PAID}
    refused = sum(isinstance(result, BudgetExceededError) for result in results)
    assert refused == 3 * CALLS - PAID
    with contextlib.closing(Database(sqlite_url)) as database:
        (balance,) = Ledger(database).balances()
    assert (balance.spent_nano, balance.reserved_nano) == (LIMIT_NANO, 0)
