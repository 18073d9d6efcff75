"""Running totals are as good as math.fsum, over a million terms and across magnitudes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optllm_router.allocation._sums import exact_sum, running_totals

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
    totals = running_totals(entries, np.array(before), np.array(after))
    one_ulp = 2.3e-16
    assert totals == pytest.approx(expected, rel=one_ulp, abs=1e-25 * max(expected))


def test_a_million_small_amounts_do_not_drift():
    cents = np.full(1_000_000, 0.1)
    totals = running_totals(np.array([0.0]), np.zeros(1_000_000), cents)
    assert totals[-1] == exact_sum(cents) == 100_000.0
    assert np.cumsum(cents)[-1] != 100_000.0
