"""What the provider says it charged, for reservations whose process died.

An expired reservation counts at its full amount. Once the provider's usage report names its true
cost, :func:`reconcile` puts that in its place; everything else stays as it is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router._money import MAX_NANO, format_usd, nano_from_usd
from optllm_router.ledger._charges import (
    ALWAYS,
    Charge,
    Meanings,
    Period,
    read_named,
    read_places,
    told_by,
)
from optllm_router.ledger._ledger import Ledger
from optllm_router.ledger._remains import (
    ExpiredBlock,
    expired_blocks,
    free_remains,
    may_be_retries,
    read_blocks,
)
from optllm_router.store import Database
from optllm_router.store.schema import reservations


@dataclass(frozen=True)
class Correction:
    """A reservation whose true cost became known; amounts in nano-dollars."""

    reservation_id: str
    candidate: str
    before_nano: int
    after_nano: int


@dataclass(frozen=True)
class Reconciliation:
    """What a report came to.

    Attributes:
        corrections: reservations that had expired and now have their true cost; a block, which
            a process held for calls to come, has no candidate.
        unmatched: ids of charges that mean no expired reservation, or might mean several calls,
            or of a call that such a charge may mean, too.
        still_expired: how many calls remain at their full amount.
        expired_blocks: the blocks that do.
    """

    corrections: tuple[Correction, ...]
    unmatched: tuple[str, ...]
    still_expired: int
    expired_blocks: tuple[ExpiredBlock, ...] = ()


def read_charges(path: Path) -> list[Charge]:
    """Read a report: CSV with a header or a JSON list, of ``id``, ``cost_usd``, maybe ``model``.

    Raises:
        InvalidDataError: the file cannot be read, or a line is no charge in US dollars.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else _csv_rows(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InvalidDataError(f"{str(path)!r} is no CSV or JSON list: {error}") from error
    return [_charge(row, number) for number, row in enumerate(rows, start=1)]


def reconcile(
    ledger: Ledger,
    database: Database,
    charges: Iterable[Charge],
    *,
    complete: Period | None = None,
) -> Reconciliation:
    """Settle expired reservations at what the provider charged for them.

    Several charges of one call add up: a provider may bill parts of it on lines of their own.

    Args:
        ledger: of the same database.
        database: with the reservations.
        charges: what the provider charged.
        complete: when every call that was sent then and charged is among the charges: what else
            expired is free, see :mod:`._remains`.

    Raises:
        InvalidDataError: the charges of a call add up to more than the books can hold; then
            nothing was settled.
    """
    known = list(charges)
    with database.read() as connection:
        rows = list(read_named(connection, known))
        places = read_places(connection, {row.id for row in rows})
        holding = read_blocks(connection)
    period = complete or ALWAYS
    meanings, told = Meanings(rows), told_by(known, rows, places, period)
    estimates = may_be_retries(told, holding)
    doubtful = told.doubtful | {
        row.id
        for row in rows
        if row.id in estimates and period.borders(row.created_at, row.expires_at)
    }
    corrections, unmatched = [], []
    billed: dict[str, tuple[Any, list[Charge]]] = {}
    for charge in known:
        meant = meanings.of(charge)
        if [row.state for row in meant] == ["expired"] and meant[0].id not in doubtful:
            (row,) = meant
            billed.setdefault(row.id, (row, []))[1].append(charge)
        else:
            unmatched.append(charge.id)
    costs = {id: _sum(id, parts) for id, (_, parts) in billed.items()}
    for id, (row, parts) in billed.items():
        if ledger.settle(id, costs[id], estimated=id in estimates).result():
            corrections.append(Correction(id, row.candidate, row.settled_nano, costs[id]))
        else:  # another process was told its cost meanwhile
            unmatched.extend(charge.id for charge in parts)
    if complete is not None:
        for freed in free_remains(ledger, database, known, complete):
            corrections.append(Correction(*astuple(freed)))
    left = select(func.count()).where(
        reservations.c.state == "expired", reservations.c.candidate != ""
    )
    with database.read() as connection:
        still = connection.scalar(left) or 0
    blocks = tuple(expired_blocks(database))
    return Reconciliation(tuple(corrections), tuple(unmatched), still, blocks)


def _sum(id: str, charges: Sequence[Charge]) -> int:
    cost = sum(charge.cost_nano for charge in charges)
    if cost > MAX_NANO:
        raise InvalidDataError(
            f"the charges of {id!r} add up to {format_usd(cost)}, over the largest supported "
            f"amount, {format_usd(MAX_NANO)}; is one of them in another unit?"
        )
    return cost


def _csv_rows(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    if missing := {"id", "cost_usd"} - set(reader.fieldnames or ()):
        raise ValueError(
            f"its first line names no {' and no '.join(sorted(missing, reverse=True))}"
        )
    return list(reader)


def _charge(row: Any, number: int) -> Charge:
    if not isinstance(row, Mapping) or not row.get("id") or row.get("cost_usd") in (None, ""):
        raise InvalidDataError(f"charge {number} needs an id and a cost_usd, but is {row!r:.200}")
    if str(row.get("currency") or "USD").strip().upper() != "USD":
        raise InvalidDataError(
            f"charge {number} is in {row['currency']!r:.100}; only USD is known: convert cost_usd, "
            "and leave the currency out"
        )
    try:
        cost = nano_from_usd(row["cost_usd"], what=f"cost_usd of charge {number}")
    except ConfigurationError as error:
        raise InvalidDataError(str(error)) from None
    return Charge(str(row["id"]), cost, str(row.get("model") or ""))
