from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optllm_router.features import (
    N_DIRECTIONS,
    TextFeaturizer,
    Texts,
    _single,
    coarse_features,
)
from optllm_router.features._bytes import MAX_BYTES, encode
from optllm_router.features._ngrams import N_BUCKETS, characters, shapes, words
from optllm_router.features._projection import Projection, _counts
from optllm_router.features._single import Counted
from optllm_router.features._surface import surface

TRAINING = [
    "Connection from 10.0.0.1:80 closed after 12 s",
    "Connection from 10.0.0.7:443 closed after 7 s",
    "What is the capital of France?",
    "What is the capital of Spain?",
    "def f(x):\n    return x + 1",
    "def g(y):\n    return y * 2",
]


@pytest.fixture(scope="module")
def featurizer():
    return TextFeaturizer(seed=0).fit(TRAINING)


def bag(view, text):
    return sorted(view(encode([text])).buckets.tolist())


@pytest.mark.parametrize("view", [characters, words, shapes])
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_the_bag_of_a_text_does_not_depend_on_its_neighbours(view, texts):
    bags = view(encode(texts))
    assert bags.bounds[0] == 0
    assert bags.bounds[-1] == len(bags.buckets)
    assert ((bags.buckets >= 0) & (bags.buckets < N_BUCKETS)).all()
    for i, text in enumerate(texts):
        assert sorted(bags.buckets[bags.bounds[i] : bags.bounds[i + 1]]) == bag(view, text)


@given(text=st.one_of(st.text(max_size=80), st.text("aZ17 .\n\0é", max_size=80)))
def test_a_single_text_is_counted_as_its_bags_say(text):
    encoded = encode([text])
    counted = Counted.of(encoded)
    told = dict(zip(counted.places.tolist(), counted.counts.tolist(), strict=True))
    expected = Counter()
    for v, view in enumerate((characters, words, shapes)):
        first, buckets = v * (N_BUCKETS + 1), view(encoded).buckets
        assert told.pop(first) == 1
        assert counted.sizes[v] == len(buckets) + 1
        expected.update((first + 1 + buckets).tolist())
    assert told == expected
    assert (np.diff(counted.places) > 0).all()


def test_words_that_were_seen_before_are_not_kept_without_bounds(monkeypatch):
    monkeypatch.setattr(_single, "_MOST_TOKENS_KEPT", 10)
    for n in range(0, 100, 5):
        texts = [f"{'x' * (n + i)} id{n}" for i in range(5)]
        for text in texts:
            assert counted_words(text) == bag(words, text)
        assert len(_single._TOKENS) <= 10
        assert all(len(token) <= 32 and token != b"id0" for token in _single._TOKENS)


def counted_words(text):
    places, counts, _ = Counted.of(encode([text]))
    buckets = np.repeat(places - N_BUCKETS - 2, counts.astype(int))
    return buckets[(buckets >= 0) & (buckets < N_BUCKETS)].tolist()


def test_characters_ignore_case_and_keep_digits():
    assert bag(characters, "Error A1") == bag(characters, "error a1")
    assert bag(characters, "error a1") != bag(characters, "error a2")


def test_words_mask_tokens_with_digits():
    assert bag(words, "job 17 failed") == bag(words, "job b42 failed")
    assert bag(words, "job 17 failed") != bag(words, "job x failed")


def test_words_with_the_same_letters_differ():
    assert bag(words, "listen") != bag(words, "silent")


def test_shapes_ignore_values_and_their_lengths():
    assert bag(shapes, "10.0.0.1:80 open") == bag(shapes, "192.168.1.20:8080 closed")
    assert bag(shapes, "10.0.0.1:80 open") != bag(shapes, "10-0-0-1 open")


SURFACES = st.text(
    st.one_of(st.sampled_from("aaBBZ17  \n\t\r\x1c\0.?{=é🚀"), st.characters()), max_size=60
)


@given(texts=st.lists(SURFACES, min_size=2, max_size=5))
def test_surface_statistics_of_a_text_are_the_same_alone_and_among_others(texts):
    together = surface(encode(texts))
    alone = np.concatenate([surface(encode([text])) for text in texts])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("text", ["", "\n\n", "A", "aB CD 12 x1 ... 1234567890\nend?"])
def test_surface_statistics_of_odd_texts(text):
    alone, among = surface(encode([text])), surface(encode([text, "else"]))
    np.testing.assert_allclose(alone[0], among[0], rtol=1e-12)


def test_surface_tells_code_prose_and_numbers_apart():
    code, prose, numbers = surface(encode(["f(x) = {a[1]};", "a calm sea", "12 34 56"]))
    digits, upper, letters, _, _, structural = range(6)
    assert structural == np.argmax([code[i] - prose[i] for i in range(6)])
    assert numbers[digits] == pytest.approx(6 / 8)
    assert prose[letters] == pytest.approx(8 / 10)
    assert prose[upper] == 0.0


def test_features_are_contiguous_float32(featurizer):
    x = featurizer.transform(["abc", "def"])
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.shape[0] == 2
    assert x.shape[1] > N_DIRECTIONS


