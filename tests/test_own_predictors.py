"""Predictors of one's own, instead of a named one."""

from __future__ import annotations

import threading
from decimal import Decimal

import numpy as np
import pytest

from optllm_router import ConfigurationError, OptLLM
from optllm_router._query import Query
from optllm_router._types import Candidate, Completion, Prediction, Price, Usage
from optllm_router.policy import WillingnessToPay
from optllm_router.predictor import make_predictor
from optllm_router.router import Router

CANDIDATES = [
    Candidate(name, f"x/{name}", Price(Decimal(price), Decimal(price), "test"), 100)
    for name, price in (("cheap", 100), ("middle", 1000), ("dear", 10_000))
]


def router(predictor) -> Router:
    worth = WillingnessToPay(1.0)
    return Router(CANDIDATES, worth, predictor=predictor, explore=0.0, seed=0)


def query() -> Query:
    return Query.from_messages([{"role": "user", "content": "What is 2 + 2?"}])


class Rates:
    """A predictor of one's own: the mean score of each candidate."""

    def __init__(self, k: int = 3) -> None:
        self.fitted_on = 0
        self.sums, self.counts = np.full(k, 0.5), np.ones(k)

    def fit(self, texts, scores):
        self.fitted_on = len(texts)
        self.sums = 0.5 + np.nansum(scores, axis=0)
        self.counts = 1.0 + np.sum(~np.isnan(scores), axis=0)
        return self

    def predict(self, texts):
        p = np.tile(self.sums / self.counts, (len(texts), 1))
        return Prediction(p, np.zeros_like(p))

    def learn_one(self, text, candidate, score, replaces=None):
        self.sums[candidate] += score
        self.counts[candidate] += 1


def test_a_predictor_of_one_s_own_is_taught_and_refitted():
    own = Rates()
    own.sums[1] = 0.9
    one = router(own)
    assert one.decide([query()])[0].candidate == "middle"
    for prompt in map("prompt {}".format, range(15)):
        one.learn(prompt, "cheap", 1.0)
        one.learn(prompt, "middle", 0.0)
    one.wait()
    assert one.decide([query()])[0].candidate == "cheap"
    assert one._learner._predictor.fitted_on > 0
    assert (own.fitted_on, own.counts.tolist()) == (0, [1, 1, 1])


def test_a_saved_predictor_is_taken_up_where_it_was():
    fitted = make_predictor(n_candidates=3, prior=np.array([0.9, 0.1, 0.1]))
    one = router(fitted)
    assert one.decide([query()])[0].candidate == "cheap"
    one.learn("x", "cheap", 0.0)
    np.testing.assert_allclose(fitted.predict(["x"]).p, [[0.9, 0.1, 0.1]])


class Uncopied(Rates):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Uncorrected(Rates):
    def learn_one(self, text, candidate, score):
        pass


class Unweighed(Rates):
    def fit(self, texts, scores, *, weights):
        return self


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (object(), "predictor object has no fit and no predict and no learn_one"),
        (Rates(k=2), r"predictor Rates predicts \(1, 2\) .* there are 3 candidates"),
        (Uncopied(), "predictor Uncopied cannot be copied"),
        (
            Uncorrected(),
            r"Uncorrected.learn_one\(text, candidate, score\) cannot be called with "
            r"\(text, candidate, score, replaces\)",
        ),
        (
            Unweighed(),
            r"fit\(texts, scores, \*, weights\) cannot be called with \(texts, scores\)",
        ),
        ("nope", "no predictor is called 'nope'"),
    ],
)
def test_what_is_no_predictor_is_refused(wrong, says):
    with pytest.raises(ConfigurationError, match=says):
        router(wrong)


class Repeater:
    """A transport whose models all say the same."""

    def check(self, candidates) -> None:
        """Every candidate can be called."""

    def send(self, candidate, call) -> Completion:
        message = {"role": "assistant", "content": "4"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return Completion({**body, "choices": [choice]}, Usage(10, 1))


def test_a_client_decides_with_it(sqlite_url):
    own = Rates()
    own.sums[1] = 0.99
    client = OptLLM(
        CANDIDATES,
        predictor=own,
        policy=WillingnessToPay(1.0),
        explore=0,
        store=sqlite_url,
        transport=Repeater(),
    )
    with client:
        answer = client.chat.completions.create(messages=[{"role": "user", "content": "2 + 2?"}])
        assert answer.optllm.candidate == "middle"
        client.feedback.create(answer.id, score=0.0)
        assert client._runtime.router.forecast([query()]).p[0, 1] < 0.6
    with pytest.raises(ConfigurationError, match="there are 3 candidates"):
        OptLLM(CANDIDATES, predictor=Rates(k=2), store=sqlite_url, transport=Repeater())
