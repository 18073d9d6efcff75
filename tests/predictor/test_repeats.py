from __future__ import annotations

import numpy as np
import pytest

from optllm_router.predictor import make_predictor
from optllm_router.predictor._repeats import Repeats

NAN = np.nan
SCORES = np.array([[1.0, 0.0], [1.0, NAN], [0.0, 1.0], [NAN, NAN]])
TEXTS = ["port 80", "port 80", "port 81", "unknown"]


def corrected(texts: list[str], p: float = 0.4) -> np.ndarray:
    return Repeats(2).fit(TEXTS, SCORES).corrected(texts, np.full((len(texts), 2), p))


def test_labels_of_the_same_text_are_averaged_with_one_label_s_worth_of_prediction():
    np.testing.assert_allclose(corrected(["port 80"]), [[(2 + 0.4) / 3, 0.4 / 2]])


@pytest.mark.parametrize("text", ["port 82", "Port 80", "port 80 ", "", "unknown"])
def test_other_texts_and_texts_without_a_label_are_left_alone(text):
    np.testing.assert_array_equal(corrected([text]), [[0.4, 0.4]])


def test_each_query_is_corrected_by_its_own_text():
    texts = ["?", "port 81", "\ud800", "port 80"]
    together = corrected(texts)
    np.testing.assert_array_equal(together, np.concatenate([corrected([text]) for text in texts]))
    assert (together[1] != together[3]).all()


def test_what_was_said_is_not_changed_in_place():
    p = np.full((1, 2), 0.4)
    Repeats(2).fit(TEXTS, SCORES).corrected(["port 80"], p)
    np.testing.assert_array_equal(p, 0.4)


def test_nothing_known_nothing_corrected():
    p = np.full((2, 2), 0.4)
    np.testing.assert_array_equal(Repeats(2).corrected(["a", "b"], p), p)
    assert corrected([]).shape == (0, 2)


def test_digests_hold_no_text_and_make_the_memory_again():
    repeats = Repeats(2).fit(TEXTS, SCORES)
    arrays = repeats.arrays()
    assert {name: array.shape for name, array in arrays.items()} == {
        "digests": (3,),
        "sums": (3, 2),
        "counts": (3, 2),
    }
    p = np.full((4, 2), 0.3)
    np.testing.assert_array_equal(
        Repeats.restored(arrays).corrected(TEXTS, p), repeats.corrected(TEXTS, p)
    )
    with pytest.raises(ValueError, match="2 texts"):
        Repeats.restored({**arrays, "digests": arrays["digests"][:2]})


def varied(n: int) -> tuple[list[str], np.ndarray]:
    """Texts that differ in a number, of which nothing but the text itself tells the scores."""
    rng = np.random.default_rng(0)
    texts = [f"session {number} opened" for number in rng.choice(90_000, n, replace=False)]
    return texts, (rng.random((n, 2)) < 0.5).astype(float)


@pytest.mark.parametrize(("name", "remembers"), [("auto", True), ("base_rates", False)])
def test_the_default_knows_again_what_it_was_taught(name, remembers):
    texts, scores = varied(120)
    predictor = make_predictor(name, n_candidates=2).fit(texts, scores)
    right = (predictor.predict(texts).p > 0.5) == (scores > 0.5)
    assert bool(right.mean() > 0.95) is remembers


def test_what_was_fitted_before_is_forgotten():
    texts, scores = varied(60)
    predictor = make_predictor(n_candidates=2).fit(texts, scores)
    predictor.fit(texts, 1.0 - scores)
    assert (((predictor.predict(texts).p > 0.5) == (scores < 0.5)).mean()) > 0.95
