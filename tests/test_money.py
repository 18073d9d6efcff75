from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import ConfigurationError
from optllm_router._money import (
    MAX_NANO,
    NANO_PER_USD,
    Budget,
    format_usd,
    nano_from_usd,
    usd_from_nano,
)

WINDOWS = ("total", "hour", "day", "week", "month", "rolling 90m", "rolling 24h", "rolling 366d")
amounts = st.integers(0, MAX_NANO)


# Amounts


@given(amounts)
def test_an_amount_survives_text_exactly(nano):
    assert nano_from_usd(format_usd(nano).removesuffix(" USD")) == nano
    assert nano_from_usd(Decimal(nano) / NANO_PER_USD) == nano


@given(st.integers(0, MAX_NANO - 1000))
def test_a_float_of_dollars_is_off_by_less_than_a_millionth_of_a_cent(nano):
    assert abs(nano_from_usd(usd_from_nano(nano)) - nano) <= 10


@given(st.decimals(0, 1000, allow_nan=False, places=14))
def test_amounts_round_down_so_that_a_limit_never_grows(usd):
    nano = nano_from_usd(usd)
    assert nano <= usd * NANO_PER_USD < nano + 1


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        (5, 5 * NANO_PER_USD),
        (0.1, 100_000_000),
        ("0.1", 100_000_000),
        (1e-9, 1),
        (0, 0),
        ("-0", 0),
        (Decimal("0.0000000019"), 1),
        (Decimal("1e-400"), 0),
        (Decimal(MAX_NANO) / NANO_PER_USD, MAX_NANO),
    ],
)
def test_nano_from_usd(usd, nano):
    assert nano_from_usd(usd) == nano


@pytest.mark.parametrize(
    "usd",
    [
        *("five", "", "1,5", "5 EUR", None, [1], {}, True, b"5"),
        *(float("nan"), "nan", "sNaN", float("inf"), "-inf"),
        *(-1, -1e-12, "-0.01", 1e300, "1e999999", "1e99999999"),
        Decimal(MAX_NANO + 1) / NANO_PER_USD,
    ],
)
def test_what_is_no_amount_is_refused_with_its_value(usd):
    with pytest.raises(ConfigurationError, match="price of tea") as caught:
        nano_from_usd(usd, what="price of tea")
    assert repr(usd) in str(caught.value)


def test_amounts_for_people():
    assert format_usd(0) == "0.00 USD"
    assert format_usd(NANO_PER_USD) == "1.00 USD"
    assert format_usd(1_234_567_891) == "1.234567891 USD"
    assert format_usd(-500_000_000) == "-0.50 USD"


# Budgets


@pytest.mark.parametrize(
    ("text", "limit", "window"),
    [
        ("5 USD", 5, "total"),
        ("5usd", 5, "total"),
        ("$5", 5, "total"),
        ("$ 5.25", Decimal("5.25"), "total"),
        ("5", 5, "total"),
        ("0.50", Decimal("0.5"), "total"),
        ("5 USD per day", 5, "day"),
        ("  5 USD per day  ", 5, "day"),
        ("5 USD a day", 5, "day"),
        ("5 USD/day", 5, "day"),
        ("5/day", 5, "day"),
        ("$20 per Month", 20, "month"),
        ("1e-3 USD per hour", Decimal("0.001"), "hour"),
        ("7 usd per WEEK", 7, "week"),
        ("7 USD per 1w", 7, "week"),
        ("3 USD total", 3, "total"),
        ("3 USD in total", 3, "total"),
        ("1 USD per rolling 1d", 1, "rolling 24h"),
        ("1 USD per rolling 90m", 1, "rolling 90m"),
        ("1 USD rolling 24h", 1, "rolling 24h"),
        ("1 USD a day", 1, "day"),
        ("1/day", 1, "day"),
        (5, 5, "total"),
        (0.25, Decimal("0.25"), "total"),
        (Decimal("0.1"), Decimal("0.1"), "total"),
        (0, 0, "total"),
    ],
)
def test_budgets_as_people_write_them(text, limit, window):
    budget = Budget.parse(text)
    assert (budget.limit_nano, budget.window) == (int(limit * NANO_PER_USD), window)


def test_a_budget_is_its_own_reading():
    budget = Budget(1, "hour", "tests")
    assert Budget.parse(budget) is budget


