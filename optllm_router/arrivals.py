"""How many queries come, by the hour of the day and the day of the week. Knows no clock."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

_HOUR = 3600.0
_WEEK_HOURS = 168
_KEPT_HOURS = 8 * _WEEK_HOURS
_START_HOURS = 1 / 6
"""Added to the time watched so far: a burst has to last that long before it is taken for the
usual traffic."""
_HOUR_INERTIA, _DAY_INERTIA = 0.25, 3.0
"""Hours of average traffic that every hour of the day, or day of the week, is credited with."""
_COUNT_INERTIA = 4.0
"""Queries that both are credited with, besides: a few of them make no profile."""
_UNWATCHED_DAY = 0.75
"""Times the usual, for a day of the week that was never watched: many a weekend brings less, and
money that waits for queries that never come buys nothing."""


class Arrivals:
    """Counts queries by the hour for eight weeks, and expects as many again.

    The rate at a moment is the mean rate, times a factor for the hour of the day, times one for
    the day of the week (UTC); both factors start at one and are believed as evidence comes in.
    Not thread-safe.

    Examples:
        Ten queries an hour, through the day only:

        >>> arrivals = Arrivals()
        >>> for hour in range(14 * 24):
        ...     arrivals.add(hour * 3600.0, 20 if hour % 24 < 12 else 0)
        >>> day = 14 * 86400.0
        >>> round(arrivals.expected(day, day + 43200)), round(arrivals.expected(day, day + 86400))
        (235, 240)
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._queries = 0
        self._first: float | None = None
        self._last = 0.0
        self._so_far: list[float] = []  # expected since the week began, at each full hour
        self._profile_of: tuple[int, int] | None = None  # its last hour, and queries until then

    @property
    def first(self) -> float | None:
        """Unix seconds of the first query that was counted; ``None`` before any."""
        return self._first

    def add(self, now: float, queries: int = 1) -> None:
        """Count queries that came at ``now``, Unix seconds."""
        hour = int(now // _HOUR)
        self._counts[hour] = self._counts.get(hour, 0) + queries
        self._queries += queries
        self._first = now if self._first is None else min(self._first, now)
        self._last = max(self._last, now)

    def add_hours(self, by_hour: Mapping[int, int]) -> None:
        """Count queries by the hour they came in, in hours since 1970."""
        for hour, queries in by_hour.items():
            self.add(hour * _HOUR, queries)

    def expected(self, start: float, end: float) -> float:
        """Queries expected between two moments, Unix seconds; 0 before any was counted."""
        if not self._queries or end <= start:
            return 0.0
        self._refresh()
        return self._until(end) - self._until(start)

    def _until(self, moment: float) -> float:
        """Expected from the beginning of time until a moment."""
        weeks, rest = divmod(moment / _HOUR, _WEEK_HOURS)
        full = int(rest)
        now = self._so_far[full + 1] - self._so_far[full]
        return weeks * self._so_far[-1] + self._so_far[full] + (rest - full) * now

    def _refresh(self) -> None:
        """Bring the profile up to date, once an hour and when a sixteenth more has come."""
        hour, queries = int(self._last // _HOUR), self._queries
        if self._profile_of is not None:
            known_hour, known = self._profile_of
            if hour == known_hour and queries <= known * 17 // 16:
                return
        for old in [one for one in self._counts if one <= hour - _KEPT_HOURS]:
            self._queries -= self._counts.pop(old)
        self._profile_of = (hour, self._queries)
        self._so_far = [0.0, *accumulate(self._rates(hour))]

    def _rates(self, last: int) -> list[float]:
        """Queries per hour, for each hour of a week that begins as 1970 did."""
        first = max(min(self._counts), last - _KEPT_HOURS + 1)
        hours = range(first, last + 1)
        watching = {hour: self._watched(hour) for hour in hours}
        mean = self._queries / (sum(watching.values()) + _START_HOURS)
        few = _COUNT_INERTIA / mean

        came, seen = [0.0] * 24, [0.0] * 24
        for hour in hours:
            came[hour % 24] += self._counts.get(hour, 0) / mean
            seen[hour % 24] += watching[hour]
        of_hour = _factors(came, seen, _HOUR_INERTIA + few)

        came, seen = [0.0] * 7, [0.0] * 7
        for hour in hours:
            came[hour // 24 % 7] += self._counts.get(hour, 0) / mean
            seen[hour // 24 % 7] += watching[hour] * of_hour[hour % 24]
        of_day = [
            factor if watched else _UNWATCHED_DAY
            for factor, watched in zip(_factors(came, seen, _DAY_INERTIA + few), seen, strict=True)
        ]
        return [mean * of_hour[hour % 24] * of_day[hour // 24] for hour in range(_WEEK_HOURS)]

    def _watched(self, hour: int) -> float:
        """The part of an hour, 0..1, between the first query and the last."""
        first = 0.0 if self._first is None else self._first
        start, end = max(hour * _HOUR, first), min((hour + 1) * _HOUR, self._last)
        return max(end - start, 0.0) / _HOUR


def _factors(came: list[float], seen: list[float], inertia: float) -> list[float]:
    """How many times the usual number came, shrunk towards 1."""
    pairs = zip(came, seen, strict=True)
    return [(here + inertia) / (usual + inertia) for here, usual in pairs]
