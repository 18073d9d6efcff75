"""Who answered last in a conversation, for all processes that share a store.

A conversation is known by a keyed digest of what was said in it: whoever reads the database
without that key, which is not in it, cannot even try out what was said. Rows are few and end: those
of a week ago are deleted, and all but the most recent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, delete, select, text

from optllm_router.store._point_reads import Found
from optllm_router.store.database import Database
from optllm_router.store.schema import conversations

_log = logging.getLogger("optllm_router")

_Row: TypeAlias = dict[str, Any]

_KEPT = 100_000
"""Conversations that are kept, about; the most recent."""
_KEPT_SECONDS = 7 * 86_400.0
_ROWS_BETWEEN_DELETIONS = 1_000


@dataclass(frozen=True)
class Partner:
    """Who answered last.

    Attributes:
        candidate: name of the model.
        prompt_tokens: what it had read by then: the provider may still have it in its cache.
        at: when, Unix seconds.
    """

    candidate: str
    prompt_tokens: int
    at: float


class Partners:
    """Who answered last, by digests of conversations; thread-safe."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._gathering: list[_Row] = []
        self._writing: Future[None] | None = None
        self._rows_until_deletion = 0

    def keep(self, digests: Sequence[str], partner: Partner) -> Future[None]:
        """Keep who gave an answer, under each digest of the conversation with it.

        Nobody waits for it: what is to be kept until the next commit is one write.
        """
        told = {
            "candidate": partner.candidate,
            "prompt_tokens": partner.prompt_tokens,
            "answered_at": partner.at,
        }
        rows = [{"digest": digest, **told} for digest in digests]
        with self._lock:
            if self._writing is None or self._writing.done():  # the latter: it failed unheard
                self._gathering = []
                self._writing = self._database.submit_to(self._write, self._gathering, urgent=False)
                self._writing.add_done_callback(_log_if_lost)
            self._gathering.extend(rows)
            return self._writing

    def find(self, digest: str) -> Partner | None:
        """Who answered last in a conversation; ``None`` where that is not known.

        Raises:
            StoreError: the database cannot be read.
        """
        return _partner(self._database.row(conversations, digest))

    async def afind(self, digest: str) -> Partner | None:
        """As :meth:`find`, without blocking the event loop."""
        return _partner(await self._database.arow(conversations, digest))

    def _write(self, connection: Connection, items: Sequence[list[_Row]]) -> Sequence[None]:
        with self._lock:
            self._writing = None  # what was gathered is complete, also if it is written again
        rows = [row for item in items for row in item]
        # In one order everywhere: processes that write the same rows do not wait in a circle.
        connection.execute(_KEEP, sorted(rows, key=lambda row: row["digest"]))
        self._rows_until_deletion -= len(rows)
        if self._rows_until_deletion <= 0:
            _delete_old(connection, self._clock() - _KEPT_SECONDS)
            self._rows_until_deletion = _ROWS_BETWEEN_DELETIONS
        return [None] * len(items)


def _log_if_lost(kept: Future[None]) -> None:
    if error := kept.exception():
        _log.warning("who answered last in conversations could not be kept: %s", error)


def _delete_old(connection: Connection, before: float) -> None:
    moment = conversations.c.answered_at
    last_kept = select(moment).order_by(moment.desc()).offset(_KEPT - 1).limit(1)
    connection.execute(delete(conversations).where(moment < before))
    connection.execute(delete(conversations).where(moment < last_kept.scalar_subquery()))


def _partner(row: Found) -> Partner | None:
    if row is None:
        return None
    _, candidate, prompt_tokens, answered_at = row
    return Partner(candidate, prompt_tokens, answered_at)


_KEEP = text(
    """INSERT INTO conversations (digest, candidate, prompt_tokens, answered_at)
    VALUES (:digest, :candidate, :prompt_tokens, :answered_at)
    ON CONFLICT (digest) DO UPDATE SET candidate = excluded.candidate,
        prompt_tokens = excluded.prompt_tokens, answered_at = excluded.answered_at
    WHERE excluded.answered_at >= conversations.answered_at"""
)
