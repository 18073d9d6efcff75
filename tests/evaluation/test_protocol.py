import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router._types import Prediction
from optllm_router.evaluation import (
    METHODS,
    Method,
    RecordedOutcomes,
    evaluate,
    load_recorded,
    split_recorded,
    write_dump,
)
from optllm_router.evaluation.methods import TimedPrediction

REFERENCES_ONLY = ()


def foretelling(p_of, std=0.0):
    """A method that predicts from a table: id of the query -> its row of p."""

    def predict(split):
        p = np.array([p_of[id_] for id_ in split.test.ids], dtype=float)
        return TimedPrediction(Prediction(p, np.full_like(p, std)), 1.0, 2.0)

    return Method("told", predict)


# ------------------------------------------------------------------------------ split


def test_split_follows_the_permutation_of_the_design(toy_folder):
    recorded = load_recorded(toy_folder)
    order = np.random.default_rng(3).permutation(4)
    split = split_recorded(recorded, labels=0.5, seed=3)
    assert list(split.train.ids) == [f"q{i}" for i in order[:2]]
    assert list(split.test.ids) == [f"q{i}" for i in order[2:]]
    assert split.n_dropped == 0


@pytest.mark.parametrize(("labels", "n_train"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.99, 3)])
def test_the_labelled_part_is_rounded_down(toy_folder, labels, n_train):
    assert len(split_recorded(load_recorded(toy_folder), labels=labels, seed=0).train) == n_train


def test_only_complete_queries_are_tested_and_the_others_counted(write_folder):
    queries = [["id", "task", "query"], *[[f"q{i}", "t", f"{i}"] for i in range(6)]]
    outcomes = [["id", "model", "score", "cost_usd"]]
    for i in range(6):
        outcomes.append([f"q{i}", "one", 1, 1])
        if i != 2:  # q2 lacks a pair
            outcomes.append([f"q{i}", "two", 1, "" if i == 4 else 1])  # q4 lacks a cost
    split = split_recorded(load_recorded(write_folder(queries, outcomes)), labels=0, seed=0)
    assert sorted(split.test.ids) == ["q0", "q1", "q3", "q5"]
    assert split.n_dropped == 2


def test_without_costs_there_is_nothing_to_evaluate(write_folder):
    folder = write_folder(
        [["id", "task", "query"], ["a", "t", "x"]], [["id", "model", "score"], ["a", "m", 1]]
    )
    with pytest.raises(InvalidDataError, match="no column cost_usd"):
        evaluate(load_recorded(folder), labels=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"labels": 1.0}, r"labels is 1\.0"),
        ({"labels": -0.1}, r"labels is -0\.1"),
        ({"labels": math.nan}, "labels is nan"),
        ({"labels": 0.5, "seed": -1}, "seed is -1"),
        ({"labels": 0.5, "cost": "guessed"}, "cost is 'guessed'"),
    ],
)
def test_wrong_settings_are_named(toy_folder, settings, says):
    with pytest.raises(ConfigurationError, match=says):
        evaluate(load_recorded(toy_folder), **settings)


# ---------------------------------------------------------------------------- figures


def test_every_figure_of_the_references_by_hand(toy_folder):
    run = evaluate(load_recorded(toy_folder), labels=0, methods=REFERENCES_ONLY)
    assert (run.best_single.model, run.best_single.accuracy) == ("dear", 0.75)
    assert run.best_single.cost_usd == 12

    # Truth: all cheap costs 4 and gets q0; q1 and q2 gain one success for two dollars each.
    oracle = run.methods["oracle"]
    assert oracle.curve.cost.tolist() == [4, 6, 8]
    assert oracle.curve.accuracy.tolist() == [0.25, 0.5, 0.75]
    # Of 300 budgets from 4 to 12, 75 are below 6, 75 more below 8, 150 above.
    assert oracle.figures.auc == pytest.approx((75 * 0.25 + 75 * 0.5 + 150 * 0.75) / 300)
    assert oracle.figures.gap_closed == 1
    assert oracle.figures.savings_at_parity == pytest.approx(1 - 8 / 12)
    assert oracle.figures.max_accuracy == 0.75
    assert oracle.figures.igd == 0
    assert oracle.figures.spread == pytest.approx(0)
    assert (oracle.figures.brier, oracle.figures.ece) == (None, None)
    assert oracle.figures.deployed.accuracy_delta == 0
    assert oracle.figures.deployed.cost_ratio == pytest.approx(8 / 12)

    # No labels: a coin for every model, so that nothing is worth more than the cheap one.
    static = run.methods["static"].figures
    assert (static.auc, static.max_accuracy, static.gap_closed) == (0.25, 0.25, 0)
    assert static.savings_at_parity is None
    assert static.igd == pytest.approx((0 + math.hypot(2, 0.25) + math.hypot(4, 0.5)) / 3)
    assert static.spread == pytest.approx(1)
    assert (static.brier, static.ece) == (0.25, 0)


