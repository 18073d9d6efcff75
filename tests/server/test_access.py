"""Who may call: with keys nobody else can, without keys nobody from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from click.testing import CliRunner
from running import RunningServer, until, write_config
from simulated_entries import model_entries, through_httpx

from optllm_router import Budget
from optllm_router._errors import StoreError
from optllm_router.cli import commands
from optllm_router.ledger import Ledger, Reservation
from optllm_router.server.access import CACHE_SECONDS, Access, Caller, is_loopback
from optllm_router.server.errors import Refused
from optllm_router.store import AccessKeys, Database
from optllm_router.store.schema import access_keys

QUESTION = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def keys(guarded):
    database = Database(guarded.store)
    yield AccessKeys(database)
    database.close()


@pytest.fixture(scope="module")
def guarded(provider, tmp_path_factory):
    """A server with keys: one that sees everything was made before it started."""
    folder = tmp_path_factory.mktemp("guarded")
    config = write_config(folder, through_httpx(model_entries(provider.base_url)), budget="10 USD")
    store = f"sqlite:///{folder}/optllm.db"
    made = CliRunner().invoke(commands, ["keys", "create", "--config", str(config)])
    with RunningServer(config, "--host", "0.0.0.0") as running:
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        running.store, running.key = store, made.stdout.strip()
        yield running


def ask(server: RunningServer, key: str | None, **fields) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json={**QUESTION, **fields}, headers=headers, timeout=60)


def test_only_a_key_that_was_made_opens(guarded):
    assert ask(guarded, guarded.key).status_code == 200
    for wrong in (None, "unused", guarded.key[:-1], f"{guarded.key}x", "sk-optllm-0-0"):
        response = ask(guarded, wrong)
        assert response.status_code == 401, wrong
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    basic = {"authorization": f"Basic {guarded.key}"}
    assert httpx.get(f"{guarded.url}/v1/models", headers=basic).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/nothing", "/health"])
def test_all_but_health_and_the_document_needs_a_key(guarded, path):
    assert httpx.get(guarded.url + path).status_code == 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json"])
def test_health_and_the_document_are_open(guarded, path):
    assert httpx.get(guarded.url + path).status_code == 200


def look(server: RunningServer, key: str) -> int:
    """The status of a request over a connection of its own, so that any worker may take it."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).status_code


def test_a_revoked_key_stops_working_at_once_in_every_worker(provider, store_url, tmp_path):
    config = write_config(
        tmp_path, through_httpx(model_entries(provider.base_url)), store=store_url
    )
    store = ["--store", store_url]
    kept = CliRunner().invoke(commands, ["keys", "create", *store]).stdout.strip()
    with RunningServer(config, "--workers", "2") as running:
        until(lambda: len(running.events("worker started")) == 2, seconds=60)
        for _ in range(3):
            text = CliRunner().invoke(commands, ["keys", "create", *store]).stdout.strip()
            assert {look(running, text) for _ in range(20)} == {200}
            CliRunner().invoke(commands, ["keys", "revoke", text.split("-")[2], *store])
            assert {look(running, text) for _ in range(20)} == {401}
        assert look(running, kept) == 200


def test_an_expired_key_stops_working(guarded, keys):
    text, _ = keys.create(lives_seconds=0.01)
    time.sleep(0.02)
    assert ask(guarded, text).status_code == 401


def test_a_key_of_one_scope_cannot_name_another_or_see_all(guarded, keys):
    text, _ = keys.create("tenant:a")
    for name, value in {"tenant": "b", "user": "u", "tags": ["t"], "job": "j"}.items():
        response = ask(guarded, text, optllm={name: value})
        assert response.status_code == 403, name
        assert response.json()["error"]["param"] == f"optllm.{name}"
    metrics = httpx.get(f"{guarded.url}/metrics", headers={"authorization": f"Bearer {text}"})
    assert metrics.status_code == 403
    everything = {"authorization": f"Bearer {guarded.key}"}
    assert httpx.get(f"{guarded.url}/metrics", headers=everything).status_code == 200


