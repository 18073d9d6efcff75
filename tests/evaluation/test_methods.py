import sys

import numpy as np
import pytest

from optllm_router._errors import ConfigurationError
from optllm_router._types import Prediction
from optllm_router.evaluation import METHODS, evaluate, load_recorded, methods_named
from optllm_router.predictor import PREDICTORS


def test_every_named_predictor_is_a_method():
    assert set(PREDICTORS) - {"auto"} < set(METHODS)
    assert all(method.about for method in METHODS.values())
    assert [method.name for method in METHODS.values()] == list(METHODS)


def test_methods_are_named_once_and_ours_comes_first():
    names = [method.name for method in methods_named("knn, optllm_m,knn,optllm")]
    assert names == ["optllm", "knn", "optllm_m"]


@pytest.mark.parametrize("installed", [True, False])
def test_all_leaves_out_what_needs_an_absent_library(monkeypatch, installed):
    spec = object() if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    names = {method.name for method in methods_named("all")}
    assert {"optllm", "static", "oracle", "random", "bagged_forest", "optllm_m"} < names
    assert ("nsga2" in names) == installed


def test_all_may_stand_beside_others():
    names = {method.name for method in methods_named("all, nsga2")}
    assert {"optllm", "nsga2", "optllm_m", "knn"} <= names


@pytest.mark.parametrize("nothing", ["", " , "])
def test_no_method_is_no_choice(nothing):
    with pytest.raises(ConfigurationError, match=r"names no method; choose from optllm, .*'all'"):
        methods_named(nothing)


def test_an_unknown_method_is_named_with_the_choice():
    with pytest.raises(
        ConfigurationError, match=r"no method is called 'magic'; choose from optllm"
    ):
        methods_named("knn,magic")


def test_a_pymoo_method_without_pymoo_says_how_to_install_it(monkeypatch):
    for name in {"pymoo", *(name for name in sys.modules if name.startswith("pymoo."))}:
        monkeypatch.setitem(sys.modules, name, None)
    prediction = Prediction(np.full((2, 2), 0.5), np.zeros((2, 2)))
    with pytest.raises(ConfigurationError, match=r"pip install 'optllm-router\[paper\]'"):
        METHODS["nsga2"].solve(prediction, np.ones((2, 2)))


def test_the_papers_solver_gives_a_front_of_listed_allocations():
    rng = np.random.default_rng(2)
    p, cost = rng.random((50, 3)), rng.random((50, 3))
    prediction = Prediction(p, np.zeros_like(p))
    front = METHODS["optllm_m"].solve(prediction, cost)
    exact = METHODS["optllm"].solve(prediction, cost)
    for values in (p, cost):
        along = front.along(values)
        first = front.allocation(0)
        assert along[0] == pytest.approx(values[np.arange(50), first].sum())
    success, paid = front.along(p), front.along(cost)
    best = np.interp(paid, exact.along(cost), exact.along(p))
    assert (success <= best + 1e-9).all()
    assert paid[0] == pytest.approx(cost.min(axis=1).sum())


def test_the_policy_is_judged_only_where_it_applies(toy_folder):
    run = evaluate(load_recorded(toy_folder), labels=0, methods=[METHODS["optllm_m"]])
    assert run.methods["optllm_m"].figures.deployed is None
    assert run.methods["static"].figures.deployed is not None


def test_random_differs_by_seed_and_not_by_run(toy_folder):
    recorded = load_recorded(toy_folder)

    def p(seed):
        run = evaluate(recorded, labels=0, seed=seed, methods=[METHODS["random"]])
        return run.methods["random"].run.timed.prediction.p

    np.testing.assert_array_equal(p(0), p(0))
    assert not np.array_equal(p(0), p(1))
