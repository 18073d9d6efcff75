"""Windows of time in which a budget's limit holds.

A calendar window (``hour``, ``day``, ``week``, ``month``) starts and ends with the clock on the
wall of a time zone; ``total`` never ends. A rolling one (``rolling 24h``) ends now: it is kept in
slots of a sixtieth of its length, and a slot counts until it has wholly left the window, so that
the limit holds in *every* span of that length.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo

from optllm_router._errors import ConfigurationError

_CALENDAR = {
    **dict.fromkeys(("total", "ever"), "total"),
    **dict.fromkeys(("hour", "1h", "hourly"), "hour"),
    **dict.fromkeys(("day", "1d", "daily"), "day"),
    **dict.fromkeys(("week", "1w", "weekly"), "week"),
    **dict.fromkeys(("month", "1mo", "monthly"), "month"),
}
_ROLLING = re.compile(r"rolling\s+([1-9]\d{0,5})\s*(m|min|minutes?|h|hours?|d|days?)")
_MINUTES = {"m": 1, "h": 60, "d": 1440}
_MOST_MINUTES = 366 * 1440
_SLOTS = 60


@dataclass(frozen=True)
class Span:
    """Where a window lies at one moment; times are Unix seconds.

    Attributes:
        slot: start of the slot in which a call of this moment is entered.
        first: slots that start before this one have left the window.
        last: slots that start after this one do not count either. In a rolling window it is in
            the future, for the calls of a host whose clock is ahead.
        stays: how long after its start a slot counts; ``None`` for ever.
        ends: when another slot begins; ``None`` for never.
        period: start of the stretch of time in which a threshold is reported once.
        period_before: start of the stretch before, what was reported in which stays reported as
            long as it is exceeded; ``None`` where each window begins with nothing spent.
    """

    slot: int
    first: int
    last: int
    stays: int | None
    ends: int | None
    period: int
    period_before: int | None = None

    def over(self, slot: int) -> int | None:
        """When a slot no longer counts; ``None`` when it always will."""
        return None if self.stays is None else slot + self.stays


def canonical_window(window: object) -> str:
    """The one name of a window that has many: ``1d`` is ``day``, ``rolling 1d`` ``rolling 24h``.

    Raises:
        ConfigurationError: it is none.
    """
    text = str(window).strip().lower()
    if text in _CALENDAR:
        return _CALENDAR[text]
    match = _ROLLING.fullmatch(text)
    minutes = int(match[1]) * _MINUTES[match[2][0]] if match else 0
    if not 0 < minutes <= _MOST_MINUTES:
        raise ConfigurationError(
            f"budget window {window!r} is unknown; use total, hour, day, week or month, or "
            "a rolling one of 1 minute to 366 days, like 'rolling 24h'"
        )
    if minutes % 1440 == 0 and minutes > 1440:
        return f"rolling {minutes // 1440}d"
    return f"rolling {minutes // 60}h" if minutes % 60 == 0 else f"rolling {minutes}m"


def checked_timezone(name: object) -> str:
    """The name of a time zone, as it was given.

    Raises:
        ConfigurationError: there is no such zone.
    """
    if not isinstance(name, str):
        raise ConfigurationError(
            f"budget time zone {name!r} must be an IANA name, like 'Europe/Berlin'"
        )
    _zone(name)
    return name


def span_at(window: str, now: float, timezone: str = "UTC") -> Span:
    """Where a window lies at a moment.

    Args:
        window: a canonical name.
        now: Unix seconds.
        timezone: IANA name, for calendar windows.

    >>> span_at("hour", 7201.5).slot, span_at("hour", 7201.5).ends
    (7200, 10800)
    """
    if window == "total":
        return Span(0, 0, 0, None, None, 0)
    if window.startswith("rolling"):
        return _rolling(window, int(now // 1))
    start, end = _calendar(window, int(now // 1), timezone)
    return Span(start, start, start, end - start, end, start)


def _rolling(window: str, now: int) -> Span:
    count, unit = window.split()[1][:-1], window[-1]
    length = int(count) * _MINUTES[unit] * 60
    step = length // _SLOTS
    slot, period = now // step * step, now // length * length
    return Span(
        slot=slot,
        first=slot - length,
        last=slot + length,
        stays=length + step,
        ends=slot + step,
        period=period,
        period_before=period - length,
    )


def _calendar(window: str, now: int, timezone: str) -> tuple[int, int]:
    zone = _zone(timezone)
    today = datetime.fromtimestamp(now, tz=zone).date()
    match window:
        case "week":
            first = today - timedelta(days=today.weekday())
            return _midnight(first, zone), _midnight(first + timedelta(days=7), zone)
        case "month":
            first = today.replace(day=1)
            following = (first + timedelta(days=32)).replace(day=1)
            return _midnight(first, zone), _midnight(following, zone)
    start, end = _midnight(today, zone), _midnight(today + timedelta(days=1), zone)
    if window == "day":
        return start, end
    # Hours are counted from midnight: where a zone moves its clocks by half an hour, they tile.
    hour = start + (now - start) // 3600 * 3600
    return hour, min(hour + 3600, end)


def _midnight(day: date, zone: tzinfo) -> int:
    """First second of a day, also where clocks are moved at midnight."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return timezone.utc
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ConfigurationError(
            f"time zone {str(name)[:50]!r} is unknown; use an IANA name like 'Europe/Berlin' "
            "(on systems that have no time zones: pip install tzdata)"
        ) from None