@given(amounts, st.sampled_from(WINDOWS))
def test_a_budget_can_be_read_back(nano, window):
    budget = Budget.parse(f"{format_usd(nano)} per {window}")
    assert (budget.limit_nano, budget.window) == (nano, window)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[(text, repr(text)) for text in ("", " ", "USD", "$", "five USD", "5 EUR", "5 €", "5 5")],
        *[(text, repr(text)) for text in ("5 USD per", "5 USD per day per hour", "5 USD\0")],
        *[(text, "only USD is known") for text in ("5 EUR", "5 €", "CHF 5 per day", "£5 per day")],
        ("5 USD per rolling 24h in Mars/Olympus", "'Mars/Olympus'"),
        ("5 USD per rolling fortnight", "'rolling fortnight'"),
        ("5 USD for acme", "scope 'acme'"),
        ("5 USD for tenant:", "scope 'tenant:'"),
        ("5 USD for tenant:a\0b", "no text"),
        ("5 USD per fortnight", "'fortnight'"),
        ("-5 USD", "limit '-5'"),
        ("$-5", "limit '-5'"),
        ("NaN USD", "limit 'NaN'"),
        ("inf", "limit 'inf'"),
        ("1e999999 USD", "limit '1e999999'"),
        *[(value, repr(value)) for value in (None, True, [5], float("nan"), -1, 10**9)],
    ],
)
def test_what_is_no_budget_is_refused_with_its_value(text, shown):
    with pytest.raises(ConfigurationError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert shown in message
    assert "\n" not in message


@given(st.text(max_size=30))
def test_any_text_is_a_budget_or_a_configuration_error(text):
    with contextlib.suppress(ConfigurationError):
        assert 0 <= Budget.parse(text).limit_nano <= MAX_NANO


@pytest.mark.parametrize(
    ("text", "window", "timezone", "scope"),
    [
        ("20 USD per month in Europe/Berlin", "month", "Europe/Berlin", "everything"),
        ("5 USD per day for tenant:acme", "day", "UTC", "tenant:acme"),
        ("5 USD per day for tenant:*", "day", "UTC", "tenant:*"),
        ("5 USD in total for job:night run, in full", "total", "UTC", "job:night run, in full"),
        ("$1/rolling 30d in Asia/Tokyo for tag:a:b", "rolling 30d", "Asia/Tokyo", "tag:a:b"),
        (
            "1 USD for user:'; DROP TABLE budgets; --",
            "total",
            "UTC",
            "user:'; DROP TABLE budgets; --",
        ),
    ],
)
def test_budgets_say_when_and_for_whom(text, window, timezone, scope):
    budget = Budget.parse(text)
    assert (budget.window, budget.timezone, budget.scope) == (window, timezone, scope)
    assert budget.name == ("default" if scope == "everything" else scope)
    assert Budget.parse(text, name="mine").name == "mine"


@pytest.mark.parametrize(
    "scope",
    [*("", "tenant", "tenant:", "Tenant:a", "team:a", "*", "everything:a", None, 5, "tenant:a\0")],
)
def test_a_scope_that_is_none_is_refused(scope):
    with pytest.raises(ConfigurationError, match="scope"):
        Budget(1, scope=scope)


@pytest.mark.parametrize("thresholds", [(0,), (50, 1001), ("50",), 50.5, (True,), "all"])
def test_thresholds_are_whole_percentages(thresholds):
    with pytest.raises(ConfigurationError, match="whole percentage"):
        Budget(1, thresholds=thresholds)


def test_thresholds_are_in_order_and_each_once():
    assert Budget(1, thresholds=[80, 50, 80]).thresholds == (50, 80)
    assert Budget(1, thresholds=()).thresholds == ()


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "../../etc/passwd", "", "Europe", "a\0b"])
def test_an_unknown_time_zone_is_refused(timezone):
    with pytest.raises(ConfigurationError, match="time zone"):
        Budget(1, "day", timezone=timezone)


@pytest.mark.parametrize(
    "window",
    [
        *("fortnight", "", None, 7, "days", "2h", "rolling", "rolling 0h", "rolling -1h"),
        *("rolling 30s", "rolling 367d", "rolling 1.5h", "rolling 99999999d"),
    ],
)
def test_an_unknown_window_is_refused(window):
    with pytest.raises(ConfigurationError, match="use total, hour, day, week or month"):
        Budget(1, window)


@pytest.mark.parametrize("name", ["x" * 201, None, 5, "a\0b", "\ud800"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigurationError, match="name"):
        Budget(1, name=name)
