"""Every named predictor passes every one of these checks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.predictor import PREDICTORS, load_predictor, make_predictor, save_predictor

N_CANDIDATES = 3
TASKS = ("translate {} to French", "what is {} + 7?", "SELECT * FROM t WHERE id = {};")
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "𓀀" * 50,
    "日本語の質問ですか？",
    "é" * 3,
    "\n\n\n",
    "x" * 10**6,
]


def labelled(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of three tasks, and scores that depend on task and candidate."""
    rng = np.random.default_rng(seed)
    tasks = rng.integers(len(TASKS), size=n)
    texts = [TASKS[task].format(rng.integers(1000)) for task in tasks]
    rates = np.array([[0.9, 0.2, 0.6], [0.1, 0.9, 0.6], [0.5, 0.5, 0.6]])
    scores = (rng.random((n, N_CANDIDATES)) < rates[tasks]).astype(float)
    return texts, scores


def assert_sane(prediction, n: int, k: int = N_CANDIDATES) -> None:
    for array in (prediction.p, prediction.std):
        assert array.shape == (n, k)
        assert array.dtype == np.float64
        assert np.isfinite(array).all()
    assert (prediction.p >= 0).all()
    assert (prediction.p <= 1).all()
    assert (prediction.std >= 0).all()


@pytest.fixture(params=PREDICTORS)
def name(request):
    return request.param


def test_predicts_the_prior_before_any_label(name):
    prior = np.array([0.2, 0.5, 0.9])
    prediction = make_predictor(name, n_candidates=3, prior=prior).predict(["a", "b"])
    assert_sane(prediction, 2)
    np.testing.assert_allclose(prediction.p, [prior, prior])
    assert (prediction.std > 0.1).all()


def test_same_seed_same_predictions(name):
    texts, scores = labelled(60)
    first, second = (
        make_predictor(name, n_candidates=3, seed=4).fit(texts, scores).predict(texts)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.p, second.p)
    np.testing.assert_array_equal(first.std, second.std)


def test_fit_returns_self_and_forgets_what_was_fitted_before(name):
    texts, scores = labelled(40)
    fresh = make_predictor(name, n_candidates=3).fit(texts, scores)
    used = make_predictor(name, n_candidates=3).fit(texts[:10], 1 - scores[:10])
    used.learn_one(texts[0], 0, 1.0)
    assert used.fit(texts, scores) is used
    np.testing.assert_array_equal(used.predict(texts).p, fresh.predict(texts).p)


def test_learns_base_rates(name):
    texts, scores = labelled(300)
    scores[:, 0], scores[:, 2] = 0.0, 1.0
    p = make_predictor(name, n_candidates=3).fit(texts, scores).predict(texts).p
    assert (p[:, 0] < 0.1).all()
    assert (p[:, 2] > 0.9).all()


@pytest.mark.parametrize("fraction", [0.2, 0.7, 0.95])
def test_missing_labels(name, fraction):
    texts, scores = labelled(80)
    scores[np.random.default_rng(1).random(scores.shape) < fraction] = np.nan
    assert_sane(make_predictor(name, n_candidates=3).fit(texts, scores).predict(texts), 80)


def test_bandit_labels(name):
    texts, scores = labelled(200)
    chosen = np.random.default_rng(1).integers(3, size=200)
    scores[np.arange(3) != chosen[:, None]] = np.nan
    assert_sane(make_predictor(name, n_candidates=3).fit(texts, scores).predict(texts), 200)


def test_candidate_without_any_label_keeps_its_prior(name):
    texts, scores = labelled(80)
    scores[:, 1] = np.nan
    prior = np.array([0.5, 0.3, 0.5])
    fitted = make_predictor(name, n_candidates=3, prior=prior).fit(texts, scores)
    prediction = fitted.predict(texts)
    assert_sane(prediction, 80)
    assert abs(prediction.p[:, 1].mean() - 0.3) < 0.25
    assert (prediction.std[:, 1] > prediction.std[:, 0].min()).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_fewer_labels_than_candidates(name, n):
    texts, scores = labelled(n)
    assert_sane(make_predictor(name, n_candidates=3).fit(texts, scores).predict(["?"]), 1)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_all_scores_equal(name, score):
    texts, _ = labelled(50)
    fitted = make_predictor(name, n_candidates=3).fit(texts, np.full((50, 3), score))
    prediction = fitted.predict(["something else", *texts])
    assert_sane(prediction, 51)
    np.testing.assert_allclose(prediction.p, score, atol=0.1)


