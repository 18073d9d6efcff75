from __future__ import annotations

import gc
import itertools
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from busy_writer import busy
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import OperationalError

from optllm_router._command_options import opened
from optllm_router._errors import InvalidRequestError, OptLLMError, StoreError
from optllm_router._types import Decision, Outcome, Usage
from optllm_router.ledger import Ledger
from optllm_router.store import (
    Database,
    RecordedUsage,
    Records,
    _postgresql,
    migrations,
    schema,
)
from optllm_router.store.records import MOST_QUERY_CHARACTERS


@pytest.fixture
def database(store_url):
    database = Database(store_url)
    yield database
    database.close()


@pytest.fixture
def records(database) -> Records:
    return Records(database, clock=iter(range(1000)).__next__)


def put(n: int, name: str = "test"):
    """A write that keeps a number and returns it."""

    def work(connection):
        connection.execute(
            schema.balances.insert(),
            {"budget": name, "window_start": n, "spent_nano": n, "reserved_nano": 0},
        )
        return n

    return work


def kept(database: Database) -> list[int]:
    with database.read() as connection:
        numbers = select(schema.balances.c.window_start).order_by(schema.balances.c.window_start)
        return list(connection.scalars(numbers))


# Migrations


def test_migrations_end_at_the_schema_that_the_code_is_written_for(database):
    with database.read() as connection:
        found = inspect(connection)
        assert set(found.get_table_names()) == set(schema.metadata.tables)
        for name, table in schema.metadata.tables.items():
            columns = {column["name"]: column for column in found.get_columns(name)}
            assert list(columns) == [column.name for column in table.columns]
            for column in table.columns:
                assert columns[column.name]["nullable"] == column.nullable, column
                affinity = columns[column.name]["type"]._type_affinity
                assert affinity is column.type._type_affinity, column
            primary = found.get_pk_constraint(name)["constrained_columns"]
            assert primary == [column.name for column in table.primary_key]


def test_migrations_are_recorded_and_not_repeated(store_url):
    names = [name for name, _ in migrations.MIGRATIONS]
    for _ in range(2):
        database = Database(store_url)
        with database.read() as connection:
            applied = schema.migrations.c
            assert list(connection.scalars(select(applied.name).order_by(applied.name))) == names
        database.close()


def test_every_older_schema_is_brought_up_to_date(store_url, monkeypatch):
    everything = migrations.MIGRATIONS
    for known in range(1, len(everything)):
        monkeypatch.setattr(migrations, "MIGRATIONS", everything[:known])
        older = Database(store_url)
        older.submit(put(known)).result()
        older.close()
    monkeypatch.setattr(migrations, "MIGRATIONS", everything)
    newest = Database(store_url)
    assert kept(newest) == list(range(1, len(everything)))
    newest.close()


OLD_BOOKS = """
    INSERT INTO budgets (name, "window", limit_nano) VALUES ('default', 'day', 500);
    INSERT INTO budgets (name, "window", limit_nano) VALUES ('plan-0123456789abcdef', 'total', 90);
    INSERT INTO budgets (name, "window", limit_nano) VALUES ('plan-b', 'total', 90);
    INSERT INTO balances VALUES ('default', 86400, 75, 30);
    INSERT INTO balances VALUES ('plan-0123456789abcdef', 0, 45, 0);
    INSERT INTO reservations VALUES ('a', 'a', 'm', 'settled', 40, 45, 0, 'test', 86401, 86461);
    INSERT INTO reservations VALUES ('b', 'b', 'm', 'open', 30, 0, 0, 'test', 86402, 86462);
    INSERT INTO reservations VALUES ('c', 'c', 'm', 'expired', 30, 30, 1, 'test', 86403, 86463);
    INSERT INTO reservation_budgets VALUES ('a', 'default', 86400);
    INSERT INTO reservation_budgets VALUES ('a', 'plan-0123456789abcdef', 0);
    INSERT INTO reservation_budgets VALUES ('b', 'default', 86400);
    INSERT INTO reservation_budgets VALUES ('c', 'default', 86400)
"""


