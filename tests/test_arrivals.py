from __future__ import annotations

import numpy as np
import pytest

from optllm_router.arrivals import Arrivals

HOUR, DAY = 3600.0, 86400.0
MONDAY = 4 * DAY  # 1970 began on a Thursday


def office(days: int, per_hour: int = 60) -> Arrivals:
    """Queries from 8 to 18 on working days, one by one."""
    arrivals = Arrivals()
    for day in range(days):
        if day % 7 < 5:
            for i in range(10 * per_hour):
                arrivals.add(MONDAY + day * DAY + 8 * HOUR + i * HOUR / per_hour)
    return arrivals


def test_nothing_is_expected_before_anything_came():
    assert Arrivals().expected(0.0, DAY) == 0.0


def test_what_came_is_expected_to_come_again():
    arrivals = Arrivals()
    for minute in range(8 * 24 * 60):
        arrivals.add(MONDAY + minute * 60.0)
    end = MONDAY + 8 * DAY
    assert arrivals.expected(end, end + DAY) == pytest.approx(24 * 60, rel=0.02)
    assert arrivals.expected(end, end + HOUR / 2) == pytest.approx(30, rel=0.1)
    assert arrivals.expected(end, end) == arrivals.expected(end, end - 1) == 0.0


def test_the_hours_of_the_day_are_told_apart():
    arrivals, next_monday = office(14), MONDAY + 14 * DAY
    night = arrivals.expected(next_monday, next_monday + 8 * HOUR)
    morning = arrivals.expected(next_monday + 8 * HOUR, next_monday + 13 * HOUR)
    afternoon = arrivals.expected(next_monday + 13 * HOUR, next_monday + 18 * HOUR)
    assert morning == pytest.approx(300, rel=0.15)
    assert afternoon == pytest.approx(300, rel=0.15)
    assert night < 0.1 * morning


def test_the_days_of_the_week_are_told_apart():
    arrivals, next_monday = office(28), MONDAY + 28 * DAY
    monday, saturday = (
        arrivals.expected(start, start + DAY) for start in (next_monday, next_monday + 5 * DAY)
    )
    assert monday == pytest.approx(600, rel=0.15)
    assert saturday < 0.3 * monday


def test_a_few_queries_make_no_profile():
    rng = np.random.default_rng(0)
    arrivals = Arrivals()
    for moment in sorted(rng.uniform(0, DAY, 24).tolist()):
        arrivals.add(moment)
    week = 7 * DAY
    by_hour = [arrivals.expected(week + h * HOUR, week + (h + 1) * HOUR) for h in range(24)]
    assert max(by_hour) < 3 * min(by_hour)
    assert sum(by_hour) == pytest.approx(24, rel=0.2)


def test_a_burst_is_not_taken_for_the_usual_at_once():
    """Sixty queries in a minute: 86,400 a day if it went on like this."""
    arrivals = Arrivals()
    for second in range(60):
        arrivals.add(float(second))
    assert 5_000 < arrivals.expected(60.0, 60.0 + DAY) < 10_000


def test_a_day_that_was_never_watched_is_expected_to_bring_less():
    arrivals = Arrivals()
    for minute in range(2 * 24 * 60):
        arrivals.add(MONDAY + minute * 60.0)
    wednesday = MONDAY + 2 * DAY
    assert arrivals.expected(wednesday, wednesday + DAY) == pytest.approx(0.75 * 1440, rel=0.05)
    again = MONDAY + 7 * DAY
    assert arrivals.expected(again, again + DAY) == pytest.approx(1440, rel=0.05)


def test_hours_that_were_kept_are_as_good_as_queries_that_were_seen():
    seen, kept = Arrivals(), Arrivals()
    for hour in range(48):
        for _ in range(hour % 24):
            seen.add(hour * HOUR)
    kept.add_hours({hour: hour % 24 for hour in range(48)})
    both = [one.expected(7 * DAY, 8 * DAY) for one in (seen, kept)]
    assert both == pytest.approx([276] * 2, rel=0.1)
    assert both[0] == pytest.approx(both[1], rel=0.02)


def test_what_is_two_months_old_is_forgotten():
    arrivals = Arrivals()
    arrivals.add(0.0, 10**6)
    for hour in range(9 * 168):
        arrivals.add(hour * HOUR, 1)
    end = 9 * 168 * HOUR
    assert arrivals.expected(end, end + DAY) == pytest.approx(24, rel=0.1)
    assert len(arrivals._counts) <= 8 * 168