def test_a_method_is_paid_by_the_truth_not_by_its_promises(toy_folder):
    # It believes in dear on q3 (wrong), then on q1 (right), and in nothing else.
    told = foretelling({"q0": [0.5, 0.5], "q1": [0.5, 0.7], "q2": [0.5, 0.5], "q3": [0.1, 0.9]})
    run = evaluate(load_recorded(toy_folder), labels=0, methods=[told])
    assert list(run.methods) == ["told", "static", "oracle"]
    result = run.methods["told"]
    assert result.curve.cost.tolist() == [4, 6, 8]
    assert result.curve.accuracy.tolist() == [0.25, 0.25, 0.5]
    figures = result.figures
    assert figures.auc == pytest.approx((150 * 0.25 + 150 * 0.5) / 300)
    assert figures.gap_closed == pytest.approx((0.375 - 0.25) / (0.5625 - 0.25))
    assert (figures.savings_at_parity, figures.max_accuracy) == (None, 0.5)
    squares = 6 * 0.25 + 0.0 + (0.7 - 1) ** 2 - 0.25 + 0.1**2 + 0.9**2
    assert figures.brier == pytest.approx(squares / 8)
    assert (figures.fit_seconds, figures.predict_seconds) == (1, 2)
    assert figures.solve_seconds >= 0


def test_static_is_the_mean_of_the_labelled_scores_and_an_average_where_there_are_none(
    write_folder,
):
    queries = [["id", "task", "query"], *[[f"q{i}", "t", f"{i}"] for i in range(4)]]
    outcomes = [["id", "model", "score", "cost_usd"]]
    order = np.random.default_rng(0).permutation(4)
    labelled = {f"q{i}" for i in order[:2]}
    for i in range(4):
        outcomes.append([f"q{i}", "graded", 1 if i == order[0] else 0, 1])
        if f"q{i}" not in labelled:
            outcomes.append([f"q{i}", "ungraded", 1, 1])
    recorded = load_recorded(write_folder(queries, outcomes))
    run = evaluate(recorded, labels=0.5, seed=0, methods=REFERENCES_ONLY)
    assert run.methods["static"].run.timed.prediction.p.tolist() == [[0.5, 0.5]] * 2


def test_the_cheaper_of_equally_good_models_is_the_best_single(write_folder):
    folder = write_folder(
        [["id", "task", "query"], ["a", "t", "x"]],
        [["id", "model", "score", "cost_usd"], ["a", "dear", 1, 2], ["a", "cheap", 1, 1]],
    )
    assert evaluate(load_recorded(folder), labels=0).best_single.model == "cheap"


def test_models_that_cost_nothing_leave_shares_of_cost_undefined(write_folder):
    folder = write_folder(
        [["id", "task", "query"], ["a", "t", "x"], ["b", "t", "y"]],
        [["id", "model", "score", "cost_usd"], ["a", "m", 1, 0], ["b", "m", 0, 0]],
    )
    figures = evaluate(load_recorded(folder), labels=0).methods["optllm"].figures
    assert (figures.savings_at_parity, figures.deployed, figures.gap_closed) == (None, None, None)
    assert figures.auc == 0.5


