from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._windows import canonical_window, span_at

CALENDAR = ("hour", "day", "week", "month")
ROLLING = ("rolling 1m", "rolling 7m", "rolling 24h", "rolling 30d", "rolling 366d")
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"),
    *("America/Sao_Paulo", "Atlantic/Azores", "Pacific/Apia"),
)
# 1970 to 2100; whole seconds and fractions of them.
moments = st.floats(0, 4_102_444_800, allow_nan=False)
calendar = st.sampled_from(CALENDAR)
zones = st.sampled_from(ZONES)


def unix(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


# Windows of the calendar


@given(moments, calendar, zones)
def test_a_moment_lies_inside_its_window(now, window, zone):
    span = span_at(window, now, zone)
    assert span.first == span.slot == span.last
    assert span.first <= now < span.ends
    assert span.over(span.slot) == span.ends


@given(moments, calendar, zones)
def test_windows_tile(now, window, zone):
    span = span_at(window, now, zone)
    assert span_at(window, span.slot, zone) == span
    assert span_at(window, span.ends - 1, zone) == span
    assert span_at(window, span.ends, zone).slot == span.ends


@given(moments, zones)
def test_longer_windows_hold_shorter_ones(now, zone):
    hour, day, week, month = (span_at(window, now, zone) for window in CALENDAR)
    for inner, outer in ((hour, day), (day, week), (day, month)):
        assert outer.slot <= inner.slot
        assert inner.ends <= outer.ends


@given(moments, zones)
def test_windows_are_those_of_the_calendar(now, zone):
    starts = {
        window: datetime.fromtimestamp(span_at(window, now, zone).slot, tz=ZoneInfo(zone))
        for window in CALENDAR
    }
    today = datetime.fromtimestamp(int(now), tz=ZoneInfo(zone)).date()
    assert starts["day"].date() == today
    assert starts["week"].date() == today - timedelta(days=today.weekday())
    assert starts["month"].date() == today.replace(day=1)


@given(moments, calendar)
def test_in_utc_they_start_on_the_hour(now, window):
    start = datetime.fromtimestamp(span_at(window, now).slot, tz=timezone.utc)
    assert start.minute == start.second == 0
    assert window == "hour" or start.hour == 0


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2026-03-28", "Europe/Berlin", 24),
        ("2026-03-29", "Europe/Berlin", 23),
        ("2026-10-25", "Europe/Berlin", 25),
        ("2026-10-04", "Australia/Lord_Howe", 23.5),
        ("2018-11-04", "America/Sao_Paulo", 23),  # its clocks were moved at midnight
        ("2018-02-17", "America/Sao_Paulo", 25),
        ("2026-03-29", "Atlantic/Azores", 23),
        ("2026-10-25", "Atlantic/Azores", 25),
    ],
)
def test_a_day_is_as_long_as_its_clocks_say(day, zone, hours):
    noon = unix(f"{day}T12:00", zone)
    span = span_at("day", noon, zone)
    assert (span.ends - span.slot) / 3600 == hours
    found = [span_at("hour", at, zone) for at in range(span.slot, span.ends, 60)]
    assert found[0].slot == span.slot
    assert found[-1].ends == span.ends
    assert all(a.slot == b.slot or a.ends == b.slot for a, b in itertools.pairwise(found))


def test_a_total_never_ends():
    span = span_at("total", 1e9)
    assert (span.first, span.last, span.ends, span.over(0)) == (0, 0, None, None)


# Rolling windows


def seconds_of(window: str) -> int:
    count, unit = window.split()[1][:-1], window[-1]
    return int(count) * {"m": 60, "h": 3600, "d": 86400}[unit]


@given(moments, st.sampled_from(ROLLING), st.floats(0, 1, exclude_max=True))
def test_a_call_counts_for_the_whole_window_and_little_longer(now, window, share):
    length = seconds_of(window)
    slot = span_at(window, now).slot
    later = span_at(window, now + length * share)
    assert later.first <= slot <= later.last
    over = span_at(window, now).over(slot)
    assert now < over - length  # the sum of the two may be rounded up to a whole second
    assert over <= now + length + length / 60 + 1
    assert span_at(window, over - 1).first <= slot < span_at(window, over).first


@given(moments, st.sampled_from(ROLLING))
def test_slots_tile(now, window):
    span = span_at(window, now)
    assert span.slot <= now < span.ends
    assert span_at(window, span.ends).slot == span.ends
    assert span.ends - span.slot == seconds_of(window) / 60


@given(moments, st.sampled_from(ROLLING), st.floats(-1, 1))
def test_a_call_of_a_host_whose_clock_is_wrong_counts_too(now, window, share):
    here, there = span_at(window, now), span_at(window, max(0, now + seconds_of(window) * share))
    assert here.first <= there.slot <= here.last


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *[(name, name) for name in ("total", *CALENDAR, *ROLLING)],
        *[
            (text, "rolling 24h")
            for text in ("rolling 1d", "Rolling  1440 min", "rolling 24 hours")
        ],
        *[("ever", "total"), ("1h", "hour"), ("daily", "day"), ("1w", "week"), ("1mo", "month")],
        ("rolling 120m", "rolling 2h"),
        ("rolling 48h", "rolling 2d"),
        ("rolling 61m", "rolling 61m"),
    ],
)
def test_a_window_has_one_name(text, name):
    assert canonical_window(text) == name
    assert canonical_window(name) == name
