"""How long a provider asks callers to wait, as its headers say."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_LONGEST_SECONDS = 24 * 3600.0
"""A provider that names a later time is not believed: its clock or ours is wrong."""


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds until the provider wants to be asked again, >= 0; ``None`` when it does not say.

    Args:
        headers: of the response, with lower-case names or case-insensitive. ``retry-after-ms``
            (OpenAI's) holds milliseconds, ``retry-after`` (RFC 9110, 10.2.3) seconds or a date.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    value = headers.get("retry-after")
    seconds = _number(value) if milliseconds is None else milliseconds / 1000
    if seconds is None and value is not None:
        seconds = _seconds_until(value)
    if seconds is None or not seconds <= _LONGEST_SECONDS:
        return None
    return max(seconds, 0.0)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds_until(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
