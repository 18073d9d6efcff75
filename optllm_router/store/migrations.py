"""Steps from an empty database to the newest schema, recorded by name.

A migration, once released, never changes: add a new one below the last. Verify with
``tests/test_store.py``, which compares the result with :mod:`.schema`.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, false, func, inspect, select, text, update

from optllm_router._errors import StoreError
from optllm_router.store import schema

Migration = Callable[[Connection], None]


def create_ledger(connection: Connection) -> None:
    """Budgets, their balances per window, and the reservations that move them."""
    for statement in (
        """CREATE TABLE budgets (
            name TEXT NOT NULL PRIMARY KEY,
            "window" TEXT NOT NULL,
            limit_nano BIGINT NOT NULL CHECK (limit_nano >= 0))""",
        """CREATE TABLE balances (
            budget TEXT NOT NULL,
            window_start BIGINT NOT NULL,
            spent_nano BIGINT NOT NULL CHECK (spent_nano >= 0),
            reserved_nano BIGINT NOT NULL CHECK (reserved_nano >= 0),
            PRIMARY KEY (budget, window_start))""",
        """CREATE TABLE reservations (
            id TEXT NOT NULL PRIMARY KEY,
            decision_id TEXT NOT NULL,
            candidate TEXT NOT NULL,
            state TEXT NOT NULL,
            reserved_nano BIGINT NOT NULL CHECK (reserved_nano >= 0),
            settled_nano BIGINT NOT NULL CHECK (settled_nano >= 0),
            estimated INTEGER NOT NULL,
            price_source TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX open_reservations ON reservations (expires_at) WHERE state = 'open'",
        """CREATE TABLE reservation_budgets (
            reservation_id TEXT NOT NULL,
            budget TEXT NOT NULL,
            window_start BIGINT NOT NULL,
            PRIMARY KEY (reservation_id, budget))""",
    ):
        connection.exec_driver_sql(statement)


def create_records(connection: Connection) -> None:
    """Decisions, what became of them, and how good the answers were."""
    for statement in (
        """CREATE TABLE decisions (
            id TEXT NOT NULL PRIMARY KEY,
            created_at DOUBLE PRECISION NOT NULL,
            query TEXT NOT NULL,
            candidate TEXT NOT NULL,
            p DOUBLE PRECISION NOT NULL,
            std DOUBLE PRECISION NOT NULL,
            expected_cost_nano BIGINT NOT NULL,
            propensity DOUBLE PRECISION NOT NULL,
            price DOUBLE PRECISION NOT NULL,
            reason TEXT NOT NULL)""",
        """CREATE TABLE outcomes (
            decision_id TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            candidate TEXT NOT NULL,
            status TEXT NOT NULL,
            prompt_tokens BIGINT,
            completion_tokens BIGINT,
            estimated INTEGER NOT NULL,
            cost_nano BIGINT NOT NULL,
            latency_seconds DOUBLE PRECISION NOT NULL,
            error TEXT NOT NULL,
            prompt_bytes BIGINT NOT NULL,
            choices INTEGER NOT NULL,
            PRIMARY KEY (decision_id, attempt))""",
        """CREATE TABLE feedback (
            decision_id TEXT NOT NULL PRIMARY KEY,
            created_at DOUBLE PRECISION NOT NULL,
            score DOUBLE PRECISION NOT NULL CHECK (score >= 0 AND score <= 1))""",
    ):
        connection.exec_driver_sql(statement)


def scope_budgets(connection: Connection) -> None:
    """Budgets for part of the calls, soft and rolling ones; how many calls a balance is about."""
    for statement in (
        "ALTER TABLE budgets ADD COLUMN scope TEXT NOT NULL DEFAULT 'everything'",
        "ALTER TABLE budgets ADD COLUMN timezone TEXT NOT NULL DEFAULT 'UTC'",
        "ALTER TABLE budgets ADD COLUMN hard INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE budgets ADD COLUMN thresholds TEXT NOT NULL DEFAULT '50,80,95,100'",
        "ALTER TABLE budgets ADD COLUMN pace INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE budgets ADD COLUMN template TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE budgets ADD COLUMN removed INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX budgets_by_scope ON budgets (scope)",
        # The budget of a plan, named after 16 random hexadecimal digits, pays for that plan only.
        """UPDATE budgets SET scope = 'job:' || name
            WHERE name LIKE 'plan-%' AND LENGTH(name) = 21 AND "window" = 'total'""",
        "ALTER TABLE balances ADD COLUMN calls BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE balances ADD COLUMN open_calls BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE balances ADD COLUMN excess_nano BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE reservation_budgets ADD COLUMN amount_nano BIGINT NOT NULL DEFAULT 0",
        """UPDATE reservation_budgets SET amount_nano = (SELECT reserved_nano FROM reservations
            WHERE reservations.id = reservation_budgets.reservation_id)""",
        """CREATE TABLE thresholds (
            budget TEXT NOT NULL,
            period BIGINT NOT NULL,
            percent INTEGER NOT NULL,
            PRIMARY KEY (budget, period, percent))""",
    ):
        connection.execute(text(statement))
    _count_calls(connection)


def _count_calls(connection: Connection) -> None:
    counted = connection.execute(
        text(
            """SELECT part.budget, part.window_start, COUNT(*) AS calls,
                SUM(CASE WHEN r.state = 'open' THEN 1 ELSE 0 END) AS open_calls,
                SUM(CASE WHEN r.settled_nano > r.reserved_nano
                    THEN r.settled_nano - r.reserved_nano ELSE 0 END) AS excess_nano
            FROM reservation_budgets AS part
            JOIN reservations AS r ON r.id = part.reservation_id
            GROUP BY part.budget, part.window_start"""
        )
    )
    rows = [row._asdict() for row in counted]
    if rows:
        connection.execute(
            text(
                """UPDATE balances
                SET calls = :calls, open_calls = :open_calls, excess_nano = :excess_nano
                WHERE budget = :budget AND window_start = :window_start"""
            ),
            rows,
        )


