"""What was spent, added up by the database: by model, scope, day or price table.

A call belongs to the moment at which its money was set aside, as in the ledger: what the
settled and expired reservations of a window come to is what its balance says was spent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, text

from optllm_router._types import Usage
from optllm_router.store.database import Database

By: TypeAlias = Literal["model", "scope", "day", "price_table"]


@dataclass(frozen=True)
class Spent:
    """What a group of calls came to; amounts in nano-dollars.

    Attributes:
        calls: attempts that were charged, or may have been.
        spent_nano: what they cost: the settled and the expired reservations.
        estimated_calls: of ``calls``, those whose tokens the provider did not count.
        estimated_nano: what of ``spent_nano`` is our estimate for them: where nobody counted,
            the most that they can have cost.
        reported_nano: what of ``spent_nano`` the providers themselves said that they charge.
        expired_calls: of ``calls``, those whose process died.
        expired_nano: what of ``spent_nano`` dead processes had set aside, for these and for
            calls to come: the most they can have cost.
        free_calls: attempts that failed without a charge.
        open_calls: attempts under way.
        open_nano: what is set aside, for them and for calls to come; not in ``spent_nano``.
        prompt_tokens: that were sent.
        cached_tokens: of these, as far as the provider said, read from its cache.
        cache_write_tokens: of the prompt tokens, written to it.
        completion_tokens: that were generated.
        reasoning_tokens: of these, of hidden reasoning.
    """

    calls: int = 0
    spent_nano: int = 0
    estimated_calls: int = 0
    estimated_nano: int = 0
    reported_nano: int = 0
    expired_calls: int = 0
    expired_nano: int = 0
    free_calls: int = 0
    open_calls: int = 0
    open_nano: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Answers:
    """The answers of a group: how many, at what cost, and how good.

    Attributes:
        count: how many.
        counted: of these, those whose tokens the provider counted.
        cost_nano: what they cost.
        graded: how many have a score.
        score: mean score, 0..1; 0 without any.
        score_variance: variance of single scores.
    """

    count: int
    counted: int
    cost_nano: int
    graded: int
    score: float
    score_variance: float


@dataclass(frozen=True)
class AnsweredCall:
    """One answer whose tokens the provider counted.

    Attributes:
        query: text of the query.
        candidate: who answered.
        usage: what all choices together consumed.
        choices: how many answers it gave.
        score: how good it was, 0..1, where it was graded.
    """

    query: str
    candidate: str
    usage: Usage
    choices: int
    score: float | None


@dataclass(frozen=True)
class GradedAnswer:
    """A score, and how likely its candidate was chosen.

    Attributes:
        query: text of the query.
        candidate: who answered.
        score: how good the answer was, 0..1.
        propensity: probability, in (0, 1], with which the candidate was chosen to answer.
    """

    query: str
    candidate: str
    score: float
    propensity: float


class Spending:
    """A snapshot of what happened from ``since`` to before ``until`` (Unix seconds)."""

    def __init__(self, connection: Connection, since: float, until: float) -> None:
        self._connection = connection
        self._period = {"since": since, "until": until}

    @classmethod
    @contextmanager
    def of(cls, database: Database, since: float, until: float) -> Iterator[Spending]:
        """Open a snapshot: all its sums are of the same moment."""
        with database.read() as connection:
            yield cls(connection, since, until)

    def sums(self) -> dict[By, dict[str, Spent]]:
        """The sums by name of model, scope, day (UTC, like ``2026-01-31``) and price table.

        They add up to the total, except for scopes: a call counts in each of its own. The scope
        ``""`` is that of the calls that no budget watched; the model ``""`` that of the money
        which is, or was when a process died, set aside for calls to come.
        """
        found: dict[By, dict[str, Spent]] = {
            "model": {},
            "scope": {},
            "day": {},
            "price_table": {},
        }
        apart: tuple[By, ...] = ("model", "day", "price_table")
        columns = f"r.candidate AS model, {self._day} AS day, r.price_source AS price_table"
        for row in self._sums(columns, "1, 2, 3"):
            for what in apart:
                group = found[what]
                group[row[what]] = group.get(row[what], Spent()) + _spent(row)
        for row in self._sums("COALESCE(s.scope, '') AS scope", "1", _SCOPES):
            found["scope"][row["scope"]] = _spent(row)
        return {what: dict(sorted(group.items())) for what, group in found.items()}

    @functools.cached_property
    def answers(self) -> dict[str, Answers]:
        """The answers by candidate; embeddings, which are no answers, are left out."""
        rows = self._connection.execute(text(_ANSWERS), self._period)
        return {row.candidate: _answers(row._asdict()) for row in rows}

    def sample(self, most: int) -> list[AnsweredCall]:
        """Up to ``most`` of the answers whose tokens were counted, evenly over the period."""
        counted = sum(answers.counted for answers in self.answers.values())
        step = max(1, -(-counted // most))
        rows = self._connection.execute(text(_SAMPLE), {**self._period, "step": step})
        return [
            AnsweredCall(
                row.query,
                row.candidate,
                Usage(
                    row.prompt_tokens,
                    row.completion_tokens,
                    cached_tokens=row.cached_tokens,
                    cache_write_tokens=row.cache_write_tokens,
                    reasoning_tokens=row.reasoning_tokens,
                    audio_tokens=row.audio_tokens,
                ),
                row.choices,
                row.score,
            )
            for row in rows
        ]

    def graded(self, most: int) -> list[GradedAnswer]:
        """The latest scores before the end of the period, oldest first."""
        rows = self._connection.execute(text(_GRADED), {**self._period, "most": most}).all()
        return [
            GradedAnswer(row.query, row.candidate, row.score, row.propensity)
            for row in reversed(rows)
        ]

    @property
    def _day(self) -> str:
        if self._connection.dialect.name == "postgresql":
            return "to_char(to_timestamp(r.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        return "strftime('%Y-%m-%d', r.created_at, 'unixepoch')"

    def _sums(self, columns: str, groups: str, join: str = "") -> list[Mapping[str, Any]]:
        query = f"SELECT {columns}, {_SUMS} {_CALLS} {join} {_PERIOD} GROUP BY {groups}"
        return [row._asdict() for row in self._connection.execute(text(query), self._period)]


def _spent(row: Mapping[str, Any]) -> Spent:
    return Spent(**{field.name: int(row[field.name] or 0) for field in fields(Spent)})


def _answers(row: Mapping[str, Any]) -> Answers:
    score, squares = (float(row[name] or 0.0) for name in ("score", "squares"))
    return Answers(
        count=row["number"],
        counted=row["counted"],
        cost_nano=int(row["cost_nano"]),
        graded=row["graded"],
        score=score,
        score_variance=max(0.0, squares - score**2),
    )


_CALLS = """FROM reservations AS r
    LEFT JOIN outcomes AS o
    ON o.decision_id = r.decision_id AND r.id = o.decision_id || '-' || o.attempt"""
_PERIOD = "WHERE r.created_at >= :since AND r.created_at < :until"
_SCOPES = f"""LEFT JOIN (
        SELECT DISTINCT r.id, b.scope FROM reservations AS r
        JOIN reservation_budgets AS part ON part.reservation_id = r.id
        JOIN budgets AS b ON b.name = part.budget {_PERIOD}
    ) AS s ON s.id = r.id"""  # noqa: S608 - names of our own schema
_CHARGED = "r.state IN ('settled', 'expired')"
_CALL = "r.candidate <> ''"
"""Not a block, which holds money for calls to come and has no candidate yet."""
_SUMS = ", ".join(
    f"SUM(CASE WHEN {condition} THEN {value} ELSE 0 END) AS {name}"
    for name, condition, value in (
        ("calls", f"{_CHARGED} AND {_CALL}", "1"),
        ("spent_nano", _CHARGED, "r.settled_nano"),
        ("estimated_calls", "r.state = 'settled' AND r.estimated = 1", "1"),
        ("estimated_nano", "r.state = 'settled' AND r.estimated = 1", "r.settled_nano"),
        ("reported_nano", "r.state = 'settled' AND o.reported_nano IS NOT NULL", "r.settled_nano"),
        ("expired_calls", f"r.state = 'expired' AND {_CALL}", "1"),
        ("expired_nano", "r.state = 'expired'", "r.settled_nano"),
        ("free_calls", f"r.state = 'released' AND {_CALL}", "1"),
        ("open_calls", f"r.state = 'open' AND {_CALL}", "1"),
        ("open_nano", "r.state = 'open'", "r.reserved_nano"),
        ("prompt_tokens", "o.prompt_tokens IS NOT NULL", "o.prompt_tokens"),
        ("completion_tokens", "o.completion_tokens IS NOT NULL", "o.completion_tokens"),
        ("cached_tokens", "o.estimated = 0", "o.cached_tokens"),
        ("cache_write_tokens", "o.estimated = 0", "o.cache_write_tokens"),
        ("reasoning_tokens", "o.estimated = 0", "o.reasoning_tokens"),
    )
)
_ANSWERED = """FROM outcomes AS o
    JOIN decisions AS d ON d.id = o.decision_id
    LEFT JOIN feedback AS f ON f.decision_id = o.decision_id
    WHERE o.status = 'ok' AND o.completion_tokens > 0
    AND d.created_at >= :since AND d.created_at < :until"""
_GRADED = """SELECT d.query, o.candidate, f.score, d.propensity
    FROM feedback AS f
    JOIN decisions AS d ON d.id = f.decision_id
    JOIN outcomes AS o ON o.decision_id = d.id AND o.status = 'ok' AND o.candidate = d.candidate
    WHERE d.created_at < :until
    ORDER BY d.id DESC LIMIT :most"""
_ANSWERS = f"""SELECT o.candidate AS candidate,
    COUNT(*) AS number,
    COUNT(CASE WHEN o.estimated = 0 THEN 1 END) AS counted,
    SUM(o.cost_nano) AS cost_nano,
    COUNT(f.score) AS graded,
    AVG(f.score) AS score,
    AVG(f.score * f.score) AS squares
    {_ANSWERED} GROUP BY o.candidate ORDER BY o.candidate"""
_SAMPLE = f"""SELECT d.query, o.candidate, o.prompt_tokens, o.completion_tokens,
    o.cached_tokens, o.cache_write_tokens, o.reasoning_tokens, o.audio_tokens,
    o.choices, f.score
    FROM (
        SELECT o.decision_id, o.attempt, ROW_NUMBER() OVER (ORDER BY o.decision_id) AS place
        {_ANSWERED} AND o.estimated = 0
    ) AS picked
    JOIN outcomes AS o ON o.decision_id = picked.decision_id AND o.attempt = picked.attempt
    JOIN decisions AS d ON d.id = o.decision_id
    LEFT JOIN feedback AS f ON f.decision_id = o.decision_id
    WHERE picked.place % :step = 0
    ORDER BY o.decision_id"""  # noqa: S608 - names of our own schema
