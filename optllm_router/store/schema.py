"""The tables, as the newest migration leaves them. Amounts are integers in nano-dollars."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text

metadata = MetaData()

migrations = Table(
    "migrations",
    metadata,
    Column("name", Text, primary_key=True),
    Column("applied_at", Double, nullable=False),
)

budgets = Table(
    "budgets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("window", Text, nullable=False),
    Column("limit_nano", BigInteger, nullable=False),
    Column("scope", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("hard", Integer, nullable=False),
    Column("thresholds", Text, nullable=False),
    Column("pace", Integer, nullable=False),
    Column("template", Text, nullable=False),
    Column("removed", Integer, nullable=False),
    Column("configured", Text, nullable=False),
)
"""``template`` names the budget that this one was made from, if any; a removed one stays known,
as its name must not come to mean something else. ``configured`` is what a client's configuration
said of it last, empty if none did."""

thresholds = Table(
    "thresholds",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("percent", Integer, primary_key=True),
)
"""Which percentages of a limit were reported as spent, in which window."""

balances = Table(
    "balances",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("spent_nano", BigInteger, nullable=False),
    Column("reserved_nano", BigInteger, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("open_calls", BigInteger, nullable=False),
    Column("excess_nano", BigInteger, nullable=False),
)
"""``calls`` were reserved in the window, ``open_calls`` of them are under way; ``excess_nano`` is
what calls cost beyond what was set aside for them. A slot of a rolling window has its own row."""

reservations = Table(
    "reservations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("decision_id", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reserved_nano", BigInteger, nullable=False),
    Column("settled_nano", BigInteger, nullable=False),
    Column("estimated", Integer, nullable=False),
    Column("price_source", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

reservation_budgets = Table(
    "reservation_budgets",
    metadata,
    Column("reservation_id", Text, primary_key=True),
    Column("budget", Text, primary_key=True),
    Column("window_start", BigInteger, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
)
"""What a reservation sets aside in each budget: less than its own amount in a soft one."""

decisions = Table(
    "decisions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("query", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("p", Double, nullable=False),
    Column("std", Double, nullable=False),
    Column("expected_cost_nano", BigInteger, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("price", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("left_out", Text),
)
"""``scopes`` is a JSON list: what the call belonged to. ``left_out`` is a JSON object: why some
candidates could not serve the call; NULL where all could."""

outcomes = Table(
    "outcomes",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("candidate", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("estimated", Integer, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("latency_seconds", Double, nullable=False),
    Column("error", Text, nullable=False),
    Column("prompt_bytes", BigInteger, nullable=False),
    Column("choices", Integer, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("audio_tokens", BigInteger, nullable=False),
    Column("reported_nano", BigInteger),
    Column("first_token_seconds", Double),
    Column("cut", Integer, nullable=False),
)
"""The kinds of token lie within ``prompt_tokens`` and ``completion_tokens``; ``reported_nano`` is
what the provider itself said that it charges, and is then the cost."""

feedback = Table(
    "feedback",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("score", Double, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("candidate", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("answered_at", Double, nullable=False),
)
"""Who answered last, by a keyed digest of what was said so far; the key is kept elsewhere."""

access_keys = Table(
    "access_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)
