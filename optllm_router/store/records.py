"""Decisions, outcomes and feedback: what the router learns from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    Table,
    TextClause,
    case,
    cast,
    func,
    select,
    text,
    update,
)

from optllm_router._errors import UnknownAnswerError
from optllm_router._types import Decision, Outcome, Usage
from optllm_router.store.database import Database
from optllm_router.store.schema import decisions, feedback, outcomes

MOST_QUERY_CHARACTERS = 8_000
"""Of a query's text this much is kept to learn from."""


@dataclass(frozen=True)
class LabelledAnswer:
    """A graded answer.

    Attributes:
        decision_id: the decision that it carried out.
        query: text of the query.
        candidate: name of the candidate that answered.
        score: how good the answer was, 0..1.
        replaces: the score that the same answer had before, if any.
    """

    decision_id: str
    query: str
    candidate: str
    score: float
    replaces: float | None = None


@dataclass(frozen=True)
class RecordedUsage:
    """What an answer consumed.

    Attributes:
        query: text of the query.
        candidate: name of the candidate that answered.
        prompt_bytes: size of what was sent.
        usage: what the provider counted, for all choices together.
        choices: how many answers it gave.
    """

    query: str
    candidate: str
    prompt_bytes: int
    usage: Usage
    choices: int = 1


