from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optllm_router._errors import InvalidDataError
from optllm_router.predictor import LengthPredictor

K = 3
SCALE = np.array([1.0, 2.0, 0.5])
"""The second candidate answers at twice the length of the first, the third at half."""
KINDS = {"Yes or no: is {} prime?": 4.0, "Prove that {} is prime.": 300.0}


def traffic(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of two kinds, and the length of each candidate's answer."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(100_000, n, replace=False)
    kinds = rng.integers(len(KINDS), size=n)
    texts = [list(KINDS)[kind].format(number) for kind, number in zip(kinds, numbers, strict=True)]
    means = np.array(list(KINDS.values()))[kinds]
    return texts, means[:, None] * SCALE * rng.uniform(0.7, 1.3, (n, K))


def one_each(tokens: np.ndarray, seed: int = 0) -> np.ndarray:
    """As after deployment: of each text, the length of a single candidate's answer is known."""
    candidates = np.random.default_rng(seed).integers(tokens.shape[1], size=len(tokens))
    return np.where(np.arange(tokens.shape[1]) == candidates[:, None], tokens, np.nan)


def error(forecast: np.ndarray, tokens: np.ndarray) -> float:
    """Root mean squared error, each candidate relative to its mean length."""
    return float(np.sqrt(np.mean(((forecast - tokens) / tokens.mean(axis=0)) ** 2)))


def assert_sane(forecast: np.ndarray, n: int, k: int = K) -> None:
    assert forecast.shape == (n, k)
    assert forecast.dtype == np.float64
    assert np.isfinite(forecast).all()
    assert (forecast >= 0).all()


# What is learnt


def test_before_anything_was_learnt_nothing_is_claimed():
    lengths = LengthPredictor(K)
    assert np.isnan(lengths.predict(["a", "b"])).all()
    assert np.isnan(lengths.fit(["a"], np.full((1, K), np.nan)).predict(["a"])).all()


@pytest.mark.parametrize("known", [lambda tokens: tokens, one_each], ids=["all", "one each"])
def test_what_is_asked_tells_the_length(known):
    texts, tokens = traffic(150)
    lengths = LengthPredictor(K).fit(texts, known(tokens))
    unseen, truth = traffic(100, seed=1)
    assert error(lengths.predict(unseen), truth) < 0.35
    assert error(np.tile(tokens.mean(axis=0), (100, 1)), truth) > 0.9


def test_a_candidate_s_own_way_is_learnt_beside_what_all_have_in_common():
    # The third candidate answers a proof as briefly as a question.
    texts, tokens = traffic(300)
    tokens[:, 2] = 5.0
    lengths = LengthPredictor(K).fit(texts, one_each(tokens))
    short, long = lengths.predict([kind.format(70_000) for kind in KINDS])
    assert long[0] > 10 * short[0]
    assert long[2] < 3 * short[2] < 30


def test_lengths_follow_the_size_of_the_text_beyond_what_was_seen():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 100, 60)
    texts = [" ".join(rng.choice(["river", "cloud", "stone"], size)) for size in sizes]
    tokens = np.array([[0.5 * len(text)] for text in texts])
    (forecast,) = LengthPredictor(1).fit(texts, tokens).predict(["river cloud stone " * 100])
    assert forecast[0] == pytest.approx(900, rel=0.25)


def test_two_sizes_are_no_reason_to_expect_a_book():
    texts, tokens = traffic(100)
    longest = LengthPredictor(K).fit(texts, tokens).predict([" ".join(KINDS) * 100])
    assert (longest < 200 * tokens.mean(axis=0)).all()


def test_noise_is_not_believed():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 60)) for _ in range(200)]
    tokens = rng.lognormal(4.0, 1.0, (200, K))
    lengths = LengthPredictor(K).fit(texts[:100], tokens[:100])
    constant = np.tile(tokens[:100].mean(axis=0), (100, 1))
    assert lengths.belief_ < 0.5
    assert error(lengths.predict(texts[100:]), tokens[100:]) < 1.05 * error(constant, tokens[100:])


def test_forecasts_add_up_to_what_is_billed():
    texts, tokens = traffic(400)
    lengths = LengthPredictor(K).fit(texts[:200], tokens[:200])
    totals = lengths.predict(texts[200:]).sum(axis=0)
    np.testing.assert_allclose(totals, tokens[200:].sum(axis=0), rtol=0.1)


def test_a_candidate_that_never_answered_is_taken_to_be_like_the_others():
    texts, tokens = traffic(100)
    tokens[:, 2] = np.nan
    short, long = LengthPredictor(K).fit(texts, tokens).predict([k.format(7) for k in KINDS])
    assert short[0] < short[2] < short[1]
    assert long[0] < long[2] < long[1]


