"""What the database complains about, in one sentence: the store, the trouble, the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from optllm_router._errors import StoreError

_READ_ONLY = "make the file and its folder writable, or choose another store"
_UNREACHABLE = "check that the server runs and that the URL is right"
_REMEDIES = (
    ("readonly", _READ_ONLY),
    ("read-only", _READ_ONLY),
    ("locked", "another program holds it; close that program or wait for it"),
    ("unable to open", "check that the folder exists and may be written to"),
    ("not a database", "the file is something else; choose another store"),
    ("full", "free some disk space"),
    ("No space left", "free some disk space"),
    ("disk I/O error", "check that the disk is healthy and not full"),
    ("already exists", "its tables belong to another program; choose another store"),
    (
        "statement timeout",
        "the server is busy; try again, or allow more milliseconds in the URL: "
        "?options=-cstatement_timeout=600000",
    ),
    ("timed out", _UNREACHABLE),
    ("administrator command", _UNREACHABLE),
    ("connection", _UNREACHABLE),
)
"""What a complaint contains, and what helps; the first that fits."""


_LOST_AGAINST_ANOTHER = ("40001", "40P01")
"""PostgreSQL: a serialization failure, a deadlock."""
_NO_FAULT_OF_A_WRITE = ("25006", "53", "55P03", "57")
"""PostgreSQL: read-only, out of resources, waited too long for a lock, cancelled or shut down."""


def may_pass(error: DBAPIError) -> bool:
    """Whether the same transaction may well succeed a moment later."""
    return error.connection_invalidated or _state(error) in _LOST_AGAINST_ANOTHER


def concerns_all(error: Exception) -> bool:
    """Whether any transaction could have met it: no write of it is to blame."""
    if not isinstance(error, DBAPIError):
        return False
    return may_pass(error) or _state(error).startswith(_NO_FAULT_OF_A_WRITE)


def _state(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def closed() -> StoreError:
    """What to raise to who uses a database after it was closed."""
    return StoreError("the database is closed; create a new client")


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what the database raises into ``StoreError``; ``name`` says which one it was."""
    try:
        yield
    except DBAPIError as error:
        lines = str(error.orig).strip().splitlines()
        cause = lines[0] if lines else "no reason"
        raise StoreError(f"store {name}: {cause}; {_remedy(cause)}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"store {name}: {error}") from error


def _remedy(cause: str) -> str:
    for sign, remedy in _REMEDIES:
        if sign in cause:
            return remedy
    return "check that the database is intact and may be written to"