def test_old_books_are_right_in_the_newest_schema(store_url, monkeypatch):
    def write(connection):
        for statement in OLD_BOOKS.split(";"):
            connection.execute(text(statement))

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:2])
        older = Database(store_url)
        older.submit(write).result()
        older.close()
    database = Database(store_url)
    ledger = Ledger(database, lambda: 86_500.0)
    assert ledger.verify() == []
    default, plan, user_s_own = ledger.balances()
    assert (default.spent_nano, default.reserved_nano, default.excess_nano) == (75, 30, 5)
    assert (default.calls, default.open_calls, default.scope) == (3, 1, "everything")
    assert (plan.calls, plan.open_calls, plan.excess_nano) == (1, 0, 5)
    assert plan.scope == "job:plan-0123456789abcdef"
    assert user_s_own.scope == "everything"
    assert ledger.settle("b", 20).result() is True
    assert ledger.verify() == []
    assert ledger.balance("default").spent_nano == 95
    database.close()


BOOKS_WITH_BLOCKS = """
    INSERT INTO budgets (name, "window", limit_nano, hard) VALUES ('default', 'day', 5000, 0);
    INSERT INTO balances VALUES ('default', 86400, 845, 0, 1, 0, 735);
    INSERT INTO reservations VALUES ('a', 'a', 'm', 'settled', 40, 45, 0, 'test', 86401, 86461);
    INSERT INTO reservations VALUES ('b', '', '', 'expired', 800, 800, 1, '', 86402, 86432);
    INSERT INTO reservation_budgets VALUES ('a', 'default', 86400, 10);
    INSERT INTO reservation_budgets VALUES ('b', 'default', 86400, 100)
"""


def test_what_blocks_once_exceeded_is_taken_out_of_old_books(store_url, monkeypatch):
    def write(connection):
        for statement in BOOKS_WITH_BLOCKS.split(";"):
            connection.execute(text(statement))

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:10])
        with closing(Database(store_url)) as older:
            older.submit(write).result()
    with closing(Database(store_url)) as database:
        ledger = Ledger(database, lambda: 86_500.0)
        assert ledger.verify() == []
        assert (ledger.balance("default").excess_nano, ledger.balance("default").calls) == (35, 1)


def test_a_migration_that_fails_leaves_nothing_behind(store_url, monkeypatch):
    def breaks(connection):
        connection.execute(text("CREATE TABLE half_done (a INTEGER)"))
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("9999_breaks", breaks)))
        with pytest.raises(StoreError, match="nowhere"):
            Database(store_url)
    database = Database(store_url)
    with database.read() as connection:
        assert not inspect(connection).has_table("half_done")
    database.close()


def test_processes_that_start_together_migrate_once(store_url):
    with ThreadPoolExecutor(6) as pool:
        databases = list(pool.map(Database, [store_url] * 6))
    with databases[0].read() as connection:
        applied = list(connection.scalars(schema.migrations.select()))
    for database in databases:
        database.close()
    assert sorted(applied) == [name for name, _ in migrations.MIGRATIONS]


def test_an_empty_file_is_a_new_store(tmp_path, sqlite_url):
    file = tmp_path / "optllm.db"
    file.touch()
    with opened(None, sqlite_url, may_create=True) as database:
        assert Ledger(database).balances() == []
    assert file.stat().st_size > 0