def test_progress_names_every_step(toy_folder):
    seen = []
    evaluate(
        load_recorded(toy_folder),
        labels=0,
        methods=[METHODS["random"]],
        progress=lambda *step: seen.append(step),
    )
    assert seen == [
        ("random", 0, 3),
        ("static", 1, 3),
        ("oracle", 2, 3),
        ("figures", 3, 3),
    ]


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_nothing_beats_the_oracle_and_every_figure_is_finite(n, k, seed):
    rng = np.random.default_rng(seed)
    unknown = np.full((n, k), np.nan)
    recorded = RecordedOutcomes(
        name="drawn",
        ids=[f"q{i}" for i in range(n)],
        tasks=["t"] * n,
        queries=["x"] * n,
        references=None,
        models=tuple(f"m{j}" for j in range(k)),
        score=rng.integers(0, 3, (n, k)) / 2,
        cost=rng.choice([0.0, 0.1, 0.2, 1.0], (n, k)),
        prompt_tokens=unknown,
        completion_tokens=unknown,
        answers=None,
    )
    told = foretelling({id_: rng.random(k) for id_ in recorded.ids})
    heuristic = Method("heuristic", told.predict, METHODS["optllm_m"].solve)
    run = evaluate(recorded, labels=0.2, seed=seed % 100, methods=[told, heuristic])
    json.dumps(run.to_dict(), allow_nan=False)
    oracle = run.methods["oracle"].figures
    assert oracle.max_accuracy == pytest.approx(run.split.test.score.max(axis=1).mean())
    assert oracle.max_accuracy >= run.best_single.accuracy - 1e-9
    for result in run.methods.values():
        figures = result.figures
        assert figures.max_accuracy <= oracle.max_accuracy + 1e-9
        assert figures.auc <= oracle.auc + 1e-9
        if figures.savings_at_parity is not None:
            # The oracle's points lie on a hull: between two of them a query can be had for less.
            query = run.split.test.cost.max() / run.best_single.cost_usd
            assert figures.savings_at_parity <= oracle.savings_at_parity + query + 1e-9


# ------------------------------------------------------------------- predicted costs


def test_predicted_costs_need_a_labelled_cost_of_every_model(toy_folder):
    with pytest.raises(InvalidDataError, match="no labelled query has a cost_usd of 'cheap'"):
        evaluate(load_recorded(toy_folder), labels=0, cost="predicted")


def test_allocation_with_predicted_costs_is_paid_with_the_recorded_ones(write_folder):
    # Two models, one text: predicted costs are each model's mean over the labelled.
    rng = np.random.default_rng(5)
    n = 40
    cost = rng.uniform(1, 2, (n, 2)) * [1, 4]
    rows = [
        [f"q{i}", m, int(rng.random() < 0.5), cost[i, j]]
        for i in range(n)
        for j, m in enumerate("ab")
    ]
    folder = write_folder(
        [["id", "task", "query"], *[[f"q{i}", "t", "text"] for i in range(n)]],
        [["id", "model", "score", "cost_usd"], *rows],
    )
    recorded = load_recorded(folder)
    method = foretelling({f"q{i}": [0.2, 0.2 + 0.01 * i] for i in range(n)})
    run = evaluate(recorded, labels=0.5, methods=[method], cost="predicted")
    split, told = run.split, run.methods["told"]
    means = np.tile(split.train.cost.mean(axis=0), (20, 1))
    np.testing.assert_allclose(run.allocation_cost, means, rtol=0.02)
    last = told.run.front.allocation(len(told.curve.cost) - 1)
    assert told.curve.cost[-1] == pytest.approx(split.test.cost[np.arange(20), last].sum())
    known = evaluate(recorded, labels=0.5, methods=[method])
    at_best = known.methods["told"].figures.gap_closed
    assert told.gap_closed_knowing_costs == at_best != told.figures.gap_closed
    assert known.methods["told"].gap_closed_knowing_costs is None
    assert (run.to_dict()["cost"], known.to_dict()["cost"]) == ("predicted", "recorded")
    # The references keep the recorded costs, so that both runs share one scale.
    plain = evaluate(recorded, labels=0.5, methods=REFERENCES_ONLY)
    for name in ("static", "oracle"):
        assert run.methods[name].figures.auc == plain.methods[name].figures.auc


