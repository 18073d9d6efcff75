from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router import learning
from optllm_router._types import Prediction
from optllm_router.learning import Labels, Learner

scores = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0])),
    max_size=30,
)


class Memory:
    """A predictor that remembers what it was taught; fits when it is let."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fitted = np.empty((0, 3))
        self.learnt: list[tuple[str, int, float]] = []
        self.replaced: list[float | None] = []
        self.may_fit = threading.Event()
        self.may_fit.set()
        self.fails = False

    def fit(self, texts, scores):
        assert self.may_fit.wait(10)
        if self.fails:
            raise ArithmeticError("singular")
        self.texts, self.fitted = list(texts), scores
        return self

    def predict(self, texts) -> Prediction:
        known = np.full((len(texts), 3), len(self.learnt) / 1000)
        return Prediction(known, np.zeros_like(known))

    def learn_one(self, text, candidate, score, replaces=None) -> None:
        self.learnt.append((text, candidate, score))
        self.replaced.append(replaces)

    @property
    def knows(self) -> int:
        return int(np.sum(~np.isnan(self.fitted))) + len(self.learnt)


@pytest.fixture
def made() -> list[Memory]:
    return []


@pytest.fixture
def learner(made) -> Learner:
    def make() -> Memory:
        made.append(Memory())
        return made[-1]

    return Learner(make, 3)


def distinct(n: int, start: int = 0) -> list[tuple[str, int, float]]:
    return [(f"text {i}", i % 3, 1.0) for i in range(start, start + n)]


# Labels


@given(scores)
def test_labels_are_means_by_pair(given_scores):
    labels = Labels(3)
    for one in given_scores:
        labels.add(*one)
    texts, matrix = labels.matrix()
    assert labels.count == len(given_scores)
    assert matrix.shape == (len(texts), 3)
    assert sorted(texts) == sorted({text for text, _, _ in given_scores})
    for row, text in zip(matrix, texts, strict=True):
        for j in range(3):
            mine = [score for t, k, score in given_scores if (t, k) == (text, j)]
            if mine:
                assert row[j] == pytest.approx(np.mean(mine))
            else:
                assert np.isnan(row[j])


def test_the_texts_graded_longest_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(learning, "MOST_TEXTS", 3)
    labels = Labels(1)
    for text in ("a", "b", "c", "a", "d"):
        labels.add(text, 0, 1.0)
    assert labels.matrix()[0] == ["c", "a", "d"]


# The learner


def test_a_score_changes_the_very_next_prediction(learner):
    before = learner.predict(["x"]).p[0, 0]
    learner.learn("x", 1, 1.0)
    assert learner.predict(["x"]).p[0, 0] > before
    assert learner.labels == 1


def test_enough_scores_make_a_fresh_predictor_that_knows_them_all(learner, made, monkeypatch):
    monkeypatch.setattr(learning, "_FIRST_FIT", 20)
    monkeypatch.setattr(Learner, "_growth", 1.25)
    for one in distinct(20):
        learner.learn(*one)
    learner.wait()
    assert len(made) == 2
    assert made[1].knows == 20
    for one in distinct(4, start=20):
        learner.learn(*one)
    learner.wait()
    assert len(made) == 2, "a quarter more is needed for the next refit"
    learner.learn(*distinct(1, start=24)[0])
    learner.wait()
    assert len(made) == 3
    assert made[2].knows == 25


def test_many_scores_are_fitted_at_once(learner, made):
    learner.learn_many(distinct(5))
    learner.wait()
    assert made[-1].knows == 5
    assert made[-1].learnt == []


def test_nothing_learnt_fits_nothing(learner, made):
    learner.learn_many([])
    learner.wait()
    assert len(made) == 1


def test_scores_that_arrive_during_a_refit_are_not_lost(learner, made):
    gate = threading.Event()
    make = learner._make

    def slow() -> Memory:
        fresh = make()
        fresh.may_fit = gate
        return fresh

    learner._make = slow
    learner.learn_many(distinct(5))
    learner.learn("during", 0, 1.0)
    learner.learn_many(distinct(2, start=5))
    gate.set()
    learner.wait()
    assert learner._predictor is made[1]
    assert made[1].knows == 8


def test_scores_that_arrive_just_after_a_refit_start_the_next(learner, made):
    """The refit's waiters are told last: what they teach must not wait for others."""
    for n in range(20):
        learner.learn_many(distinct(1, start=n))
        learner.wait()
        assert learner._predictor.knows == n + 1