def test_a_new_file_that_another_process_is_about_to_write_is_waited_for(tmp_path):
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE earlier (x)")
    other.execute("BEGIN IMMEDIATE")  # SQLite does not wait for this one when it switches to WAL
    threading.Timer(0.3, other.close).start()
    Database(f"sqlite:///{tmp_path}/a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.close()


def test_a_database_of_a_newer_version_is_refused(store_url):
    database = Database(store_url)
    newer = schema.migrations.insert().values(name="9999_from_the_future", applied_at=0.0)
    database.submit(lambda connection: connection.execute(newer)).result()
    database.close()
    with pytest.raises(StoreError, match="9999_from_the_future") as caught:
        Database(store_url)
    assert "pip install --upgrade" in str(caught.value)


# Databases that cannot be used: one sentence with the name, the trouble and the remedy


def refused(url) -> str:
    threads = threading.active_count()
    with pytest.raises(StoreError) as caught:
        Database(url)
    gc.collect()
    assert threading.active_count() == threads
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_database_that_is_locked(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    Database(url).close()
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    message = refused(f"{url}?timeout=0.1")
    assert "a.db" in message
    assert "locked; another program holds it; close that program or wait for it" in message
    other.close()
    Database(url).close()


def test_a_write_that_meets_a_lock(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.db?timeout=0.1")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        database.submit(put(1)).result()
    other.close()
    assert database.submit(put(1)).result() == 1
    database.close()


def test_a_database_that_may_only_be_read(tmp_path):
    Database(f"sqlite:///{tmp_path}/a.db").close()
    message = refused(f"sqlite:///file:{tmp_path}/a.db?mode=ro&uri=true")
    assert "readonly" in message
    assert "make the file and its folder writable, or choose another store" in message


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "a.db").write_text("Dear diary, " * 100)
    message = refused(f"sqlite:///{tmp_path}/a.db")
    assert "not a database; the file is something else; choose another store" in message
    assert (tmp_path / "a.db").read_text() == "Dear diary, " * 100


def test_a_folder_that_does_not_exist(tmp_path):
    message = refused(f"sqlite:///{tmp_path}/nowhere/a.db")
    assert "check that the folder exists and may be written to" in message
    assert not (tmp_path / "nowhere").exists()


def test_tables_of_another_program_are_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("CREATE TABLE budgets (department TEXT)")
    other.close()
    message = refused(f"sqlite:///{tmp_path}/a.db")
    assert "budgets" in message
    assert "belong to another program; choose another store" in message
    with sqlite3.connect(tmp_path / "a.db") as other:
        tables = other.execute("SELECT name FROM sqlite_master").fetchall()
    other.close()
    assert tables == [("budgets",)]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:a?mode=memory&uri=true",
    ],
)
def test_memory_would_forget(url):
    assert "would forget what was spent" in refused(url)


@pytest.mark.parametrize("url", ["", "optllm.db", 5, None, "mysql://root@localhost/a"])
def test_what_is_no_store_url(url):
    assert "sqlite" in refused(url)


def test_a_driver_that_is_missing_is_named():
    message = refused("postgresql+no_such_driver://me@127.0.0.1/a")
    assert "no_such_driver" in message
    assert "driver" in message


def test_a_server_that_is_not_there():
    message = refused("postgresql://me:secret@127.0.0.1:1/a?connect_timeout=2")
    assert "check that the server runs and that the URL is right" in message
    assert "secret" not in message


