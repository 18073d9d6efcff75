"""The receipt: what was spent, on what, and what one model for everything would have cost."""

from __future__ import annotations

import contextlib
import csv
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optllm_router._errors import ConfigurationError, InvalidRequestError
from optllm_router._types import Candidate, Price
from optllm_router.candidates import read_candidates
from optllm_router.receipts._baseline import Baseline, cost_usd, savings
from optllm_router.receipts._lengths import Lengths
from optllm_router.receipts._success import Grades, Success
from optllm_router.store import Database, Records, Spending, Spent

if TYPE_CHECKING:
    from optllm_router.store import AnsweredCall, Answers, By

NO_BASELINE = "none"
_MOST_SAMPLED = 2_000
_MOST_RECORDED = 4_000
_MOST_LABELLED = 2_000
"""So many answers are looked at, at most: memory and time do not grow with the store."""
_AGO = re.compile(r"([1-9]\d{0,5})\s*(m|h|d|w)")
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800, 253_402_300_799
"""Of the years 1 to 9999, which calendars here know."""
_UNIT_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

Moment = str | float | datetime | timedelta | None


@dataclass(frozen=True)
class Receipt:
    """What was spent in a period; amounts in nano-dollars.

    Attributes:
        since: start of the period, Unix seconds; a call belongs to when its money was set aside.
        until: end of the period, Unix seconds, excluded.
        total: the sums over all calls.
        by: the sums by ``model``, ``scope``, ``day`` (UTC) and ``price_table``, each by name. Those
            of scopes overlap, as a call counts in each of its own; the others add up to ``total``.
        success: how good the answers were; ``None`` when nothing was ever graded.
        baseline: the comparison with one model for everything; ``None`` without one.
        no_baseline: why there is none, although one was asked for.
    """

    since: float
    until: float
    total: Spent
    by: Mapping[By, Mapping[str, Spent]]
    success: Success | None
    baseline: Baseline | None
    no_baseline: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The receipt as JSON values."""
        return asdict(self)

    def write_csv(self, path: str | Path, by: By = "model") -> None:
        """Write the sums by model, scope, day or price table, one row each.

        Raises:
            InvalidRequestError: there is no such grouping.
        """
        if by not in self.by:
            raise InvalidRequestError(f"by {by!r} is none of {', '.join(self.by)}")
        rows = [{by: name, **asdict(spent)} for name, spent in self.by[by].items()]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [by, *asdict(self.total)])
            writer.writeheader()
            writer.writerows(rows)


def make_receipt(
    database: Database,
    *,
    since: Moment = "30d",
    until: Moment = None,
    baseline: str | None = None,
    candidates: Sequence[Candidate] = (),
    now: float | None = None,
) -> Receipt:
    """Add up what a store holds.

    Sums are exact. The comparison extrapolates from a sample of at most 2,000 answers, with
    lengths and success predicted from at most 4,000 and 2,000 recorded ones.

    Args:
        database: the store.
        since: a time ago like ``"7d"`` (m, h, d, w), a date like ``"2026-01-31"`` (UTC), a
            ``datetime``, a ``timedelta``, or Unix seconds.
        until: the same; ``None`` for now.
        baseline: the model to compare with: a candidate's name, or any that has a price;
            ``None`` for the dearest that has answered, ``"none"`` for no comparison.
        candidates: the configured ones, for their prices.
        now: Unix seconds; by default the clock's.

    Raises:
        ConfigurationError: a moment or baseline is not understood, or has no price.
    """
    now = time.time() if now is None else now
    start = read_moment(since, now, "since")
    end = now if until is None else read_moment(until, now, "until")
    if not start < end:
        then = "now" if until is None else f"until {until!r}"
        raise ConfigurationError(f"since {since!r} is not before {then}")
    if baseline not in (None, NO_BASELINE):
        _baseline(baseline, candidates, {})  # a mistake in it is told even without answers
    with Spending.of(database, start, end) as spending:
        by, answers = spending.sums(), spending.answers
        sample = [] if baseline == NO_BASELINE else spending.sample(_MOST_SAMPLED)
        graded = spending.graded(_MOST_LABELLED) if sample else []
    total = sum(by["model"].values(), Spent())
    if not sample:
        why = "" if baseline == NO_BASELINE else "there are no answers to compare"
        return Receipt(start, end, total, by, None, None, why)
    chosen = _baseline(baseline, candidates, answers)
    grades = Grades(graded, sample, answers, [chosen[0]] if chosen else [])
    if chosen is None:
        why = "no price is known here of any model that answered; name one that has a price"
        return Receipt(start, end, total, by, grades.achieved(), None, why)
    name, price = chosen
    lengths = Lengths(Records(database).usages(_MOST_RECORDED), name)
    compared = _compared(name, price, answers, sample, lengths, grades)
    return Receipt(start, end, total, by, grades.achieved(), compared)


def read_moment(value: Moment, now: float, what: str) -> float:
    """A moment in Unix seconds; see :func:`make_receipt` for how it may be written.

    Raises:
        ConfigurationError: it is none.

    >>> read_moment("1d", 100_000.0, "since"), read_moment("1970-01-02", 0.0, "since")
    (13600.0, 86400.0)
    """
    seconds = _seconds_of(value, now, what)
    if not _FIRST_MOMENT <= seconds <= _LAST_MOMENT:
        raise ConfigurationError(
            f"{what} {value!r} lies outside the years 1 to 9999; write it like 7d, 24h or "
            "2026-01-31"
        )
    return seconds


def _seconds_of(value: Moment, now: float, what: str) -> float:
    if isinstance(value, timedelta):
        return now - value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    ago = _AGO.fullmatch(value.strip()) if isinstance(value, str) else None
    if ago is not None:
        return now - int(ago[1]) * _UNIT_SECONDS[ago[2]]
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f"{what} {value!r} is no moment; write it like 7d, 24h, 2026-01-31 or "
            "2026-01-31T12:00:00+01:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()


def _baseline(
    wanted: str | None, candidates: Sequence[Candidate], answers: Mapping[str, Answers]
) -> tuple[str, Price] | None:
    """The name and price of the model to compare with."""
    prices = {one.name: one.price for one in candidates if one.operation == "chat"}
    if wanted is not None:
        if wanted not in prices:
            (candidate,) = read_candidates([wanted])
            prices[wanted] = candidate.price
        return wanted, prices[wanted]
    if not prices:
        for name in answers:
            with contextlib.suppress(ConfigurationError):  # another name for it, or no price
                prices[name] = read_candidates([name])[0].price
    if not prices:
        return None
    return max(prices.items(), key=lambda item: (item[1].prompt + item[1].completion, item[0]))


def _compared(
    name: str,
    price: Price,
    answers: Mapping[str, Answers],
    sample: Sequence[AnsweredCall],
    lengths: Lengths,
    grades: Grades,
) -> Baseline:
    own = answers.get(name)
    cost_nano = sum(one.cost_nano for one in answers.values())
    instead = cost_usd(name, price, answers, sample, lengths)
    return Baseline(
        model=name,
        price_source=price.source,
        answers=sum(one.count for one in answers.values()),
        cost_nano=cost_nano,
        own_answers=own.count if own else 0,
        sampled=sum(one.candidate != name for one in sample),
        recorded_lengths=lengths.calls,
        cost_usd=instead,
        savings=savings(cost_nano, instead),
        recorded_scores=grades.of(name),
        success=grades.with_only(name),
    )
