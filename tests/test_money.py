from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
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
    window_bounds,
)

CALENDAR = ("hour", "day", "week", "month")
amounts = st.integers(0, MAX_NANO)
# 1970 to 2100; whole seconds and fractions of them.
moments = st.floats(0, 4_102_444_800, allow_nan=False)


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


@given(amounts, st.sampled_from(["total", *CALENDAR]))
def test_a_budget_can_be_read_back(nano, window):
    budget = Budget.parse(f"{format_usd(nano)} per {window}")
    assert (budget.limit_nano, budget.window) == (nano, window)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[(text, repr(text)) for text in ("", " ", "USD", "$", "five USD", "5 EUR", "5 €", "5 5")],
        *[(text, repr(text)) for text in ("5 USD per", "5 USD per day per hour", "5 USD\0")],
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


@pytest.mark.parametrize("window", ["fortnight", "", None, 7, "days", "2h"])
def test_an_unknown_window_is_refused(window):
    with pytest.raises(ConfigurationError, match="use total, hour, day, week or month"):
        Budget(1, window)


@pytest.mark.parametrize("name", ["", "x" * 201, None, 5])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigurationError, match="name"):
        Budget(1, name=name)


# Windows


@given(moments, st.sampled_from(CALENDAR))
def test_a_moment_lies_inside_its_window(now, window):
    start, end = window_bounds(window, now)
    assert end is not None
    assert start <= now < end


@given(moments, st.sampled_from(CALENDAR))
def test_windows_tile(now, window):
    start, end = window_bounds(window, now)
    assert window_bounds(window, start) == (start, end)
    assert window_bounds(window, end - 1) == (start, end)
    assert window_bounds(window, end)[0] == end


@given(moments)
def test_longer_windows_hold_shorter_ones(now):
    hour, day, week, month = (window_bounds(window, now) for window in CALENDAR)
    for inner, outer in ((hour, day), (day, week), (day, month)):
        assert outer[0] <= inner[0]
        assert inner[1] <= outer[1]


@given(moments)
def test_windows_are_those_of_the_calendar_in_utc(now):
    starts = {
        window: datetime.fromtimestamp(window_bounds(window, now)[0], tz=timezone.utc)
        for window in CALENDAR
    }
    today = datetime.fromtimestamp(int(now), tz=timezone.utc).date()
    assert all(start.minute == start.second == 0 for start in starts.values())
    assert starts["day"].date() == today
    assert starts["week"].date() == today - timedelta(days=today.weekday())
    assert starts["month"].date() == today.replace(day=1)


def test_a_total_never_ends():
    assert window_bounds("total", 1e9) == (0, None)
