"""Money: exact amounts in nano-dollars, and the budgets that cap them.

``1 USD = 10**9`` nano-dollars. An amount is an ``int`` from the provider's usage to the
database; floats appear only where a forecast is compared with another forecast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Literal, TypeAlias, cast

from optllm_router._errors import ConfigurationError

NANO_PER_USD = 10**9
MAX_NANO = 2**53
"""Largest amount that is accepted, about nine million USD: exact in a float, too."""

Window: TypeAlias = Literal["total", "hour", "day", "week", "month"]

_WINDOWS: dict[str, Window] = {
    **dict.fromkeys(("total", "ever"), "total"),
    **dict.fromkeys(("hour", "1h", "hourly"), "hour"),
    **dict.fromkeys(("day", "1d", "daily"), "day"),
    **dict.fromkeys(("week", "1w", "weekly"), "week"),
    **dict.fromkeys(("month", "1mo", "monthly"), "month"),
}
_MAX_USD = Decimal(MAX_NANO) / NANO_PER_USD
_BUDGET_TEXT = re.compile(
    r"\s*(?:(?P<dollar>\$)\s*)?(?P<amount>\S+?)\s*(?P<usd>USD)?"
    r"(?:\s*(?:per|/|a)\s*(?P<window>\w+)|\s+(?P<total>in\s+total|total))?\s*",
    re.IGNORECASE,
)
_BUDGET_EXAMPLES = "'5 USD', '$5 per day', '20 USD per month'"


def nano_from_usd(usd: Decimal | float | int | str, *, what: str = "amount") -> int:
    """The amount in nano-dollars, rounded down to a whole one.

    A float is taken as it prints (``0.1`` is a tenth of a dollar).

    Raises:
        ConfigurationError: not a number, NaN, infinite, negative, or over ``MAX_NANO``.

    >>> nano_from_usd("0.1")
    100000000
    """
    try:
        if isinstance(usd, bool):
            raise InvalidOperation
        amount = Decimal(str(usd))
    except InvalidOperation:
        raise ConfigurationError(
            f"{what} {usd!r} is not a number of US dollars; write it like 5 or '0.25'"
        ) from None
    if not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"{what} {usd!r} must be a finite number of US dollars, 0 or more")
    if amount > _MAX_USD:
        raise ConfigurationError(
            f"{what} {usd!r} is over the largest supported amount, {MAX_NANO // NANO_PER_USD} USD"
        )
    return int(amount * NANO_PER_USD)


def usd_from_nano(nano: int) -> float:
    """The amount in US dollars, as the nearest float."""
    return nano / NANO_PER_USD


def format_usd(nano: int) -> str:
    """The exact amount for people, without trailing zeros.

    >>> format_usd(1_500_000_000), format_usd(42)
    ('1.50 USD', '0.000000042 USD')
    """
    whole, fraction = divmod(abs(nano), NANO_PER_USD)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{digits} USD"


@dataclass(frozen=True)
class Budget:
    """A cap in USD over a window.

    Attributes:
        limit_usd: the cap in USD, 0 or more; exact to the nano-dollar.
        window: ``total``, or ``hour``, ``day``, ``week``, ``month``: calendar windows in UTC
            (weeks start on Monday), each with the whole limit. ``1h``, ``1d``, ``1w`` and
            ``1mo`` are other names of them.
        name: what the budget is called in the ledger.

    >>> Budget.parse("5 USD per day")
    Budget(limit_usd=Decimal('5'), window='day', name='default')
    """

    limit_usd: Decimal | float | int | str
    window: str = "total"
    name: str = "default"

    def __post_init__(self) -> None:
        nano_from_usd(self.limit_usd, what="budget limit")
        known = _WINDOWS.get(str(self.window).lower())
        if known is None:
            raise ConfigurationError(
                f"budget window {self.window!r} is unknown; use total, hour, day, week or month"
            )
        object.__setattr__(self, "window", known)
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 200:
            raise ConfigurationError(
                f"budget name {str(self.name)[:50]!r} must have between 1 and 200 characters"
            )

    @property
    def limit_nano(self) -> int:
        """The cap in nano-dollars."""
        return nano_from_usd(self.limit_usd)

    @classmethod
    def parse(cls, text: str | float | int | Decimal | Budget) -> Budget:
        """Read a budget as people write it: ``5 USD per day``, ``$20 per month``, ``0.50``.

        Raises:
            ConfigurationError: the text is not a budget.
        """
        if isinstance(text, Budget):
            return text
        if not isinstance(text, str):
            return cls(limit_usd=text)
        match = _BUDGET_TEXT.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"budget {text!r} not understood; examples: {_BUDGET_EXAMPLES}"
            )
        try:
            amount = Decimal(match["amount"])
        except InvalidOperation:
            raise ConfigurationError(
                f"budget {text!r} not understood: {match['amount']!r} is not a number of US "
                f"dollars; examples: {_BUDGET_EXAMPLES}"
            ) from None
        nano_from_usd(match["amount"], what="budget limit")  # complains of the text as given
        return cls(limit_usd=amount, window=match["window"] or "total")


def window_bounds(window: str, now: float) -> tuple[int, int | None]:
    """First second of the calendar window (UTC) that ``now`` lies in, and of the next one.

    Both as Unix seconds; ``(0, None)`` for ``total``, which never ends.

    >>> window_bounds("hour", 7201.5)
    (7200, 10800)
    """
    if window == "total":
        return 0, None
    moment = datetime.fromtimestamp(int(now), tz=timezone.utc)  # a fraction would be rounded
    hour = moment.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    match cast(Window, window):
        case "hour":
            start, end = hour, hour + timedelta(hours=1)
        case "day":
            start, end = day, day + timedelta(days=1)
        case "week":
            start = day - timedelta(days=day.weekday())
            end = start + timedelta(days=7)
        case _:
            start = day.replace(day=1)
            end = (start + timedelta(days=32)).replace(day=1)
    return int(start.timestamp()), int(end.timestamp())