@pytest.mark.parametrize("scope", ["team-a", "everything:", "tenant:", "group:a"])
def test_a_key_whose_scope_is_none_opens_nothing(guarded, keys, scope):
    """As keys could have that earlier versions made."""
    text, key = keys.create("tenant:a")
    with contextlib.closing(Database(guarded.store)) as database:
        changed = access_keys.update().where(access_keys.c.id == key.id).values(scope=scope)
        database.submit(lambda connection: connection.execute(changed)).result()
    assert ask(guarded, text).status_code in (400, 403)


def test_a_key_is_told_of_its_own_budgets_only(guarded, keys):
    Ledger(Database(guarded.store)).set_budget(Budget(100, scope="tenant:curious"))
    text, _ = keys.create("tenant:curious")
    dear = {"model": "sim-frontier", "max_tokens": 1_000_000}
    told = ask(guarded, guarded.key, **dear)
    assert told.status_code == 429
    assert "budget 'default' has" in told.json()["error"]["message"]
    asked = ask(guarded, text, **dear)
    assert (asked.status_code, asked.headers["x-should-retry"]) == (429, "false")
    assert asked.json()["error"]["code"] == "insufficient_quota"
    assert "default" not in asked.text


def test_a_key_s_calls_are_paid_by_its_scope_and_graded_by_it_alone(guarded, keys):
    ledger = Ledger(Database(guarded.store))
    for name in ("one", "two"):
        ledger.set_budget(Budget(1, name=name, scope=f"tenant:{name}"))
    one, _ = keys.create("tenant:one")
    two, _ = keys.create("tenant:two")
    answer = ask(guarded, one)
    assert answer.status_code == 200, answer.text
    cost = int(answer.headers["x-optllm-cost-nano"])
    until(lambda: ledger.balance("one").spent_nano == cost)  # nobody waits for that commit
    assert cost > 0
    assert ledger.balance("two").spent_nano == 0

    def grade(key: str) -> int:
        return httpx.post(
            f"{guarded.url}/v1/feedback",
            json={"id": answer.json()["id"], "score": 1},
            headers={"authorization": f"Bearer {key}"},
        ).status_code

    assert [grade(two), grade(one), grade(guarded.key)] == [400, 200, 200]


def test_a_scope_that_no_budget_covers_pays_nothing(guarded, keys):
    text, _ = keys.create("tenant:forgotten")
    response = ask(guarded, text)
    assert response.status_code == 400
    assert "tenant:forgotten" in response.json()["error"]["message"]


