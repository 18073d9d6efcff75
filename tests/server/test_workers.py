"""Several workers behind one port: one budget, one memory; and a stop that drains streams."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from click.testing import CliRunner
from running import RunningServer, until, write_config
from simulated_entries import model_entries, through_httpx
from sqlalchemy import func, select

from optllm_router import ConfigurationError
from optllm_router._types import RateLimits
from optllm_router.cli import commands
from optllm_router.ledger import Ledger
from optllm_router.scores import Scores
from optllm_router.server import ServerOptions
from optllm_router.server.serving import _settings
from optllm_router.simulation import SimulationServer
from optllm_router.store import Database
from optllm_router.store.schema import conversations

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
    percents = [event["percent"] for event in server.events("budget threshold")]
    assert 50 in percents
    assert len(percents) == len(set(percents))
    # Whichever worker was asked, it told of both.
    (told,) = [line for line in metrics.splitlines() if line.startswith("optllm_answers_total")]
    assert float(told.rpartition(" ")[2]) == len(paid)


def test_a_conversation_stays_on_its_model_whichever_worker_is_asked(provider, store_url, tmp_path):
    (small,) = [one for one in model_entries(provider.base_url) if one["model_name"] == "sim-small"]
    small["router"] = {"transport": "httpx"}
    models = [{**small, "model_name": name} for name in ("one", "two", "three")]
    config = write_config(
        tmp_path, models, store=store_url, budget="1 USD", explore=100.0, seed=None
    )
    with (
        RunningServer(config, "--workers", "2") as server,
        contextlib.closing(Database(store_url)) as database,
    ):
        until(lambda: len(server.events("worker started")) == 2, seconds=60)
        for n in range(6):
            said = [{"role": "user", "content": f"What is {n} + 25?"}]
            asked_at = time.time()
            first = ask(server, model="auto", messages=said)
            said += [first.json()["choices"][0]["message"], {"role": "user", "content": "Sure?"}]
            until(partial(was_kept_since, database, asked_at), seconds=60)
            follow_ups = [ask(server, model="auto", messages=said) for _ in range(4)]
            told = {one.headers["x-optllm-candidate"] for one in follow_ups}
            assert told == {first.headers["x-optllm-candidate"]}


def was_kept_since(database: Database, moment: float) -> bool:
    """Whether others can know who answered a turn after that moment: no answer waits for it."""
    with database.read() as connection:
        last = connection.scalar(select(func.max(conversations.c.answered_at)))
    return last is not None and last >= moment


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
def slow_provider():
    """It takes a second and a half for an answer."""
    with SimulationServer(latency_seconds=1.5) as provider:
        yield provider


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_lets_answers_under_way_finish(slow_provider, tmp_path, workers):
    config = write_config(
        tmp_path, through_httpx(model_entries(slow_provider.base_url)), budget="1 USD"
    )
    with RunningServer(config, "--workers", str(workers)) as server:
        assert ask(server).status_code == 200
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(server, stream=True)))
        asking.start()
        until(lambda: slow_provider.requests.total() == 2, seconds=60)
        assert server.stop() == 0
        asking.join(30)
    assert answers[0].status_code == 200
    assert answers[0].text.endswith("data: [DONE]\n\n")


def test_a_stop_cuts_what_takes_longer_than_the_grace_and_settles_it(tmp_path):
    with SimulationServer(latency_seconds=60) as provider:
        config = write_config(
            tmp_path, through_httpx(model_entries(provider.base_url)), budget="1 USD"
        )
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


def test_a_worker_that_was_killed_counts_no_more_in_the_metrics(tmp_path):
    with SimulationServer(latency_seconds=60) as provider:
        config = write_config(
            tmp_path, through_httpx(model_entries(provider.base_url)), budget="1 USD"
        )
        with RunningServer(config, "--workers", "2") as server, ThreadPoolExecutor(1) as pool:
            until(lambda: len(server.events("worker started")) == 2, seconds=60)
            asking = pool.submit(ask, server)
            until(lambda: under_way(server) == 2, seconds=60)  # that one, and the one that looks
            for event in server.events("worker started"):
                os.kill(event["pid"], signal.SIGKILL)
            assert isinstance(asking.exception(60), httpx.TransportError)
            until(lambda: len(server.events("worker started")) == 4, seconds=60)
            until(lambda: under_way(server) == 1, seconds=60)


def under_way(server: RunningServer) -> float | None:
    try:
        text = httpx.get(f"{server.url}/metrics", timeout=60).text
    except httpx.TransportError:  # that worker was killed
        return None
    name = "optllm_requests_under_way "
    (value,) = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)


def test_workers_share_the_rate_limits_of_a_model(tmp_path):
    limits = {"rpm": 10, "tpm": 1_001, "max_parallel_requests": 4}
    config = write_config(tmp_path, model_entries("http://h/v1", **limits))

    def limits_of_a_worker(workers: int) -> set[RateLimits]:
        candidates = _settings(ServerOptions(config=config, workers=workers)).candidates
        return {one.limits for one in candidates}

    assert limits_of_a_worker(1) == {RateLimits(10, 1_001, 4)}
    assert limits_of_a_worker(4) == {RateLimits(2, 250, 1)}
    with pytest.raises(ConfigurationError, match=r"max_parallel_requests 4 .* for 5 processes"):
        limits_of_a_worker(5)


BROKEN = """
import sys
from pathlib import Path
from optllm_router.server import ServerOptions, serving

if __name__ == "__main__":
    config = Path(sys.argv[1])
    options = ServerOptions(config=config, port=0, workers=int(sys.argv[2]))
    serving.serve(options, listening=lambda url: config.write_text(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("broken", ["models", "store"])
def test_a_worker_that_cannot_start_ends_the_server_with_an_error(tmp_path, workers, broken):
    """Its configuration, or its store, is broken after it was looked at."""
    config = write_config(tmp_path, through_httpx(model_entries("http://h/v1")))
    program = tmp_path / "broken.py"
    program.write_text(BROKEN)
    if broken == "models":
        changed, says = "model_list: []", "models is []"
    else:
        changed, says = config.read_text().replace("optllm.db", "nowhere/optllm.db"), "nowhere"
    arguments = [sys.executable, str(program), str(config), str(workers), changed]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (told,) = {line["event"] for line in lines if "cannot start" in line["event"]}
    assert told.startswith("a worker cannot start: ")
    assert says in told
    assert done.stderr.count("Traceback") == workers - 1  # of the error that serving ends with


def test_a_model_that_cannot_be_called_is_told_before_the_server_listens(tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries("localhost:8000")))
    done = CliRunner().invoke(commands, ["serve", "--config", str(config), "--port", "0"])
    assert "api_base 'localhost:8000'" in str(done.exception)
    assert "listening" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
