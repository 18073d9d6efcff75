"""The methods that are compared: each predicts success somehow, then solves for a front."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from optllm_router._types import Prediction
from optllm_router.allocation import exact_front
from optllm_router.predictor import PREDICTORS, make_predictor

if TYPE_CHECKING:
    from typing import TypeAlias

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.evaluation.split import Split

__all__ = ["METHODS", "Front", "Method", "TimedPrediction"]


class Front(Protocol):
    """Allocations in the order of their predicted cost, as far as evaluation needs them."""

    def along(self, values: FloatArray) -> FloatArray:
        """Sum of an (n, k) matrix over the allocation at every point, shape (points,)."""
        ...

    def allocation(self, index: int) -> IntArray:
        """One candidate per query, shape (n,), at this point."""
        ...


@dataclass(frozen=True, eq=False)
class TimedPrediction:
    """A prediction for the test set and what it took.

    Attributes:
        prediction: p and std, shape (n_test, k).
        fit_seconds: to learn from the labelled part; None where nothing is learnt.
        predict_seconds: for the whole test set; None where nothing is predicted.
        claims: whether p claims to be a probability, so that Brier and calibration apply.
    """

    prediction: Prediction
    fit_seconds: float | None = None
    predict_seconds: float | None = None
    claims: bool = True


Predicting: TypeAlias = "Callable[[Split], TimedPrediction]"
FrontSolver: TypeAlias = "Callable[[Prediction, FloatArray], Front]"


def _exact(prediction: Prediction, cost: FloatArray) -> Front:
    return exact_front(prediction.p, cost)


@dataclass(frozen=True)
class Method:
    """A way to route, by name.

    Attributes:
        name: in tables and JSON.
        predict: success probabilities of the test set, from the labelled part.
        solve: the front, from a prediction and the costs to allocate with.
        about: one line for people.
    """

    name: str
    predict: Predicting
    solve: FrontSolver = _exact
    about: str = ""


def learnt(predictor: str) -> Predicting:
    """TimedPrediction with a named predictor, fitted on the labelled part."""

    def predict(split: Split) -> TimedPrediction:
        started = time.perf_counter()
        model = make_predictor(predictor, n_candidates=len(split.test.models), seed=split.seed)
        if len(split.train):
            model.fit(split.train.queries, split.train.score)
        fitted = time.perf_counter()
        prediction = model.predict(split.test.queries)
        return TimedPrediction(prediction, fitted - started, time.perf_counter() - fitted)

    return predict


def static(split: Split) -> TimedPrediction:
    """Each model's mean score over the labelled part, whatever the query."""
    started = time.perf_counter()
    graded = ~np.isnan(split.train.score)
    count = graded.sum(axis=0)
    total = np.where(graded, split.train.score, 0.0).sum(axis=0)
    # A model that was never graded is taken for an average one; without labels, for a coin.
    average = total.sum() / count.sum() if count.any() else 0.5
    rate = np.where(count > 0, total / np.maximum(count, 1), average)
    std = np.sqrt(rate * (1 - rate) / np.maximum(count, 1))
    fitted = time.perf_counter()
    shape = split.test.score.shape
    prediction = Prediction(np.broadcast_to(rate, shape).copy(), np.broadcast_to(std, shape).copy())
    return TimedPrediction(prediction, fitted - started, time.perf_counter() - fitted)


def oracle(split: Split) -> TimedPrediction:
    """The true scores of the test set: what no router can beat."""
    truth = split.test.score
    return TimedPrediction(Prediction(truth, np.zeros_like(truth)), claims=False)


def random_guess(split: Split) -> TimedPrediction:
    """Probabilities drawn at random: what allocation alone is worth."""
    # Its own stream: the seed itself has drawn the split.
    rng = np.random.default_rng([split.seed, 1])
    p = rng.random(split.test.score.shape)
    return TimedPrediction(Prediction(p, np.zeros_like(p)), claims=False)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("optllm", learnt("auto"), about="default predictor, exact front"),
        Method("static", static, about="base rates alone, blind to the query"),
        Method("oracle", oracle, about="true scores; nothing can beat it"),
        Method("random", random_guess, about="probabilities drawn at random, exact front"),
        *(
            Method(name, learnt(name), about=f"predictor {name}, exact front")
            for name in PREDICTORS
            if name != "auto"
        ),
    )
}
"""Every method that ``optllm evaluate`` knows, by name."""