def test_no_label_at_all(name):
    fitted = make_predictor(name, n_candidates=2).fit(["a", "b"], np.full((2, 2), np.nan))
    np.testing.assert_allclose(fitted.predict(["c"]).p, [[0.5, 0.5]])
    assert_sane(make_predictor(name, n_candidates=2).fit([], np.empty((0, 2))).predict([]), 0, 2)


def test_identical_texts(name):
    _, scores = labelled(40)
    prediction = make_predictor(name, n_candidates=3).fit(["same"] * 40, scores).predict(["same"])
    assert_sane(prediction, 1)
    np.testing.assert_allclose(prediction.p[0], scores.mean(axis=0), atol=0.15)


def test_one_candidate(name):
    texts, scores = labelled(40)
    fitted = make_predictor(name, n_candidates=1).fit(texts, scores[:, :1])
    assert_sane(fitted.predict(texts), 40, 1)


def test_odd_texts(name):
    texts, scores = labelled(30)
    fitted = make_predictor(name, n_candidates=3).fit(texts, scores)
    assert_sane(fitted.predict(ODD_TEXTS), len(ODD_TEXTS))
    fitted = make_predictor(name, n_candidates=3).fit(ODD_TEXTS, scores[: len(ODD_TEXTS)])
    assert_sane(fitted.predict([*ODD_TEXTS, *texts]), len(ODD_TEXTS) + 30)


def test_no_texts(name):
    texts, scores = labelled(30)
    assert_sane(make_predictor(name, n_candidates=3).fit(texts, scores).predict([]), 0)


def test_a_query_is_predicted_alike_alone_and_in_a_batch(name):
    texts, scores = labelled(60)
    fitted = make_predictor(name, n_candidates=3).fit(texts, scores)
    together = fitted.predict(texts[:20]).p
    alone = np.concatenate([fitted.predict([text]).p for text in texts[:20]])
    np.testing.assert_allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("fitted", [True, False])
def test_one_score_changes_the_next_prediction(name, fitted):
    texts, scores = labelled(60)
    predictor = make_predictor(name, n_candidates=3)
    if fitted:
        predictor.fit(texts, scores)
    before = predictor.predict(texts).p
    predictor.learn_one(texts[0], 1, 0.0)
    after = predictor.predict(texts).p
    assert after[0, 1] < before[0, 1]
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_corrected_score_counts_once(name, fitted, at_once):
    texts, scores = labelled(60)
    right, corrected = (make_predictor(name, n_candidates=3) for _ in range(2))
    if fitted:
        right.fit(texts, scores)
        corrected.fit(texts, scores)
    right.learn_one(texts[0], 1, 1.0)
    corrected.learn_one(texts[0], 1, 0.0)
    if not at_once:
        corrected.predict(texts[:1])
    corrected.learn_one(texts[0], 1, 1.0, 0.0)
    np.testing.assert_allclose(corrected.predict(texts).p, right.predict(texts).p, atol=1e-6)


def test_many_scores_overturn_what_was_fitted(name):
    texts, scores = labelled(60)
    scores[:, 1] = 1.0
    predictor = make_predictor(name, n_candidates=3).fit(texts, scores)
    assert predictor.predict(texts[:1]).p[0, 1] > 0.8
    for _ in range(60):
        predictor.learn_one(texts[0], 1, 0.0)
    assert predictor.predict(texts[:1]).p[0, 1] < 0.2


@pytest.mark.parametrize("state", ["new", "fitted", "learning"])
def test_saved_and_loaded_predicts_bit_for_bit(name, state, tmp_path):
    texts, scores = labelled(60)
    predictor = make_predictor(name, n_candidates=3, prior=np.array([0.1, 0.5, 0.7]), seed=3)
    if state != "new":
        predictor.fit(texts, scores)
    if state == "learning":
        for text in texts[:5]:
            predictor.learn_one(text, 2, 0.0)
    save_predictor(predictor, tmp_path / "predictor.npz")
    loaded = load_predictor(tmp_path / "predictor.npz")
    expected, actual = predictor.predict(texts), loaded.predict(texts)
    np.testing.assert_array_equal(actual.p, expected.p)
    np.testing.assert_array_equal(actual.std, expected.std)
    predictor.learn_one(texts[0], 0, 1.0)
    loaded.learn_one(texts[0], 0, 1.0)
    np.testing.assert_array_equal(loaded.predict(texts).p, predictor.predict(texts).p)


