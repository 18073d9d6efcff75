"""Access keys: who may use a server, and under which scope their calls are counted.

A key is ``sk-optllm-ID-SECRET``. The id is public and finds the row; the secret is 256 random
bits and is shown once. Only the SHA-256 of the whole key is kept: a slow hash protects secrets
that people think up, and nobody can guess 256 bits, however fast the hash. Digests are compared
in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, select, update

from optllm_router._errors import ConfigurationError
from optllm_router._scopes import scopes_of_call
from optllm_router.store._point_reads import Found
from optllm_router.store.database import Database
from optllm_router.store.schema import access_keys

_KEY = re.compile(r"sk-optllm-(?P<id>[0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class AccessKey:
    """What is known of a key; moments are Unix seconds.

    Attributes:
        id: its public part.
        scope: what its calls are counted under; ``everything`` sees and may name all scopes.
        created_at: when it was made.
        expires_at: when it stops working; ``None`` for never.
        revoked_at: when it was revoked; ``None`` when it was not.
    """

    id: str
    scope: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def works_at(self, moment: float) -> bool:
        """Whether the key may be used."""
        expired = self.expires_at is not None and self.expires_at <= moment
        return self.revoked_at is None and not expired


class AccessKeys:
    """The keys of one store; thread-safe."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        scope: str = "everything",
        *,
        lives_seconds: float | None = None,
        together_with: Callable[[Connection], object] | None = None,
    ) -> tuple[str, AccessKey]:
        """Make a key; returns its text, which nobody can read again, and what is kept of it.

        Args:
            scope: what its calls are counted under.
            lives_seconds: how long it works; ``None`` for ever.
            together_with: a further write; both are done, or neither. It may be run more than once.

        Raises:
            ConfigurationError: the scope is none that a call can have, or not printable, or the
                life of the key is not over 0 seconds.
        """
        scopes_of_call([scope])
        if not scope.isprintable():
            raise ConfigurationError(f"scope {scope[:50]!r} must have printable characters only")
        if lives_seconds is not None and not lives_seconds > 0:
            raise ConfigurationError(f"a key that lives {lives_seconds} seconds would never work")
        now = self._clock()
        id = secrets.token_hex(6)
        text = f"sk-optllm-{id}-{secrets.token_urlsafe(32)}"
        expires_at = None if lives_seconds is None else now + lives_seconds
        key = AccessKey(id, scope, now, expires_at)

        def work(connection: Connection) -> None:
            if together_with is not None:
                together_with(connection)
            known = select(access_keys.c.id).where(access_keys.c.id == id)
            if connection.scalar(known) is None:  # a write can be run more than once
                row = {"digest": _digest(text), "scope": scope, "created_at": now}
                connection.execute(access_keys.insert().values(id=id, expires_at=expires_at, **row))

        self._database.submit(work).result()
        return text, key

    async def afind(self, text: str) -> AccessKey | None:
        """The key of that text, whether or not it still works; ``None`` when there is none.

        It is what was committed last, by any process, and does not block the event loop.

        Raises:
            StoreError: the database cannot be read.
        """
        match = _KEY.fullmatch(text)
        return match and _if_equal(await self._database.arow(access_keys, match["id"]), text)

    def all(self) -> list[AccessKey]:
        """All keys that were ever made, oldest first."""
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(_ALL)]

    def exist(self) -> bool:
        """Whether a key was ever made, also when it works no more."""
        with self._database.read() as connection:
            return connection.scalar(select(access_keys.c.id).limit(1)) is not None

    def revoke(self, id: str) -> AccessKey:
        """Stop a key from working, now and for good; once more changes nothing.

        Raises:
            ConfigurationError: no key of that id.
        """
        now = self._clock()

        def work(connection: Connection) -> AccessKey:
            same = access_keys.c.id == id
            connection.execute(
                update(access_keys)
                .where(same, access_keys.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            row = connection.execute(_ALL.where(same)).first()
            if row is None:
                raise ConfigurationError(
                    f"no key {id!r} in this store; `optllm keys list` shows them"
                )
            return _key(row)

        return self._database.submit(work).result()


_ALL = select(access_keys).order_by(access_keys.c.created_at, access_keys.c.id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _if_equal(row: Found, text: str) -> AccessKey | None:
    """The key in a row, if it has that text."""
    if row is None:
        return None
    id, digest, *further = row
    return AccessKey(id, *further) if hmac.compare_digest(digest, _digest(text)) else None


def _key(row: Row[tuple[str, str, str, float, float, float]]) -> AccessKey:
    return AccessKey(row.id, row.scope, row.created_at, row.expires_at, row.revoked_at)
