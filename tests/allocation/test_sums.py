"""Running totals are as good as math.fsum, over a million terms and across magnitudes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optllm_router.allocation._sums import RunningTotal, exact_sum

amounts = st.floats(0.0, 1e9, allow_subnormal=False)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=amounts), st.data())
def test_every_total_is_the_sum_of_the_entries_at_that_moment(entries, data):
    steps = data.draw(st.lists(st.tuples(st.integers(0, len(entries) - 1), amounts), max_size=40))
    now, before, after, expected = entries.copy(), [], [], [math.fsum(entries)]
    for position, value in steps:
        before.append(now[position])
        after.append(value)
        now[position] = value
        expected.append(math.fsum(now))
    total = RunningTotal(entries)
    assert total.initial == expected[0]
    half = len(steps) // 2
    parts = [
        total.replace(np.array(before[part]), np.array(after[part]))
        for part in (slice(0, half), slice(half, None))
        if before[part]
    ]
    totals = np.concatenate([[expected[0]], *parts])
    one_ulp = 2.3e-16
    assert totals == pytest.approx(expected, rel=one_ulp, abs=1e-25 * max(expected))


def test_a_million_small_amounts_do_not_drift():
    cents = np.full(1_000_000, 0.1)
    totals = RunningTotal(np.array([0.0])).replace(np.zeros(1_000_000), cents)
    assert totals[-1] == exact_sum(cents) == 100_000.0
    assert np.cumsum(cents)[-1] != 100_000.0