def test_similar_texts_are_near(featurizer):
    x = featurizer.transform(
        ["Connection from 10.0.0.9:81 closed after 3 s", TRAINING[0], TRAINING[2]]
    )[:, :N_DIRECTIONS]
    assert x[0] @ x[1] > 2 * abs(x[0] @ x[2])


def test_same_seed_same_features():
    first, second = (TextFeaturizer(seed=5).fit(TRAINING).transform(TRAINING) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_restored_features_are_bit_for_bit_the_same(featurizer):
    restored = TextFeaturizer().restore(featurizer.arrays())
    np.testing.assert_array_equal(restored.transform(TRAINING), featurizer.transform(TRAINING))


@pytest.mark.parametrize("repeats", [1, 700])
def test_chunk_boundaries_change_nothing(featurizer, repeats):
    texts = [f"{TRAINING[i % 6]} {i} " * repeats for i in range(4_006 // repeats + 100)]
    x = featurizer.transform(texts)
    assert len(x) == len(texts)
    np.testing.assert_array_equal(x[-50:], featurizer.transform(texts[-50:]))
    np.testing.assert_array_equal(x[:3], featurizer.transform(texts[:3]))


def test_long_texts_are_judged_by_head_and_tail(featurizer):
    long = "Connection from here. " * 50_000
    changed = long[:600_000] + "x" * 5 + long[600_000:]
    assert len(encode([long]).codes) <= MAX_BYTES + 3
    np.testing.assert_array_equal(*(featurizer.transform([t]) for t in (long, changed)))


def test_learning_leaves_the_bags_alone():
    bags = characters(encode([text * 3 for text in TRAINING]))
    buckets, bounds = bags.buckets.copy(), bags.bounds.copy()
    Projection(4).fit(bags).transform(bags)
    np.testing.assert_array_equal(bags.buckets, buckets)
    np.testing.assert_array_equal(bags.bounds, bounds)


@pytest.mark.parametrize("n_columns", [5, 1 << 18])
@pytest.mark.parametrize("n", [0, 1, 3, 20_000])
def test_columns_are_counted_by_text(n, n_columns):
    rng = np.random.default_rng(0)
    columns = [rng.integers(min(n_columns, 9), size=rng.integers(4)) for _ in range(n)]
    columns = [n_columns - 1 - each for each in columns]
    bounds = np.cumsum([0, *map(len, columns)])
    counts = _counts(np.concatenate([[], *columns]).astype(np.int32), bounds, n_columns)
    assert counts.shape == (n, n_columns)
    assert counts.has_canonical_format
    for i in range(0, n, max(n // 50, 1)):
        row = counts[[i]]
        expected = Counter(columns[i].tolist())
        told = dict(zip(row.indices.tolist(), (row.data**2).round().tolist(), strict=True))
        assert told == expected


def test_projected_bags_are_near_when_their_texts_share_fragments():
    bags = characters(encode(TRAINING))
    x = Projection(4).fit(bags).transform(bags)
    similarity = x @ x.T
    for first in (0, 2, 4):
        others = np.delete(similarity[first], [first, first + 1])
        assert similarity[first, first + 1] > others.max() + 0.2


@given(texts=st.lists(SURFACES, min_size=2, max_size=6))
def test_a_text_is_featurised_alike_alone_and_among_others(texts):
    featurizer = TextFeaturizer().fit([*TRAINING, *texts[:1]])
    together = featurizer.transform([*texts, *TRAINING])
    alone = np.concatenate([featurizer.transform([text]) for text in [*texts, *TRAINING]])
    np.testing.assert_array_equal(alone, together)


def test_a_featurizer_forgets_what_it_was_fitted_on_before():
    fresh, used = TextFeaturizer().fit(TRAINING), TextFeaturizer().fit(["something else"] * 3)
    for asked in (["Connection closed"], TRAINING):
        np.testing.assert_array_equal(used.fit(TRAINING).transform(asked), fresh.transform(asked))


def test_texts_are_read_once_for_all_featurizers(featurizer):
    other = TextFeaturizer().fit(TRAINING[:4])
    asked = Texts(["Connection closed", "What is this?"])
    for one in (featurizer, other):
        np.testing.assert_array_equal(one.transform(asked), one.transform(list(asked)))
    (first,), (second,) = asked.readings(), asked.readings()
    assert first is second


def test_many_texts_are_not_kept():
    texts = Texts(["x"] * 5_000)
    assert sum(len(reading.surface) for reading in texts.readings()) == 5_000
    assert not vars(texts)


def test_no_texts(featurizer):
    assert featurizer.transform([]).shape == (0, featurizer.transform(["a"]).shape[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_any_unicode_gives_finite_features(texts):
    x = TextFeaturizer().fit(texts).transform([*texts, "\ud800", "\0\0", ""])
    assert np.isfinite(x).all()


def test_coarse_features_are_a_part_of_all():
    indices = coarse_features(N_DIRECTIONS + 10)
    assert len(np.unique(indices)) == len(indices) < N_DIRECTIONS
    assert indices[-10:].tolist() == list(range(N_DIRECTIONS, N_DIRECTIONS + 10))