class Records:
    """Writes and reads what happened."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add_decision(
        self, decision: Decision, query: str, scopes: Sequence[str] = ()
    ) -> Future[None]:
        """Keep a decision, the text it was made for, and what the call belonged to."""
        row = {
            "id": decision.id,
            "created_at": self._clock(),
            "query": query[:MOST_QUERY_CHARACTERS].replace("\x00", " "),
            "candidate": decision.candidate,
            "p": decision.p,
            "std": decision.std,
            "expected_cost_nano": decision.expected_cost_nano,
            "propensity": decision.propensity,
            "price": decision.price,
            "reason": decision.reason,
            "scopes": json.dumps(sorted(scopes)),
            "left_out": json.dumps(dict(decision.left_out)) if decision.left_out else None,
        }
        return self._database.submit_to(_write, _Row(_KEEP_DECISION, row), urgent=False)

    def add_outcome(
        self, outcome: Outcome, *, attempt: int, prompt_bytes: int, choices: int = 1
    ) -> Future[None]:
        """Keep what happened when a decision was sent for the ``attempt``-th time (from 0)."""
        usage = outcome.usage
        row = {
            "decision_id": outcome.decision_id,
            "attempt": attempt,
            "candidate": outcome.candidate,
            "status": outcome.status,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "estimated": int(usage is not None and usage.estimated),
            "cost_nano": outcome.cost_nano,
            "latency_seconds": outcome.latency_seconds,
            "error": outcome.error,
            "prompt_bytes": prompt_bytes,
            "choices": choices,
            "cached_tokens": usage.cached_tokens if usage else 0,
            "cache_write_tokens": usage.cache_write_tokens if usage else 0,
            "reasoning_tokens": usage.reasoning_tokens if usage else 0,
            "audio_tokens": usage.audio_tokens if usage else 0,
            "reported_nano": usage.reported_nano if usage else None,
            "first_token_seconds": outcome.first_token_seconds,
            "cut": int(usage is not None and usage.cut),
        }
        return self._database.submit_to(_write, _Row(_KEEP_OUTCOME, row), urgent=False)

    def add_feedback(
        self, decision_id: str, score: float, scopes: Collection[str] = ()
    ) -> Future[LabelledAnswer]:
        """Keep how good an answer was; a later score for the same answer replaces it.

        The future raises ``UnknownAnswerError`` when no answer of that id is known, or it does
        not belong to all of ``scopes``.
        """
        row = {"decision_id": decision_id, "created_at": self._clock(), "score": score}

        def work(connection: Connection) -> LabelledAnswer:
            answered = connection.execute(_ANSWERED.where(decisions.c.id == decision_id)).first()
            if answered is None or not set(scopes) <= set(json.loads(answered.scopes)):
                raise UnknownAnswerError(
                    f"no answer with id {decision_id!r} is known to this store; pass the id of "
                    "a completion that this store's client returned"
                )
            same = feedback.c.decision_id == decision_id
            before = connection.scalar(select(feedback.c.score).where(same))
            if before is None:
                connection.execute(feedback.insert(), row)
            else:
                connection.execute(update(feedback).where(same).values(row))
            graded = (decision_id, answered.query, answered.candidate, score)
            return LabelledAnswer(*graded, replaces=before)

        return self._database.submit_to(_write, work)

    def labelled(self, limit: int) -> list[LabelledAnswer]:
        """The most recent graded answers, oldest first."""
        return self._graded(_GRADED.limit(limit))

    def scored_since(self, moment: float) -> list[LabelledAnswer]:
        """Answers that were graded since ``moment`` (Unix seconds), oldest first."""
        return self._graded(_GRADED.where(feedback.c.created_at >= moment))

    def _graded(self, query: Select[Any]) -> list[LabelledAnswer]:
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            LabelledAnswer(row.id, row.query, row.candidate, row.score) for row in reversed(rows)
        ]

    def arrivals(self, since: float) -> dict[int, int]:
        """How many decisions were made in each hour, in hours since 1970.

        Args:
            since: Unix seconds.
        """
        exact = decisions.c.created_at / 3600.0
        whole = cast(exact, BigInteger)  # SQLite cuts off, PostgreSQL rounds
        hour = case((whole > exact, whole - 1), else_=whole).label("hour")
        counts = select(hour, func.count()).where(decisions.c.created_at >= since).group_by(hour)
        with self._database.read() as connection:
            return {int(row[0]): int(row[1]) for row in connection.execute(counts)}

    def usages(self, limit: int) -> list[RecordedUsage]:
        """What recent answers consumed, as far as the provider counted it, oldest first."""
        recent = (
            _ANSWERED.add_columns(
                outcomes.c.prompt_bytes,
                outcomes.c.prompt_tokens,
                outcomes.c.completion_tokens,
                outcomes.c.choices,
                outcomes.c.cached_tokens,
                outcomes.c.cache_write_tokens,
                outcomes.c.reasoning_tokens,
                outcomes.c.audio_tokens,
                outcomes.c.cut,
            )
            .where(outcomes.c.estimated == 0)
            .order_by(outcomes.c.decision_id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(recent).all()
        return [
            RecordedUsage(
                row.query,
                row.candidate,
                row.prompt_bytes,
                Usage(
                    row.prompt_tokens,
                    row.completion_tokens,
                    cached_tokens=row.cached_tokens,
                    cache_write_tokens=row.cache_write_tokens,
                    reasoning_tokens=row.reasoning_tokens,
                    audio_tokens=row.audio_tokens,
                    cut=bool(row.cut),
                ),
                row.choices,
            )
            for row in reversed(rows)
        ]


@dataclass(frozen=True)
class _Row:
    """A row to keep, and how."""

    statement: TextClause
    values: dict[str, Any]


def _write(
    connection: Connection, items: Sequence[_Row | Callable[[Connection], Any]]
) -> list[Any]:
    """Keep rows, a statement for all of a table, and then scores, which may be of these answers."""
    rows = [item for item in items if isinstance(item, _Row)]
    for statement in (_KEEP_DECISION, _KEEP_OUTCOME):
        many = [row.values for row in rows if row.statement is statement]
        if many:
            connection.execute(statement, many)
    return [None if isinstance(item, _Row) else item(connection) for item in items]


def _keep(table: Table) -> TextClause:
    """Insert a row once: a write that is repeated, as its commit's reply was lost, does nothing."""
    names = [column.name for column in table.columns]
    columns, values = ", ".join(names), ", ".join(f":{name}" for name in names)
    return text(
        f"INSERT INTO {table.name} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of our own schema
    )


_KEEP_DECISION, _KEEP_OUTCOME = _keep(decisions), _keep(outcomes)
_ANSWERED = select(
    decisions.c.id, decisions.c.query, decisions.c.scopes, outcomes.c.candidate
).join(outcomes, (outcomes.c.decision_id == decisions.c.id) & (outcomes.c.status == "ok"))
_GRADED = (
    _ANSWERED.join(feedback, feedback.c.decision_id == decisions.c.id)
    .add_columns(feedback.c.score)
    .order_by(feedback.c.created_at.desc(), decisions.c.id.desc())
)