def tell_kinds_of_tokens(connection: Connection) -> None:
    """Which tokens were billed at a rate of their own, and what the provider itself reported."""
    for kind in ("cached", "cache_write", "reasoning", "audio"):
        connection.exec_driver_sql(
            f"ALTER TABLE outcomes ADD COLUMN {kind}_tokens BIGINT NOT NULL DEFAULT 0"
        )
    connection.exec_driver_sql("ALTER TABLE outcomes ADD COLUMN reported_nano BIGINT")


def create_access_keys(connection: Connection) -> None:
    """Who may use a server: digests of keys, and the scope each key's calls count under."""
    connection.exec_driver_sql(
        """CREATE TABLE access_keys (
            id TEXT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL,
            scope TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION,
            revoked_at DOUBLE PRECISION)"""
    )


def keep_scopes_of_decisions(connection: Connection) -> None:
    """What a decision belonged to, so that others do not grade it; and scores by time."""
    connection.exec_driver_sql("ALTER TABLE decisions ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]'")
    connection.exec_driver_sql("CREATE INDEX feedback_by_time ON feedback (created_at)")


def keep_first_tokens(connection: Connection) -> None:
    """When a streamed answer began, in seconds from sending; unknown of others."""
    connection.exec_driver_sql(
        "ALTER TABLE outcomes ADD COLUMN first_token_seconds DOUBLE PRECISION"
    )


def keep_left_out(connection: Connection) -> None:
    """Which candidates could not serve a call, each with the reason; NULL where all could."""
    connection.exec_driver_sql("ALTER TABLE decisions ADD COLUMN left_out TEXT")


def remember_configured_budgets(connection: Connection) -> None:
    """What configurations said of budgets, so that only what is new in one is applied."""
    connection.exec_driver_sql("ALTER TABLE budgets ADD COLUMN configured TEXT NOT NULL DEFAULT ''")


def keep_which_answers_were_cut(connection: Connection) -> None:
    """1 for an answer that was cut off at its bound: forecasts must not take it for a whole one."""
    connection.exec_driver_sql("ALTER TABLE outcomes ADD COLUMN cut INTEGER NOT NULL DEFAULT 0")


def count_no_excess_of_blocks(connection: Connection) -> None:
    """What blocks that expired exceeded, which are no calls, is taken out of the balances."""
    counted = connection.execute(
        text(
            """SELECT part.budget, part.window_start,
                SUM(r.settled_nano - part.amount_nano) AS of_blocks
            FROM reservations AS r
            JOIN reservation_budgets AS part ON part.reservation_id = r.id
            WHERE r.candidate = '' AND r.settled_nano > part.amount_nano
            GROUP BY part.budget, part.window_start"""
        )
    )
    rows = [row._asdict() for row in counted]
    if rows:
        connection.execute(
            text(
                """UPDATE balances SET excess_nano = excess_nano - :of_blocks
                WHERE budget = :budget AND window_start = :window_start"""
            ),
            rows,
        )


def share_conversations(connection: Connection) -> None:
    """Who answered last in a conversation, and the order in which old ones are deleted."""
    connection.exec_driver_sql(
        """CREATE TABLE conversations (
            digest TEXT NOT NULL PRIMARY KEY,
            candidate TEXT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            answered_at DOUBLE PRECISION NOT NULL)"""
    )
    connection.exec_driver_sql("CREATE INDEX conversations_by_time ON conversations (answered_at)")


MIGRATIONS: tuple[tuple[str, Migration], ...] = (
    ("0001_create_ledger", create_ledger),
    ("0002_create_records", create_records),
    ("0003_scope_budgets", scope_budgets),
    ("0004_tell_kinds_of_tokens", tell_kinds_of_tokens),
    ("0005_create_access_keys", create_access_keys),
    ("0006_keep_scopes_of_decisions", keep_scopes_of_decisions),
    ("0007_keep_first_tokens", keep_first_tokens),
    ("0008_keep_left_out", keep_left_out),
    ("0009_remember_configured_budgets", remember_configured_budgets),
    ("0010_keep_which_answers_were_cut", keep_which_answers_were_cut),
    ("0011_count_no_excess_of_blocks", count_no_excess_of_blocks),
    ("0012_share_conversations", share_conversations),
)


_MIGRATION_LOCK = 0x6F70746C6C6D
"""PostgreSQL advisory lock, so that two processes that start together do not migrate twice."""


def migrate(connection: Connection, now: float) -> None:
    """Bring the database to the newest schema, in the caller's transaction.

    Raises:
        StoreError: the database holds a migration this version does not know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # it may rewrite a large table
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    if not inspect(connection).has_table("migrations"):
        schema.migrations.create(connection)
    applied = set(connection.scalars(select(schema.migrations.c.name)))
    unknown = sorted(applied - {name for name, _ in MIGRATIONS})
    if unknown:
        raise StoreError(
            f"the database was written by a newer optllm_router (it has {unknown[-1]}); "
            "upgrade with: pip install --upgrade optllm-router"
        )
    # SQLite takes BEGIN IMMEDIATE on a read-only file: only a write finds out.
    connection.execute(update(schema.migrations).where(false()).values(applied_at=now))
    for name, apply in MIGRATIONS:
        if name not in applied:
            apply(connection)
            connection.execute(schema.migrations.insert().values(name=name, applied_at=now))