def test_a_budget_that_is_used_up_is_told_as_openai_tells_it(guarded, keys):
    ledger = Ledger(Database(guarded.store))
    ledger.set_budget(Budget("0.000000001", scope="tenant:poor"))
    text, _ = keys.create("tenant:poor")
    response = ask(guarded, text)
    assert (response.status_code, response.headers["x-should-retry"]) == (429, "false")
    assert response.json()["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in response.headers  # time does not help


def test_a_budget_that_is_used_up_for_today_says_when_to_come_back(guarded, keys):
    ledger = Ledger(Database(guarded.store))
    ledger.set_budget(Budget(1, "day", name="daily", scope="tenant:daily"))
    all_of_it = Reservation("d-0", "d", "c", 10**9, ("tenant:daily",), "test", 600.0)
    assert ledger.reserve(all_of_it).result() is None
    text, _ = keys.create("tenant:daily")
    response = ask(guarded, text)
    ledger.release("d-0").result()
    assert response.json()["error"]["code"] == "insufficient_quota"
    assert 0 < int(response.headers["retry-after"]) <= 86_401


def test_keys_are_in_no_log(guarded):
    ask(guarded, guarded.key)
    log = "".join(guarded.log)
    assert '"event": "decision"' in log
    assert guarded.key.split("-", 3)[3] not in log


def test_a_key_that_is_made_closes_a_server_that_was_open(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config) as running:
        assert ask(running, None).status_code == 200
        database = Database(f"sqlite:///{tmp_path}/optllm.db")
        text, _ = AccessKeys(database).create()
        database.close()
        made = time.monotonic()
        while ask(running, None).status_code == 200:
            assert time.monotonic() - made < CACHE_SECONDS + 2
        assert ask(running, text).status_code == 200


def test_without_keys_only_names_of_this_machine_are_answered(router):
    """A web page can make its own name lead to 127.0.0.1; the host header tells."""
    response = httpx.get(f"{router.url}/v1/models", headers={"host": "evil.example"})
    assert response.status_code == 403
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "app.localhost"):
        response = httpx.get(f"{router.url}/v1/models", headers={"host": host})
        assert response.status_code == 200, host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_no_server_is_open_to_others_without_a_key(provider, tmp_path, host):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    done = CliRunner().invoke(commands, ["serve", "--config", str(config), "--host", host])
    assert "no access key yet" in str(done.exception)
    assert "optllm keys create" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")):
        again = CliRunner().invoke(commands, ["serve", "--config", str(config), "--host", host])
    assert "no access key yet" in str(again.exception)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_loopback_is(host, inside):
    assert is_loopback(host) is inside


class SlowKeys:
    """Access keys whose store answers when it is told to, or fails."""

    def __init__(self, *answers: bool | StoreError) -> None:
        self.answers = list(answers)
        self.may_answer = threading.Event()
        self.looks = 0

    def exist(self) -> bool:
        self.looks += 1
        answer = self.answers.pop(0)
        assert self.may_answer.wait(30)
        if isinstance(answer, StoreError):
            raise answer
        return answer


async def admitted(access: Access, callers: int) -> list[object]:
    """Who came in, or what each was told, of callers without a key that come together."""
    asking = [asyncio.ensure_future(access.caller("", "localhost")) for _ in range(callers)]
    for _ in range(3):  # all of them are at the store now, or would have come in
        await asyncio.sleep(0)
    access._keys.may_answer.set()
    return await asyncio.gather(*asking, return_exceptions=True)


def statuses(told: list[object]) -> set[object]:
    return {one.status if isinstance(one, Refused) else one for one in told}


@pytest.mark.parametrize(("exist", "told"), [(True, {401}), (False, {Caller()})])
def test_nobody_comes_in_before_the_store_has_said_whether_there_are_keys(exist, told):
    keys = SlowKeys(exist)
    access = Access(keys, required=False)
    assert statuses(asyncio.run(admitted(access, 50))) == told
    assert keys.looks == 1


def test_a_store_that_fails_lets_nobody_in():
    keys = SlowKeys(StoreError("locked"), StoreError("locked"), True)
    access = Access(keys, required=False)

    async def program() -> None:
        for _ in range(2):
            told = await admitted(access, 5)
            assert all(isinstance(one, StoreError) for one in told), told
        assert statuses(await admitted(access, 5)) == {401}

    asyncio.run(program())
    assert keys.looks == 3


def test_a_caller_that_leaves_does_not_end_the_look_of_the_others():
    keys = SlowKeys(True)
    access = Access(keys, required=False)

    async def program() -> None:
        first = asyncio.ensure_future(access.caller("", "localhost"))
        await asyncio.sleep(0)
        first.cancel()
        assert statuses(await admitted(access, 5)) == {401}

    asyncio.run(program())
    assert keys.looks == 1


def test_the_first_callers_of_a_server_need_a_key_if_there_is_one(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")) as database:
        AccessKeys(database).create()
    before = sum(provider.requests.values())
    with RunningServer(config) as running, ThreadPoolExecutor(20) as pool:
        told = list(pool.map(lambda _: ask(running, None).status_code, range(100)))
    assert set(told) == {401}
    assert sum(provider.requests.values()) == before