@pytest.fixture
def silent_port():
    """Of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(silent_port, monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setitem(_postgresql._PATIENCE, "connect_timeout", 2)
    message = refused(f"postgresql://me@127.0.0.1:{silent_port}/a")
    assert "check that the server runs and that the URL is right" in message


def test_what_the_url_says_of_patience_is_left_as_it_is(silent_port):
    pytest.importorskip("psycopg")
    start = time.monotonic()
    refused(f"postgresql://me@127.0.0.1:{silent_port}/a?connect_timeout=2")
    assert time.monotonic() - start < _postgresql._PATIENCE["connect_timeout"]


def parameter(database: Database, name: str) -> str:
    with database.read() as connection:
        return connection.execute(text("SELECT current_setting(:n)"), {"n": name}).scalar_one()


def test_statements_have_a_limit_unless_the_url_has_another(postgresql_url):
    with closing(Database(postgresql_url)) as database:
        assert parameter(database, "statement_timeout") == "1min"
    with closing(Database(f"{postgresql_url}%20-cstatement_timeout%3D5000")) as database:
        assert parameter(database, "statement_timeout") == "5s"
        assert parameter(database, "search_path").startswith("optllm_test_")
    with closing(Database(f"{postgresql_url}%20-cstatement_timeout%3D100")) as database:
        sleep = database.submit(lambda connection: connection.execute(text("SELECT pg_sleep(30)")))
        with pytest.raises(StoreError, match="the server is busy; try again, or allow more"):
            sleep.result()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@127.0.0.1:1/a?password=hush&connect_timeout=2",
        "postgresql://me:hush@127.0.0.1:1/a?sslpassword=hush&connect_timeout=2",
        "postgresql://127.0.0.1:port/a?password=hush",
        "postgresql+no_such_driver://127.0.0.1/a?password=hush",
        "mysql://me@localhost/a?password=hush",
    ],
)
def test_a_password_is_never_shown(url):
    assert "hush" not in refused(url)


def test_a_password_among_the_options_is_used(postgresql_url):
    with closing(Database(f"{postgresql_url}&password=hush")) as database:
        assert database.url.password == "hush"
        assert "hush" not in database.name
        assert database.name.startswith("postgresql+psycopg://postgres:***@127.0.0.1")


def test_a_server_that_does_not_know_the_database(postgresql_url):
    message = refused(postgresql_url.replace("/postgres?", "/optllm_no_such_database?"))
    assert "optllm_no_such_database" in message


# Writes


def test_sqlite_survives_a_power_cut(sqlite_url):
    database = Database(sqlite_url)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()


def test_writes_are_done_in_order_and_return_their_results(database):
    writes = [database.submit(put(n)) for n in range(200)]
    assert [write.result() for write in writes] == list(range(200))
    assert kept(database) == list(range(200))


def test_waiting_writes_share_a_commit(database):
    commits = []
    go = busy(database)
    seen = [
        database.submit(lambda connection: commits.append(connection.get_transaction()))
        for _ in range(20)
    ]
    go.set()
    for write in seen:
        write.result()
    assert len({id(commit) for commit in commits}) == 1


def test_a_write_that_fails_does_not_harm_its_neighbours(database):
    go = busy(database)
    writes = {n: database.submit(put(n)) for n in range(5)}
    twice = database.submit(put(3))
    no_sql = database.submit(lambda connection: connection.execute(text("BOO")))
    no_database = database.submit(lambda connection: 1 / 0)
    writes[7] = database.submit(put(7))
    go.set()
    assert {n: write.result() for n, write in writes.items()} == {n: n for n in writes}
    for broken, error in (
        (twice, StoreError),
        (no_sql, StoreError),
        (no_database, ArithmeticError),
    ):
        assert isinstance(broken.exception(), error)
    assert kept(database) == [0, 1, 2, 3, 4, 7]


_ADD_TEN = text("UPDATE balances SET spent_nano = spent_nano + 10 WHERE window_start = :n")


def test_a_transaction_that_loses_a_deadlock_is_tried_again(postgresql_url):
    databases = [Database(postgresql_url) for _ in range(2)]
    for n in (0, 1):
        databases[0].submit(put(n)).result()
    first_taken = [threading.Event(), threading.Event()]
    tries = []

    def cross(mine: int):
        def work(connection):
            tries.append(mine)
            for n in (mine, 1 - mine):
                connection.execute(_ADD_TEN, {"n": n})
                first_taken[mine].set()
                assert first_taken[1 - mine].wait(30)

        return work

    writes = [databases[n].submit(cross(n)) for n in (0, 1)]
    for write in writes:
        write.result(timeout=60)
    assert len(tries) == 3
    with databases[0].read() as connection:
        spent = connection.scalars(select(schema.balances.c.spent_nano))
        assert sorted(spent) == [20, 21]
    for database in databases:
        database.close()


class Complaint(Exception):
    """What a driver raises."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("no")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(("sqlstate", "most"), [("57014", 1), ("53100", 1), ("40001", 4)])
def test_what_any_transaction_could_meet_is_not_blamed_on_a_write(database, sqlstate, most):
    """Its group is not halved: each half would wait as long again."""
    tries = []

    def fail(connection):
        tries.append(0)
        raise OperationalError("SELECT", {}, Complaint(sqlstate))

    go = busy(database)
    writes = [database.submit(put(n)) for n in range(8)] + [database.submit(fail)]
    go.set()
    assert {type(write.exception()) for write in writes} == {StoreError}
    assert len(tries) == most
    assert kept(database) == []