# ------------------------------------------------------------------------------ output


def test_json_is_the_object_of_the_design(toy_folder):
    run = evaluate(load_recorded(toy_folder), labels=0.25, seed=1, methods=[METHODS["random"]])
    printed = json.loads(run.to_json())
    assert list(printed) == [
        "dataset",
        "labels",
        "seed",
        "cost",
        "n_train",
        "n_test",
        "n_dropped",
        "best_single",
        "methods",
    ]
    assert (printed["dataset"], printed["labels"], printed["seed"]) == ("toy", 0.25, 1)
    assert (printed["n_train"], printed["n_test"]) == (1, 3)
    assert list(printed["best_single"]) == ["model", "accuracy", "cost_usd"]
    assert list(printed["methods"]) == ["random", "static", "oracle"]
    for figures in printed["methods"].values():
        assert list(figures) == [
            "auc",
            "gap_closed",
            "savings_at_parity",
            "max_accuracy",
            "deployed",
            "brier",
            "ece",
            "igd",
            "spread",
            "fit_seconds",
            "predict_seconds",
            "solve_seconds",
            "gap_closed_knowing_costs",
        ]
        assert list(figures["deployed"]) == ["accuracy_delta", "cost_ratio"]
    assert printed["methods"]["oracle"]["brier"] is None
    assert "NaN" not in run.to_json()


def test_a_dump_is_enough_to_rescore(toy_folder, tmp_path):
    told = foretelling(
        {"q0": [0.5, 0.5], "q1": [0.5, 0.7], "q2": [0.5, 0.5], "q3": [0.1, 0.9]}, 0.1
    )
    run = evaluate(load_recorded(toy_folder), labels=0.25, seed=2, methods=[told])
    path = write_dump(run, tmp_path / "dump.npz", method="told")
    with np.load(path, allow_pickle=False) as dump:
        assert sorted(dump) == ["cost", "models", "p", "std", "test_ids", "train_ids"]
        assert dump["models"].tolist() == ["cheap", "dear"]
        assert sorted([*dump["train_ids"], *dump["test_ids"]]) == ["q0", "q1", "q2", "q3"]
        np.testing.assert_array_equal(dump["p"], run.methods["told"].run.timed.prediction.p)
        np.testing.assert_array_equal(dump["std"], np.full((3, 2), 0.1))
        np.testing.assert_array_equal(dump["cost"], run.split.test.cost)


@pytest.mark.parametrize(
    ("path", "method", "says"),
    [
        ("dump.csv", "static", r"must end in \.npz"),
        ("nowhere/dump.npz", "static", "cannot write"),
        ("dump.npz", "optllm", "no method 'optllm' in this run; choose one of static, oracle"),
    ],
)
def test_a_dump_that_cannot_be_written_is_refused(toy_folder, tmp_path, path, method, says):
    run = evaluate(load_recorded(toy_folder), labels=0, methods=REFERENCES_ONLY)
    with pytest.raises(ConfigurationError, match=says):
        write_dump(run, tmp_path / path, method=method)
    assert not (tmp_path / path).exists()


# ------------------------------------------------------------------------- real data


def test_the_references_on_the_papers_benchmark(logpai):
    run = evaluate(load_recorded(logpai), labels=0.02, seed=0, methods=REFERENCES_ONLY)
    assert (len(run.split.train), len(run.split.test)) == (640, 31_360)
    assert run.best_single.model == "mixtral-8x7b"
    assert run.best_single.accuracy == pytest.approx(0.59206, abs=1e-5)
    assert run.best_single.cost_usd == pytest.approx(2.97502, abs=1e-5)
    static, oracle = run.methods["static"].figures, run.methods["oracle"].figures
    assert (static.auc, oracle.auc) == pytest.approx((0.56773, 0.80641), abs=2e-4)
    assert oracle.savings_at_parity == pytest.approx(0.6818, abs=1e-4)
    assert oracle.max_accuracy == pytest.approx(0.8260, abs=1e-4)