def test_predictions_go_on_while_a_refit_runs(learner, made):
    gate = threading.Event()
    make = learner._make

    def slow() -> Memory:
        fresh = make()
        fresh.may_fit = gate
        return fresh

    learner._make = slow
    learner.learn_many(distinct(5))
    assert learner.predict(["x"]).p.shape == (1, 3)
    assert learner._predictor is made[0]
    gate.set()
    learner.wait()
    assert learner._predictor is made[1]


def test_scores_are_learnt_all_or_none(learner):
    def one_is_wrong():
        yield from distinct(3)
        raise ValueError("score 7")

    with pytest.raises(ValueError, match="score 7"):
        learner.learn_many(one_is_wrong())
    assert learner.labels == 0


def test_a_refit_that_fails_leaves_the_last_predictor_and_says_so(learner, made, caplog):
    make, gate = learner._make, threading.Event()

    def failing() -> Memory:
        fresh = make()
        fresh.fails, fresh.may_fit = True, gate
        return fresh

    learner._make = failing
    with caplog.at_level(logging.ERROR, logger="optllm_router"):
        learner.learn_many(distinct(3))
        refit = learner._refit
        gate.set()
        with pytest.raises(ArithmeticError):
            refit.result(10)
    assert "the last one stays in use" in caplog.text
    assert learner._predictor is made[0]
    learner._make = make
    learner.learn_many(distinct(1, start=3))
    learner.wait()
    assert learner._predictor.knows == 4


def test_a_refit_that_failed_is_not_tried_again_at_every_score(learner, made, caplog):
    make = learner._make

    def failing() -> Memory:
        fresh = make()
        fresh.fails = True
        return fresh

    learner._make = failing
    for one in distinct(100):
        learner.learn(*one)
        with contextlib.suppress(ArithmeticError):
            learner.wait()
    assert "the last one stays in use" in caplog.text
    assert 1 < len(made) - 1 < 25  # 20 labels, and then each time 10 % more


def test_the_predictor_is_told_which_score_a_correction_replaces(learner, made):
    learner.learn("x", 1, 0.0)
    learner.learn("x", 1, 1.0, replaces=0.0)
    assert made[0].replaced == [None, 0.0]


def test_refits_never_become_rare(learner, monkeypatch):
    monkeypatch.setattr(learning, "MOST_TEXTS", 400)
    fitted_on = []
    monkeypatch.setattr(learner, "_refit_in_background", lambda: fitted_on.append(learner.labels))
    learner._tried_on = 5_000
    learner._labels.count = 5_038
    learner.learn("a", 0, 1.0)
    learner.learn("a", 0, 1.0)
    assert fitted_on == [5_040]


def test_what_came_since_the_last_fit_does_not_pile_up(learner):
    learner._refit = Future()  # one that takes long
    for n in range(learning._MOST_NEW + 100):
        learner.learn("again and again", n % 3, 1.0)
    assert len(learner._since_fit) == learning._MOST_NEW


def test_more_than_a_fit_can_be_told_afterwards_makes_it_start_again(learner, made, monkeypatch):
    monkeypatch.setattr(Learner, "_growth", 1000.0)
    make, gate, begun = learner._make, threading.Event(), threading.Event()

    def slow() -> Memory:
        fresh = make()
        fresh.may_fit = gate
        begun.set()
        return fresh

    learner._make = slow
    learner._since_fit = deque(maxlen=5)
    learner.learn_many(distinct(20))
    assert begun.wait(10)
    for one in distinct(6, start=20):
        learner.learn(*one)
    gate.set()
    learner.wait()
    assert made[-1].knows == 26


def test_a_refit_that_cannot_start_is_told_and_tried_again(learner, monkeypatch, caplog):
    start = threading.Thread.start

    def no_more_threads(thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    learner.learn_many(distinct(20))
    assert "can't start new thread; the last one stays in use" in caplog.text
    learner.wait()
    learner.learn("taught without a raise", 0, 1.0)
    monkeypatch.setattr(threading.Thread, "start", start)
    for one in distinct(4, start=20):
        learner.learn(*one)
    learner.wait()
    assert learner._predictor.knows == 25


def test_threads_teach_at_once(learner):
    def teach(start: int) -> None:
        for one in distinct(100, start=100 * start):
            learner.learn(*one)

    threads = [threading.Thread(target=teach, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    learner.learn_many(distinct(1, start=800))
    learner.wait()
    assert learner.labels == 801
    assert learner._predictor.knows == 801