def test_a_copy_knows_as_much_and_learns_on_its_own(name):
    texts, scores = labelled(60)
    predictor = make_predictor(name, n_candidates=3).fit(texts, scores)
    predictor.learn_one(texts[0], 1, 1.0)
    before = predictor.predict(texts).p
    twin = copy.deepcopy(predictor)
    np.testing.assert_array_equal(twin.predict(texts).p, before)
    for _ in range(5):
        twin.learn_one(texts[0], 1, 0.0)
    assert (twin.predict(texts[:1]).p[0, 1] < before[0, 1]).all()
    twin.fit(texts, 1 - scores)
    np.testing.assert_array_equal(predictor.predict(texts).p, before)


def test_a_clone_has_the_parameters_and_no_knowledge(name):
    texts, scores = labelled(60)
    prior = np.array([0.2, 0.5, 0.9])
    predictor = make_predictor(name, n_candidates=3, prior=prior, seed=4).fit(texts, scores)
    cloned = clone(predictor)
    np.testing.assert_allclose(cloned.predict(["a"]).p, [prior])
    expected = predictor.predict(texts).p
    np.testing.assert_array_equal(cloned.fit(texts, scores).predict(texts).p, expected)
    cloned.set_params(prior=prior[::-1].copy())
    np.testing.assert_allclose(cloned.predict(["a"]).p, [prior[::-1]])
    assert cloned.get_params()["n_candidates"] == 3


def test_refuses_bad_labels(name):
    predictor = make_predictor(name, n_candidates=2)
    with pytest.raises(InvalidDataError, match=r"shape \(1, 3\)"):
        predictor.fit(["a"], np.zeros((1, 3)))
    with pytest.raises(InvalidDataError, match=r"2\.0 of text 0, candidate 1"):
        predictor.fit(["a"], np.array([[0.0, 2.0]]))
    with pytest.raises(InvalidDataError, match="inf"):
        predictor.fit(["a"], np.array([[0.0, np.inf]]))
    with pytest.raises(InvalidDataError, match="candidate 2"):
        predictor.learn_one("a", 2, 1.0)
    with pytest.raises(InvalidDataError, match=r"candidate 0\.5"):
        predictor.learn_one("a", 0.5, 1.0)
    with pytest.raises(InvalidDataError, match="nan"):
        predictor.learn_one("a", 0, float("nan"))


def test_refuses_what_is_no_text(name):
    predictor = make_predictor(name, n_candidates=2)
    with pytest.raises(InvalidDataError, match="put it in a list"):
        predictor.predict("hello")
    with pytest.raises(InvalidDataError, match="text 1 is None"):
        predictor.fit(["a", None], np.zeros((2, 2)))
    with pytest.raises(InvalidDataError, match="is 3, which is no string"):
        predictor.learn_one(3, 0, 1.0)


def test_refuses_bad_settings():
    with pytest.raises(ConfigurationError, match="no parameter 'depth'; set one of name, model"):
        make_predictor(n_candidates=2).set_params(depth=3)
    with pytest.raises(ConfigurationError, match=r"'forest'.*auto, bagged_forest"):
        make_predictor("forest", n_candidates=2)
    with pytest.raises(ConfigurationError, match="0 candidates"):
        make_predictor(n_candidates=0)
    with pytest.raises(InvalidDataError, match="prior"):
        make_predictor(n_candidates=2, prior=np.array([0.5, 1.5]))


any_text = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(), max_size=40),  # lone surrogates, too
    st.sampled_from(["", " ", "\0"]),
    st.builds(str.__mul__, st.text(min_size=1, max_size=3), st.sampled_from([20_000, 10**6])),
)
scores_or_missing = st.one_of(st.just(np.nan), st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@st.composite
def partial_scores(draw, n: int) -> np.ndarray:
    """Any scores of n texts; sometimes all are equal, sometimes a candidate has none."""
    rows = st.lists(scores_or_missing, min_size=N_CANDIDATES, max_size=N_CANDIDATES)
    scores = np.array(draw(st.lists(rows, min_size=n, max_size=n)), dtype=float)
    scores = scores.reshape(n, N_CANDIDATES)
    if draw(st.booleans()):
        scores[~np.isnan(scores)] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    if draw(st.booleans()):
        scores[:, draw(st.integers(0, N_CANDIDATES - 1))] = np.nan
    return scores


@pytest.mark.parametrize("name", list(PREDICTORS))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_sane_whatever_the_texts_and_scores(name, data):
    texts = data.draw(st.lists(any_text, max_size=12))
    predictor = make_predictor(name, n_candidates=N_CANDIDATES)
    predictor.fit(texts, data.draw(partial_scores(len(texts))))
    asked = data.draw(st.lists(any_text, max_size=3))
    assert_sane(predictor.predict(asked), len(asked))
    if asked:
        predictor.learn_one(asked[0], 0, data.draw(st.floats(0, 1)))
        assert_sane(predictor.predict(asked[:1]), 1)
