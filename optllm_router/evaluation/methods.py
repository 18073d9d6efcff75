"""The methods that are compared: each predicts success somehow, then solves for a front."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from optllm_router._errors import ConfigurationError
from optllm_router._types import Prediction
from optllm_router.allocation import EvolutionaryAlgorithm, evolve, exact_front, optllm_m
from optllm_router.predictor import PREDICTORS, make_predictor

if TYPE_CHECKING:
    from typing import TypeAlias

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.allocation import Archive
    from optllm_router.evaluation.split import Split

__all__ = ["METHODS", "Front", "Method", "TimedPrediction", "methods_named"]


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
FrontSolver: TypeAlias = "Callable[..., Front]"
Steps: TypeAlias = "Callable[[int, int], None]"


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
        deployable: whether the policy ``match_best``, which needs an exact front, applies.
        reports: whether ``solve`` takes ``progress``, too, which it calls with how many steps are
            done, and of how many.
    """

    name: str
    predict: Predicting
    solve: FrontSolver = _exact
    about: str = ""
    deployable: bool = True
    reports: bool = False


def learnt(predictor: str) -> Predicting:
    """Predict with a named predictor, fitted on the labelled part."""

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


class _Listed:
    """A front that is a list of allocations, shape (points, n)."""

    def __init__(self, allocations: IntArray) -> None:
        self._allocations = allocations
        self._row = np.arange(allocations.shape[1])

    def along(self, values: FloatArray) -> FloatArray:
        """Sum of an (n, k) matrix over the allocation at every point."""
        return np.asarray(values[self._row, self._allocations].sum(axis=1), dtype=np.float64)

    def allocation(self, index: int) -> IntArray:
        """The allocation at this point."""
        chosen: IntArray = self._allocations[index]
        return chosen


def _listed(archive: Archive) -> Front:
    return _Listed(np.array([archive.allocation(index) for index in range(len(archive))]))


def _paper(prediction: Prediction, cost: FloatArray) -> Front:
    return _listed(optllm_m(prediction.p, cost, std=prediction.std))


def _evolved(algorithm: EvolutionaryAlgorithm) -> FrontSolver:
    def solve(prediction: Prediction, cost: FloatArray, progress: Steps | None = None) -> Front:
        found = evolve(
            prediction.p, cost, algorithm=algorithm, std=prediction.std, progress=progress
        )
        return _listed(found)

    return solve


# Methods with the same predictor share the callable, hence (in a comparison) its prediction.
_LEARNT = {name: learnt(name) for name in PREDICTORS}
_PAPERS_PREDICTOR = _LEARNT["bagged_forest"]
_RIVALS: dict[EvolutionaryAlgorithm, str] = {
    "nsga2": "NSGA-II",
    "rnsga2": "R-NSGA-II",
    "sms_emoa": "SMS-EMOA",
    "moead": "MOEA/D",
    "mopso": "multi-objective particle swarm",
}


def _heuristic(name: str, solve: FrontSolver, about: str, *, reports: bool = False) -> Method:
    return Method(name, _PAPERS_PREDICTOR, solve, about, deployable=False, reports=reports)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("optllm", _LEARNT["auto"], about="default predictor, exact front"),
        Method("static", static, about="base rates alone, blind to the query; exact front"),
        Method("oracle", oracle, about="true scores; nothing can beat it"),
        Method("random", random_guess, about="probabilities drawn at random, exact front"),
        *(
            Method(name, predict, about=f"predictor {name}, exact front")
            for name, predict in _LEARNT.items()
            if name != "auto"
        ),
        _heuristic("optllm_m", _paper, "the paper: bagged forest, OptLLM-M"),
        *(
            _heuristic(name, _evolved(name), f"bagged forest, {title} (pymoo)", reports=True)
            for name, title in _RIVALS.items()
        ),
    )
}
"""Every method that ``optllm evaluate`` knows, by name."""


def methods_named(names: str) -> list[Method]:
    """The methods of a list like ``"knn,optllm_m"``; ``optllm`` comes first.

    ``all`` stands for all of them, without the pymoo solvers when pymoo is not installed; asked
    for by name they raise an error that says how to install it.

    Raises:
        ConfigurationError: naming what is no method.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigurationError(f"{names!r} names no method; choose from {_choice()}")
    if "all" in wanted:
        installed = importlib.util.find_spec("pymoo") is not None
        wanted += [name for name in METHODS if installed or name not in _RIVALS]
        wanted = [name for name in wanted if name != "all"]
    for name in wanted:
        if name not in METHODS:
            raise ConfigurationError(f"no method is called {name!r}; choose from {_choice()}")
    return [METHODS[name] for name in dict.fromkeys(["optllm", *wanted])]


def _choice() -> str:
    return f"{', '.join(METHODS)}, or 'all'"