def test_many_answers_outweigh_what_is_typical_of_all():
    tokens, counts = np.array([[10.0, 1000.0, np.nan]]), np.array([[500.0, 500.0, 0.0]])
    (forecast,) = LengthPredictor(K).fit(["again"], tokens, counts).predict(["again"])
    np.testing.assert_allclose(forecast[:2], [10, 1000], rtol=0.02)
    assert 10 < forecast[2] < 1000


# Answers that were cut off


def cut_off(tokens: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths under a bound, and 1 where it was reached."""
    return np.minimum(tokens, bound), (tokens >= bound).astype(float)


def test_cut_answers_do_not_shorten_the_forecast():
    rng = np.random.default_rng(0)
    texts, tokens = traffic(400)
    tokens = tokens * rng.exponential(1.0, tokens.shape)
    bound = np.where(rng.random(tokens.shape) < 0.5, 0.5 * tokens.mean(axis=0), np.inf)
    seen, cut = cut_off(tokens, bound)
    lengths = LengthPredictor(K).fit(texts, seen, cut=cut)
    totals = lengths.predict(texts).sum(axis=0)
    np.testing.assert_allclose(totals, tokens.sum(axis=0), rtol=0.2)
    naive = LengthPredictor(K).fit(texts, seen).predict(texts).sum(axis=0)
    assert (naive < 0.75 * totals).all()


def test_answers_that_were_all_cut_off_tell_no_length():
    texts, _ = traffic(60)
    lengths = LengthPredictor(K).fit(texts, np.full((60, K), 16.0), cut=np.ones((60, K)))
    assert np.isnan(lengths.predict(texts)).all()


def test_a_candidate_that_was_always_cut_off_is_no_shorter_than_that():
    texts, tokens = traffic(100)
    cut = np.zeros_like(tokens)
    tokens[:, 2], cut[:, 2] = 5_000.0, 1.0
    assert (LengthPredictor(K).fit(texts, tokens, cut=cut).predict(texts)[:, 2] > 5_000).all()


def test_one_more_cut_answer_never_shortens_the_forecast():
    texts, tokens = traffic(100)
    lengths = LengthPredictor(K).fit(texts, tokens)
    before = lengths.predict(texts)
    for text in texts:
        lengths.learn_one(text, 1, 2.0, cut=True)
    after = lengths.predict(texts)
    assert (after[:, 1] > before[:, 1]).all()
    assert (after[:, 1] < 1.1 * before[:, 1]).all()
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])


# High lengths


def heavy_tailed(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """The traffic of two kinds with lognormal lengths, the more erratic the later the candidate."""
    texts, tokens = traffic(n, seed)
    sigma = np.array([0.5, 1.0, 1.5])
    return texts, tokens * np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, (n, K))


@pytest.mark.parametrize(
    ("n", "known", "least"),
    [(600, lambda tokens: tokens, 0.93), (600, one_each, 0.91), (60, lambda tokens: tokens, 0.90)],
    ids=["all", "one each", "few"],
)
def test_a_high_length_covers_what_it_says_of_answers_that_were_not_fitted(n, known, least):
    covered = []
    for seed in range(4):
        texts, tokens = heavy_tailed(n, seed)
        lengths = LengthPredictor(K, seed=seed).fit(texts, known(tokens))
        unseen, truth = heavy_tailed(1_000, seed=seed + 100)
        covered.append((truth <= lengths.predict_high(unseen)).mean(axis=0))
    assert (np.mean(covered, axis=0) >= least).all(), covered
    assert (np.mean(covered, axis=0) <= 0.985).all(), covered


def test_a_high_length_covers_what_was_cut_off():
    rng = np.random.default_rng(0)
    texts, tokens = heavy_tailed(600, 0)
    bound = np.where(rng.random(tokens.shape) < 0.5, tokens.mean(axis=0), np.inf)
    seen, cut = cut_off(tokens, bound)
    lengths = LengthPredictor(K).fit(texts, seen, cut=cut)
    unseen, truth = heavy_tailed(2_000, seed=1)
    assert ((truth <= lengths.predict_high(unseen)).mean(axis=0) >= 0.93).all()


def test_before_much_is_known_a_high_length_is_three_times_the_mean():
    texts, tokens = traffic(6)
    lengths = LengthPredictor(K).fit(texts, tokens)
    np.testing.assert_array_equal(lengths.predict_high(texts), 3.0 * lengths.predict(texts))
    assert np.isnan(LengthPredictor(K).predict_high(["a"])).all()


def test_means_of_repeated_answers_are_no_evidence_of_how_single_ones_vary():
    texts, tokens = traffic(100)
    lengths = LengthPredictor(K).fit(texts, tokens, counts=np.full(tokens.shape, 9.0))
    np.testing.assert_array_equal(lengths.high_, 3.0)


def test_high_lengths_and_cuts_leave_the_mean_as_it_was():
    texts, tokens = heavy_tailed(200, 0)
    plain = LengthPredictor(K).fit(texts, tokens)
    none_cut = LengthPredictor(K).fit(texts, tokens, cut=np.zeros_like(tokens))
    none_cut.predict_high(texts)
    np.testing.assert_array_equal(none_cut.predict(texts), plain.predict(texts))


# Learning one more


def test_a_change_of_length_shows_at_once_and_only_where_it_happened():
    texts, tokens = traffic(100)
    lengths = LengthPredictor(K).fit(texts, tokens)
    before = lengths.predict(texts)
    for text, row in zip(texts, tokens, strict=True):
        lengths.learn_one(text, 1, 3.0 * row[1])
    after = lengths.predict(texts)
    np.testing.assert_allclose(after[:, 1] / before[:, 1], 2.0, rtol=0.1)
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])


def test_answers_of_expected_length_change_nothing():
    texts, tokens = traffic(100)
    lengths = LengthPredictor(K).fit(texts, tokens)
    before = lengths.predict(texts)
    for text, row in zip(texts, before, strict=True):
        lengths.learn_one(text, 0, float(row[0]))
    np.testing.assert_allclose(lengths.predict(texts), before)


def test_forecasts_that_were_made_before_are_those_of_the_last_fit():
    texts, tokens = traffic(100)
    lengths = LengthPredictor(K).fit(texts, tokens)
    asked = [f"{text} {n}" for n, text in enumerate(texts * 12)]
    one_by_one = np.concatenate([lengths.predict([text]) for text in asked])
    np.testing.assert_array_equal(one_by_one, lengths.predict(asked))
    lengths.fit(texts, 2.0 * tokens)
    again = np.concatenate([lengths.predict([text]) for text in asked])
    np.testing.assert_array_equal(again, lengths.predict(asked))
    assert not np.allclose(again, one_by_one)


# Odd input


@given(
    st.lists(
        st.tuples(
            st.text(max_size=20),
            st.lists(st.one_of(st.just(np.nan), st.floats(0, 1e9)), min_size=K, max_size=K),
        ),
        unique_by=lambda pair: pair[0],
        min_size=1,
        max_size=14,
    )
)
@settings(max_examples=30, deadline=None)
def test_whatever_was_seen_forecasts_are_numbers(seen):
    tokens = np.array([row for _, row in seen])
    lengths = LengthPredictor(K).fit([text for text, _ in seen], tokens)
    if not np.isnan(tokens).all():
        lengths.learn_one("x", 1, 12.0)
        assert_sane(lengths.predict(["", "x", "\ud800 é 🚀"]), 3)


def test_a_text_of_a_megabyte():
    texts, tokens = traffic(30)
    lengths = LengthPredictor(K).fit(["x" * 10**6, *texts[1:]], tokens)
    assert_sane(lengths.predict(["y" * 10**6, ""]), 2)
    assert_sane(lengths.predict([]), 0)


def test_answers_without_a_token():
    texts, _ = traffic(30)
    lengths = LengthPredictor(K).fit(texts, np.zeros((30, K)))
    assert_sane(lengths.predict(texts), 30)
    assert lengths.predict(texts).max() <= 1.0


def test_a_seed_repeats_every_number():
    texts, tokens = traffic(60)
    first, second = (LengthPredictor(K, seed=3).fit(texts, tokens) for _ in range(2))
    np.testing.assert_array_equal(first.predict(texts), second.predict(texts))


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.ones((2, K + 1)), r"shape \(2, 4\).* need \(2, 3\)"),
        (np.full((2, K), -1.0), r"-1\.0 tokens; count 0 or more"),
        (np.full((2, K), np.inf), "inf tokens"),
    ],
)
def test_what_is_no_length_is_refused(tokens, says):
    with pytest.raises(InvalidDataError, match=says):
        LengthPredictor(K).fit(["a", "b"], tokens)


@pytest.mark.parametrize(
    ("candidate", "tokens", "says"),
    [
        (K, 1.0, "candidate 3 does not exist"),
        (-1, 1.0, "candidate -1 does not exist"),
        (0, -1.0, r"-1\.0 tokens"),
        (0, float("nan"), "nan tokens"),
    ],
)
def test_one_answer_that_cannot_be_is_refused(candidate, tokens, says):
    with pytest.raises(InvalidDataError, match=says):
        LengthPredictor(K).learn_one("a", candidate, tokens)