def test_a_connection_that_was_cut_between_many_rows_is_replaced(postgresql_url):
    """psycopg leaves it in libpq's pipeline mode then, and does not call it broken."""
    tries = []

    def cut(connection):
        tries.append(0)
        put(len(tries))(connection)
        if len(tries) == 1:
            connection.connection.dbapi_connection.pgconn.enter_pipeline_mode()
        connection.execute(text("SELECT 1"))  # which libpq refuses in that mode

    with closing(Database(postgresql_url)) as database:
        database.submit(cut).result()
        assert len(tries) == 2
        assert kept(database) == [2]


def test_a_write_whose_caller_went_away_is_still_written(database):
    go = busy(database)
    write = database.submit(put(1))
    assert write.cancel() is False
    go.set()
    assert write.result() == 1
    assert kept(database) == [1]


def test_reading_sees_one_moment(database):
    with database.read() as connection:
        count = select(schema.balances.c.window_start)
        assert connection.scalars(count).all() == []
        database.submit(put(1)).result()
        assert connection.scalars(count).all() == []
    assert kept(database) == [1]


def test_closing_finishes_what_is_waiting(store_url):
    database = Database(store_url)
    go = busy(database)
    writes = [database.submit(put(n)) for n in range(300)]
    closing = threading.Thread(target=database.close)
    closing.start()
    go.set()
    closing.join()
    assert all(write.done() for write in writes)
    database.close()
    with pytest.raises(StoreError, match="closed; create a new client"):
        database.submit(put(1000))
    again = Database(store_url)
    assert kept(again) == list(range(300))
    again.close()


def test_nobody_waits_forever_for_a_database_that_closes(sqlite_url):
    """Whoever writes while another thread closes is served or refused."""

    numbers = itertools.count()

    def keep_writing(database: Database) -> list[int]:
        """What was written until the database refused."""
        served: list[int] = []
        while True:
            try:
                write = database.submit(put(next(numbers)))
            except StoreError:
                return served
            served.append(write.result(timeout=10))

    served: list[int] = []
    for _ in range(10):
        database = Database(sqlite_url)
        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(keep_writing, database) for _ in range(4)]
            database.close()
            served += [number for writer in writers for number in writer.result()]
    again = Database(sqlite_url)
    assert kept(again) == sorted(served)
    again.close()


def test_an_abandoned_database_lets_go(sqlite_url):
    threads = threading.active_count()
    Database(sqlite_url).submit(put(1)).result()
    gc.collect()
    assert threading.active_count() == threads


# Records


def decision(id: str, candidate: str = "m") -> Decision:
    return Decision(id, candidate, (), 0.5, 0.1, 7, 0.25, 3.0, "a test")


def outcome(id: str, candidate: str = "m", status: str = "ok", **changes) -> Outcome:
    values = {"usage": Usage(3, 4), "cost_nano": 7, "latency_seconds": 0.5, **changes}
    return Outcome(id, candidate, status, **values)


def test_feedback_finds_the_query_and_who_answered_it(records):
    records.add_decision(decision("d"), "What is 2 + 2?").result()
    records.add_outcome(outcome("d", "first", "error"), attempt=0, prompt_bytes=14).result()
    records.add_outcome(outcome("d", "second"), attempt=1, prompt_bytes=14).result()
    labelled = records.add_feedback("d", 1.0).result()
    assert (labelled.query, labelled.candidate) == ("What is 2 + 2?", "second")
    assert records.labelled(10) == [labelled]


def test_a_later_score_replaces_an_earlier_one(records):
    records.add_decision(decision("d"), "q")
    records.add_outcome(outcome("d"), attempt=0, prompt_bytes=1)
    for score in (1.0, 0.0, 0.25):
        records.add_feedback("d", score).result()
    assert [one.score for one in records.labelled(10)] == [0.25]


@pytest.mark.parametrize("id", ["nobody", "", "'; DROP TABLE feedback; --", "unanswered", "a\0b"])
def test_feedback_for_an_unknown_answer_is_refused(records, id):
    records.add_decision(decision("unanswered"), "q")
    records.add_outcome(outcome("unanswered", status="error"), attempt=0, prompt_bytes=1)
    with pytest.raises(OptLLMError) as caught:
        records.add_feedback(id, 1.0).result()
    assert isinstance(caught.value, (InvalidRequestError, StoreError))
    assert records.labelled(10) == []


