"""Access keys: kept as digests, found by their text alone, gone when they are revoked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sqlite3

import pytest
from click.testing import CliRunner

from optllm_router import ConfigurationError
from optllm_router._errors import StoreError
from optllm_router.cli import commands
from optllm_router.store import AccessKey, AccessKeys, Database
from optllm_router.store import keys as keys_room
from optllm_router.store.schema import access_keys


@pytest.fixture
def database(store_url):
    opened = Database(store_url)
    yield opened
    opened.close()


def find(keys: AccessKeys, text: str) -> AccessKey | None:
    return asyncio.run(keys.afind(text))


def test_a_key_is_found_by_its_text_and_by_nothing_else(database):
    keys = AccessKeys(database)
    text, made = keys.create("tenant:a")
    assert find(keys, text) == made
    other, _ = keys.create("tenant:b")
    assert text != other
    id, secret = text.removeprefix("sk-optllm-").split("-", 1)
    assert id == made.id
    wrong = "A" * 43 if secret != "A" * 43 else "B" * 43
    for guess in ("", "unused", id, secret, f"sk-optllm-{id}-{wrong}", text[:-1], f"{text}A"):
        assert find(keys, guess) is None, guess


def test_what_is_found_is_what_was_committed_last(database, store_url):
    keys = AccessKeys(database)
    text, made = keys.create()

    assert find(keys, text) == made
    with contextlib.closing(Database(store_url)) as other:
        revoked = AccessKeys(other).revoke(made.id)
        assert find(keys, text) == revoked
    assert find(keys, text[:-1] + ("A" if text[-1] != "A" else "B")) is None


def test_looking_for_keys_holds_on_to_no_old_state_of_the_file(sqlite_url):
    with contextlib.closing(Database(sqlite_url)) as database:
        keys = AccessKeys(database)
        text, _ = keys.create()
        assert find(keys, text) is not None
        keys.create()
        path = sqlite_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0


def test_the_store_does_not_know_the_secret(database):
    text, made = AccessKeys(database).create()
    secret = text.split("-", 3)[3]
    assert len(secret) == 43  # 256 bits
    with database.read() as connection:
        (row,) = connection.execute(access_keys.select()).all()
    assert row.id == made.id
    assert not any(secret in str(value) for value in row)


def test_keys_end_by_time_and_by_being_revoked(database):
    now = 1_000.0
    keys = AccessKeys(database, clock=lambda: now)
    assert not keys.exist()
    text, made = keys.create("tenant:a", lives_seconds=60)
    assert made.works_at(1_059.9)
    assert not made.works_at(1_060.0)
    now = 1_010.0
    revoked = keys.revoke(made.id)
    assert revoked.revoked_at == 1_010.0
    assert not find(keys, text).works_at(1_011.0)
    now = 1_020.0
    assert keys.revoke(made.id) == revoked  # the first time counts
    assert keys.all() == [revoked]
    assert keys.exist()
    with pytest.raises(ConfigurationError, match="no key 'ffffffffffff'"):
        keys.revoke("ffffffffffff")


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "team-a",
        "group:a",
        "tenant:",
        "tenant:*",
        "tenant:" + "a" * 201,
        "tenant:a\0b",
        "tag:a\nb",
    ],
)
def test_a_key_is_for_a_scope_that_calls_can_have(database, scope):
    with pytest.raises(ConfigurationError, match="scope"):
        AccessKeys(database).create(scope)
    assert not AccessKeys(database).exist()


@pytest.mark.parametrize("life", [0.0, -1.0, float("nan")])
def test_a_key_lives(database, life):
    with pytest.raises(ConfigurationError, match="would never work"):
        AccessKeys(database).create(lives_seconds=life)


def run(*arguments: str):
    return CliRunner().invoke(commands, list(arguments))


def test_the_command_makes_lists_and_revokes(sqlite_url):
    made = run("keys", "create", "--store", sqlite_url, "--scope", "team-a", "--expires", "90d")
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    database = Database(sqlite_url)
    try:
        key = find(AccessKeys(database), text)
    finally:
        database.close()
    assert key.scope == "tenant:team-a"
    assert key.expires_at == key.created_at + 90 * 86_400
    assert run("keys", "revoke", key.id, "--store", sqlite_url).exit_code == 0
    listed = json.loads(run("keys", "list", "--store", sqlite_url, "--json").stdout)["keys"]
    assert [(row["id"], row["works"]) for row in listed] == [(key.id, False)]
    shown = run("keys", "list", "--store", sqlite_url).stdout
    assert key.id in shown
    assert "revoked" in shown
    assert text.split("-", 3)[3] not in shown


def test_a_key_comes_with_the_budget_of_its_scope(sqlite_url):
    made = ["keys", "create", "--store", sqlite_url, "--scope", "team-a", "--json"]
    assert run(*made, "--budget", "20 USD per month").exit_code == 0
    (budget,) = json.loads(run("budget", "--store", sqlite_url, "--json").stdout)["budgets"]
    assert (budget["budget"], budget["window"]) == ("tenant:team-a", "month")
    softly = ["budget", "set", "20 USD per month for tenant:team-a", "--soft"]
    assert run(*softly, "--store", sqlite_url).exit_code == 0
    assert run(*made, "--budget", "30 USD per month").exit_code == 0
    (budget,) = json.loads(run("budget", "--store", sqlite_url, "--json").stdout)["budgets"]
    assert (budget["limit_nano"], budget["hard"]) == (30 * 10**9, False)
    done = run(*made, "--budget", "20 USD for tenant:team-b")
    assert "is for tenant:team-b, but the key for tenant:team-a" in str(done.exception)


def test_a_budget_that_cannot_be_makes_no_key_and_says_which_commands_help(sqlite_url):
    made = ["keys", "create", "--store", sqlite_url, "--scope", "team-a"]
    assert run(*made, "--budget", "20 USD per month").exit_code == 0
    done = run(*made, "--budget", "2 USD per day")
    assert isinstance(done.exception, ConfigurationError)
    said = str(done.exception)
    assert "has the window 'month', which cannot become 'day'; no key was made" in said
    assert "Budget(" not in said
    command = "optllm budget set '2 USD per day for tenant:team-a' --name NAME"
    assert command in said
    assert run(*shlex.split(command)[1:], "--store", sqlite_url).exit_code == 0
    assert len(json.loads(run("keys", "list", "--store", sqlite_url, "--json").stdout)["keys"]) == 1


def test_a_key_that_cannot_be_changes_no_budget(sqlite_url, monkeypatch):
    """As when the process is killed in between."""

    def fail(*_):
        raise StoreError("no room on the disk")

    monkeypatch.setattr(keys_room, "_digest", fail)
    made = ["keys", "create", "--store", sqlite_url, "--scope", "team-a"]
    assert isinstance(run(*made, "--budget", "20 USD per month").exception, StoreError)
    assert json.loads(run("budget", "--store", sqlite_url, "--json").stdout)["budgets"] == []


@pytest.mark.parametrize(
    ("scope", "budgets", "configured", "warned"),
    [
        ("team-a", [], None, True),
        ("team-a", ["5 USD", "1 USD for tenant:team-b"], None, True),
        ("team-a", ["5 USD for tenant:team-a"], None, False),
        ("user:ann", ["5 USD for user:*"], None, False),
        ("everything", [], None, False),
        ("team-a", [], "1 USD for tenant:*", False),
        ("team-a", [], ["1 USD", "2 USD for tenant:team-a"], False),
        ("team-a", [], "1 USD", True),
    ],
)
def test_a_key_whose_calls_nobody_pays_for_is_made_with_a_warning(
    tmp_path, scope, budgets, configured, warned
):
    store = f"sqlite:///{tmp_path}/optllm.db"
    where = ["--store", store]
    if configured is not None:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps({"router": {"store": store, "budget": configured}}))
        where = ["--config", str(config)]
    for one in budgets:
        assert run("budget", "set", one, *where).exit_code == 0
    done = run("keys", "create", "--scope", scope, *where)
    assert done.exit_code == 0
    assert done.stdout.startswith("sk-optllm-")
    assert ("every call with this key is refused" in done.stderr) == warned


@pytest.mark.parametrize("scope", ["tenant:*", "team:a", "tenant:"])
def test_a_key_is_for_one_scope(sqlite_url, scope):
    assert run("keys", "create", "--store", sqlite_url, "--scope", scope).exit_code != 0
    assert run("keys", "create", "--store", sqlite_url).exit_code == 0
    (made,) = json.loads(run("keys", "list", "--store", sqlite_url, "--json").stdout)["keys"]
    assert made["scope"] == "everything"


@pytest.mark.parametrize("command", [["list"], ["revoke", "ffffffffffff"]])
def test_looking_for_keys_makes_no_store(tmp_path, command):
    done = run("keys", *command, "--store", f"sqlite:///{tmp_path}/typo.db")
    assert done.exit_code == 2
    assert "typo.db'; give --store or --config" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_life_that_nobody_understands_makes_no_key(sqlite_url):
    done = run("keys", "create", "--store", sqlite_url, "--expires", "a while")
    assert isinstance(done.exception, ConfigurationError)
    assert "'a while' is not understood" in str(done.exception)
    database = Database(sqlite_url)
    try:
        assert not AccessKeys(database).exist()
    finally:
        database.close()
