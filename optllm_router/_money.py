"""Money: exact amounts in nano-dollars, and the budgets that cap them.

``1 USD = 10**9`` nano-dollars. An amount is an ``int`` from the provider's usage to the
database; floats appear only where a forecast is compared with another forecast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from decimal import Decimal, InvalidOperation

from optllm_router._errors import ConfigurationError
from optllm_router._scopes import EVERYTHING, checked_name, checked_scope
from optllm_router._windows import canonical_window, checked_timezone

NANO_PER_USD = 10**9
MAX_NANO = 2**53
"""Largest amount that is accepted, about nine million USD: exact in a float, too."""

_MAX_USD = Decimal(MAX_NANO) / NANO_PER_USD
_BUDGET_TEXT = re.compile(
    r"\s*(?:\$\s*)?(?P<amount>\S+?)\s*(?:USD)?"
    r"(?:(?:\s*(?:per\b|/)|\s+a\b|\s+(?=rolling))\s*(?P<window>rolling\s+\w+|\w+)"
    r"|\s+(?:in\s+)?total)?"
    r"(?:\s+in\s+(?P<timezone>[\w+/-]+))?"
    r"(?:\s+for\s+(?P<scope>\S(?:.*\S)?))?\s*",
    re.IGNORECASE,
)
_OTHER_CURRENCY = re.compile(r"[€£¥]|\b(?!USD)[A-Z]{3}\b")
_BUDGET_EXAMPLES = (
    "'5 USD', '$5 per day', '20 USD per month in Europe/Berlin', '1 USD per rolling 24h', "
    "'5 USD per day for tenant:acme'"
)


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


def usd_text(usd: float) -> str:
    """An amount for people: to a hundredth of a cent, or four digits that say something.

    >>> usd_text(12.5), usd_text(0.00001234), usd_text(0.0), usd_text(1e-30)
    ('12.5000', '0.00001234', '0.0000', '1e-30')
    """
    if usd == 0 or abs(usd) >= 0.1:
        return f"{usd:.4f}"
    digits = f"{usd:.4g}"
    return digits if abs(usd) < 1 / NANO_PER_USD else f"{Decimal(digits):f}"


@dataclass(frozen=True)
class Budget:
    """A cap in USD on a scope over a window.

    Attributes:
        limit_usd: the cap in USD, 0 or more; exact to the nano-dollar.
        window: ``total``; ``hour``, ``day``, ``week``, ``month``: calendar windows (weeks start
            on Monday), each with the whole limit; ``rolling 24h``, ``rolling 30d``: any span of
            that length, in whole minutes up to 366 days. ``1h``, ``1d``, ``1w`` and ``1mo`` are
            other names of the calendar windows.
        name: what the budget is called in the ledger. When empty, a budget on everything is
            called ``default``, another one by its scope.
        scope: the calls that it pays for: ``everything``, ``tenant:NAME``, ``user:NAME``,
            ``tag:NAME``, ``job:NAME``. With ``*`` as NAME, each has a budget of its own.
        timezone: IANA name of the zone whose clocks and calendar bound the window.
        hard: True sets aside the most that a call can cost, so that the limit is never exceeded;
            False sets aside a high quantile of what it may cost.
        thresholds: percentages of the limit whose crossing is reported, each once per window.
        pace: True spreads the money of a calendar window over its expected traffic, and is the
            thriftier with another budget the less is left of its second half; False spends it as
            queries come.

    >>> Budget.parse("5 USD per day for tenant:acme").name
    'tenant:acme'
    """

    limit_usd: Decimal | float | int | str
    window: str = "total"
    name: str = ""
    _: KW_ONLY
    scope: str = EVERYTHING
    timezone: str = "UTC"
    hard: bool = True
    thresholds: tuple[int, ...] = (50, 80, 95, 100)
    pace: bool = True

    def __post_init__(self) -> None:
        nano_from_usd(self.limit_usd, what="budget limit")
        for what, value in (("hard", self.hard), ("pace", self.pace)):
            if not isinstance(value, bool):
                raise ConfigurationError(
                    f"budget setting {what} {value!r} must be True or False (true or false in YAML)"
                )
        checked_scope(self.scope)
        checked_timezone(self.timezone)
        named = "default" if self.scope == EVERYTHING else self.scope
        name = named if self.name == "" else checked_name(self.name, "budget name")
        object.__setattr__(self, "window", canonical_window(self.window))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "thresholds", _checked_thresholds(self.thresholds))

    @property
    def limit_nano(self) -> int:
        """The cap in nano-dollars."""
        return nano_from_usd(self.limit_usd)

    @classmethod
    def parse(cls, text: str | float | int | Decimal | Budget, *, name: str = "") -> Budget:
        """Read a budget as people write it: amount, window, time zone, scope, all but the first
        optional: ``0.50``, ``$20 per month``, ``5 USD per day in Europe/Berlin for tenant:acme``.

        Raises:
            ConfigurationError: the text is not a budget.
        """
        if isinstance(text, Budget):
            return text
        if not isinstance(text, str):
            return cls(limit_usd=text, name=name)
        match = _BUDGET_TEXT.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"budget {text!r} not understood; {_hint(text)}")
        try:
            amount = Decimal(match["amount"])
        except InvalidOperation:
            raise ConfigurationError(
                f"budget {text!r} not understood: {match['amount']!r} is not a number of US "
                f"dollars; {_hint(text)}"
            ) from None
        nano_from_usd(match["amount"], what="budget limit")  # complains of the text as given
        return cls(
            limit_usd=amount,
            window=match["window"] or "total",
            name=name,
            scope=match["scope"] or EVERYTHING,
            timezone=match["timezone"] or "UTC",
        )


def _hint(text: str) -> str:
    only = "only USD is known; " if _OTHER_CURRENCY.search(text) else ""
    return f"{only}examples: {_BUDGET_EXAMPLES}"


def _checked_thresholds(thresholds: Iterable[object]) -> tuple[int, ...]:
    found = tuple(thresholds) if isinstance(thresholds, (tuple, list)) else (thresholds,)
    for percent in found:
        if isinstance(percent, bool) or not isinstance(percent, int) or not 1 <= percent <= 1000:
            raise ConfigurationError(
                f"budget threshold {percent!r} must be a whole percentage of the limit, 1 to 1000"
            )
    return tuple(sorted({percent for percent in found if isinstance(percent, int)}))