def test_the_most_recent_labels_come_oldest_first(records):
    for n in range(5):
        records.add_decision(decision(f"d{n}"), f"q{n}")
        records.add_outcome(outcome(f"d{n}"), attempt=0, prompt_bytes=n)
        records.add_feedback(f"d{n}", n / 10).result()
    assert [one.query for one in records.labelled(3)] == ["q2", "q3", "q4"]
    assert records.usages(2) == [
        RecordedUsage("q3", "m", 3, Usage(3, 4)),
        RecordedUsage("q4", "m", 4, Usage(3, 4)),
    ]


def test_only_counted_usage_teaches_what_calls_consume(records):
    for id in "abc":
        records.add_decision(decision(id), f"query {id}")
    records.add_outcome(outcome("a", usage=Usage(1, 2, estimated=True)), attempt=0, prompt_bytes=1)
    records.add_outcome(outcome("b", status="error", usage=None), attempt=0, prompt_bytes=1)
    records.add_outcome(outcome("c"), attempt=0, prompt_bytes=1).result()
    assert records.usages(10) == [RecordedUsage("query c", "m", 1, Usage(3, 4))]


def test_the_kinds_of_tokens_are_kept(records, database):
    kinds = {"cached_tokens": 2, "cache_write_tokens": 1, "reasoning_tokens": 3, "audio_tokens": 1}
    usage = Usage(3, 4, reported_nano=70, **kinds)
    records.add_decision(decision("a"), "query")
    records.add_outcome(outcome("a", usage=usage), attempt=0, prompt_bytes=1).result()
    assert records.usages(1) == [RecordedUsage("query", "m", 1, Usage(3, 4, **kinds))]
    with database.read() as connection:
        assert connection.scalar(select(schema.outcomes.c.reported_nano)) == 70


def test_which_answers_were_cut_off_is_kept(records):
    for id, cut in (("a", True), ("b", False)):
        records.add_decision(decision(id), "query")
        kept = outcome(id, usage=Usage(3, 4, cut=cut))
        records.add_outcome(kept, attempt=0, prompt_bytes=1).result()
    assert [one.usage.cut for one in records.usages(2)] == [True, False]


def test_when_a_stream_began_is_kept(records, database):
    streamed = outcome("a", first_token_seconds=0.25)
    records.add_outcome(streamed, attempt=0, prompt_bytes=1).result()
    records.add_outcome(outcome("b"), attempt=0, prompt_bytes=1).result()
    began = select(schema.outcomes.c.first_token_seconds).order_by(schema.outcomes.c.decision_id)
    with database.read() as connection:
        assert connection.scalars(began).all() == [0.25, None]


@pytest.mark.parametrize("query", ["", "\0 nul", "x" * 100_000, "naïve 🚀 '; DROP TABLE"])
def test_any_text_can_be_kept(records, query):
    records.add_decision(decision("d"), query).result()
    records.add_outcome(outcome("d"), attempt=0, prompt_bytes=1)
    labelled = records.add_feedback("d", 1.0).result()
    assert labelled.query == query[:MOST_QUERY_CHARACTERS].replace("\0", " ")


def test_arrivals_are_counted_by_the_hour(database):
    moments = [7200.0, 7201.5, 10799.999, 10800.0, 10800.5 + 1800, 14399.9, 100.0]
    clock = iter(moments)
    records = Records(database, clock=lambda: next(clock))
    for n in range(len(moments)):
        records.add_decision(decision(f"d{n}"), "q").result()
    assert records.arrivals(since=7200.0) == {2: 3, 3: 3}
    assert records.arrivals(since=0.0) == {0: 1, 2: 3, 3: 3}
    assert records.arrivals(since=99_999.0) == {}


@pytest.mark.parametrize("timeout", ["abc", "-1", "nan", "inf", "1&timeout=2"])
def test_a_timeout_in_the_url_is_a_number_of_seconds(sqlite_url, timeout):
    with pytest.raises(StoreError, match=r"timeout .* must be a number of seconds"):
        Database(f"{sqlite_url}?timeout={timeout}")
    Database(f"{sqlite_url}?timeout=0.5").close()
