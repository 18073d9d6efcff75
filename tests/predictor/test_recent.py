from __future__ import annotations

import numpy as np

from optllm_router.predictor._recent import CAPACITY, Recent


def unit(*values):
    return np.array(values, dtype=np.float32)


def test_nothing_seen_nothing_moves():
    recent = Recent(np.full(2, 4.0), 3)
    np.testing.assert_array_equal(recent.shifts(np.zeros((5, 3), dtype=np.float32)), 0.0)


def test_similar_queries_move_more_than_others():
    recent = Recent(np.full(2, 30.0), 2)
    recent.add(unit(1, 0), 0, -0.8)
    near, far = recent.shifts(np.array([[1, 0], [0, 1]], dtype=np.float32))
    assert near[0] < -0.25
    assert -0.05 < far[0] < 0.0
    assert near[1] == far[1] == 0.0


def test_repeated_evidence_converges_to_the_residual():
    recent = Recent(np.full(1, 30.0), 2)
    for _ in range(200):
        recent.add(unit(1, 0), 0, 0.5)
    np.testing.assert_allclose(recent.shifts(unit(1, 0)[None]), 0.5, atol=0.01)


def test_without_features_only_the_base_rate_moves():
    recent = Recent(np.full(1, 4.0), 0)
    recent.add(unit(), 0, 0.5)
    np.testing.assert_allclose(recent.shifts(np.zeros((2, 0), dtype=np.float32)), 0.1)


def test_the_oldest_make_room():
    recent = Recent(np.full(1, 1.0), 1)
    for _ in range(CAPACITY):
        recent.add(unit(1), 0, -1.0)
    for _ in range(CAPACITY):
        recent.add(unit(1), 0, 1.0)
    assert recent.shifts(unit(1)[None])[0, 0] > 0.99


def test_arrays_round_trip():
    recent = Recent(np.full(2, 4.0), 2)
    for i in range(CAPACITY + 3):
        recent.add(unit(i % 2, 1), i % 2, 0.1 * (i % 5))
    restored = Recent.restored(recent.arrays())
    asked = np.array([[1, 1], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(restored.shifts(asked), recent.shifts(asked))
    for ring in (recent, restored):
        ring.add(unit(0, 1), 0, -1.0)
    np.testing.assert_array_equal(restored.shifts(asked), recent.shifts(asked))


def test_a_corrected_residual_is_as_if_the_old_one_had_never_been():
    corrected, right = Recent(np.full(2, 4.0), 2), Recent(np.full(2, 4.0), 2)
    for ring, first in ((corrected, -0.5), (right, 0.5)):
        ring.add(unit(1, 0), 1, first)
        ring.add(unit(0, 1), 1, -0.5)
        ring.add(unit(1, 0), 0, -0.5)
    asked = np.eye(2, dtype=np.float32)
    corrected.shifts(asked)
    assert corrected.correct(unit(1, 0), 1, -0.5, 0.5)
    np.testing.assert_array_equal(corrected.shifts(asked), right.shifts(asked))


def test_what_is_not_remembered_cannot_be_corrected():
    recent = Recent(np.full(2, 4.0), 2)
    recent.add(unit(1, 0), 1, -0.5)
    for features, candidate, residual in (((0, 1), 1, -0.5), ((1, 0), 0, -0.5), ((1, 0), 1, 0.5)):
        assert not recent.correct(unit(*features), candidate, residual, 0.9)
    assert recent.n_seen == 1


def test_every_score_counts_at_once():
    recent, asked = Recent(np.full(2, 4.0), 2), unit(1, 0)[None]
    before = recent.shifts(asked)[0, 1]
    for _ in range(3):
        recent.add(unit(1, 0), 1, -0.5)
        after = recent.shifts(asked)[0, 1]
        assert after < before
        before = after
