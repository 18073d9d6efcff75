"""Several workers behind one port: one budget, one memory; and a stop that drains streams."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from running import RunningServer, until, write_config
from simulated_entries import model_entries

from optllm_router.ledger import Ledger
from optllm_router.scores import Scores
from optllm_router.simulation import SimulationServer
from optllm_router.store import Database

QUESTION = {"model": "sim-small", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}


def ask(server: RunningServer, **fields) -> httpx.Response:
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json={**QUESTION, **fields}, timeout=120)


def test_two_workers_never_spend_more_than_the_one_budget(provider, store_url, tmp_path):
    models = [entry for entry in model_entries(provider.base_url) if "small" in str(entry)]
    before = len(provider.served.get("sim-small", ()))
    config = write_config(tmp_path, models, store=store_url, budget="0.005 USD", max_retries=0)
    with RunningServer(config, "--workers", "2") as server, ThreadPoolExecutor(16) as pool:
        until(lambda: len(server.events("worker started")) == 2, seconds=60)
        answers = list(pool.map(lambda _: ask(server), range(120)))
        metrics = httpx.get(f"{server.url}/metrics").text
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}, statuses
    database = Database(store_url)
    try:
        ledger = Ledger(database)
        (balance,) = ledger.balances()
        assert ledger.verify() == []
    finally:
        database.close()
    paid = [int(one.headers["x-optllm-cost-nano"]) for one in answers if one.status_code == 200]
    assert balance.spent_nano == sum(paid) <= balance.limit_nano
    assert balance.reserved_nano == 0
    assert len(provider.served["sim-small"]) - before == len(paid)
    # Whichever worker was asked, it told of both.
    (told,) = [line for line in metrics.splitlines() if line.startswith("optllm_answers_total")]
    assert float(told.rpartition(" ")[2]) == len(paid)


def test_each_score_is_learnt_once_by_every_process(store_url):
    learnt: dict[str, list] = {"mine": [], "theirs": []}
    database = Database(store_url)
    try:
        records = graded_records(database)
        now = time.time()
        mine = Scores(records, learnt["mine"].append, clock=lambda: now)
        theirs = Scores(records, learnt["theirs"].append, clock=lambda: now)
        mine.learn(records.add_feedback("d", 1.0).result())
        for scores in (mine, theirs, mine, theirs):
            scores.catch_up()
        assert [one.score for one in learnt["mine"]] == [1.0]
        assert [one.score for one in learnt["theirs"]] == [1.0]
        theirs.learn(records.add_feedback("d", 0.25).result())
        mine.catch_up()
        for name in ("mine", "theirs"):
            assert [(one.score, one.replaces) for one in learnt[name]] == [(1.0, None), (0.25, 1.0)]
    finally:
        database.close()


def graded_records(database: Database):
    from optllm_router._types import Decision, Outcome, Usage
    from optllm_router.store import Records

    records = Records(database)
    records.add_decision(Decision("d", "a", (), 0.5, 0.1, 1, 1.0, 0.0, "because"), "question")
    outcome = Outcome("d", "a", "ok", Usage(1, 1), 1, 0.1)
    records.add_outcome(outcome, attempt=0, prompt_bytes=8).result()
    return records


@pytest.fixture
def slow_config(tmp_path):
    """A provider that takes a second and a half for an answer."""
    with SimulationServer(latency_seconds=1.5) as provider:
        yield write_config(tmp_path, model_entries(provider.base_url), budget="1 USD")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_lets_answers_under_way_finish(slow_config, workers):
    with RunningServer(slow_config, "--workers", str(workers)) as server:
        assert ask(server).status_code == 200  # litellm's first call takes long
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(server, stream=True)))
        asking.start()
        time.sleep(0.7)
        assert server.stop() == 0
        asking.join(30)
    assert answers[0].status_code == 200
    assert answers[0].text.endswith("data: [DONE]\n\n")


def test_a_stop_cuts_what_takes_longer_than_the_grace_and_settles_it(tmp_path):
    with SimulationServer(latency_seconds=60) as provider:
        config = write_config(tmp_path, model_entries(provider.base_url), budget="1 USD")
        with RunningServer(config, "--grace", "1") as server:
            answers: list[httpx.Response] = []
            asking = threading.Thread(target=lambda: answers.append(ask(server)))
            asking.start()
            while not provider.requests:
                time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            server.process.wait(30)
            assert time.monotonic() - start < 15
            asking.join(30)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "stopping"
    database = Database(f"sqlite:///{tmp_path}/optllm.db")
    try:
        (balance,) = Ledger(database).balances()
    finally:
        database.close()
    assert balance.reserved_nano == 0
    assert balance.spent_nano > 0  # the provider may have charged for it
