from __future__ import annotations

import numpy as np
import pytest

from optllm_router._types import Price
from optllm_router.evaluation import load_recorded
from optllm_router.evaluation.costs import fitted_price, predict_costs

# Equally long: a choice is answered by a letter, a proof by a page.
TEXTS = [f"choose a or b: {i:03}" if i % 2 else f"prove statement {i:03}" for i in range(60)]
UNSEEN = ["choose a or b: 999", "prove statement 999"]


def recorded(write_folder, columns, rows):
    return load_recorded(
        write_folder(
            [["id", "task", "query"], *[[f"q{i}", "t", text] for i, text in enumerate(TEXTS)]],
            [["id", "model", "score", *columns], *rows],
        )
    )


def tokens(i: int) -> tuple[int, int]:
    return 5, 1 if i % 2 else 200


def test_costs_follow_what_is_asked_at_the_price_of_each_model(write_folder):
    rows = [
        [f"q{i}", model, 1, sent, got, (sent * 1e-6 + got * 2e-6) * factor]
        for i in range(60)
        for sent, got in [tokens(i)]
        for model, factor in (("cheap", 1), ("dear", 10))
    ]
    seen = recorded(write_folder, ["prompt_tokens", "completion_tokens", "cost_usd"], rows)
    predicted = predict_costs(seen, UNSEEN)
    np.testing.assert_allclose(predicted[:, 1], 10 * predicted[:, 0])
    assert predicted[0, 0] < 3e-5
    assert predicted[1, 0] == pytest.approx(4.05e-4, rel=0.1)
    np.testing.assert_array_equal(predict_costs(seen, UNSEEN), predicted)


def test_costs_without_tokens_are_forecast_themselves(write_folder):
    rows = [[f"q{i}", "m", 1, 1e-5 if i % 2 else 9e-5] for i in range(60)]
    predicted = predict_costs(recorded(write_folder, ["cost_usd"], rows), UNSEEN)
    assert predicted[:, 0] == pytest.approx([1e-5, 9e-5], rel=0.35)


def test_costs_that_no_price_explains_are_forecast_themselves(write_folder):
    # The tokens say nothing of the cost, the text does.
    rows = [[f"q{i}", "m", 1, 5, 1 + i // 2 % 2, 1e-5 if i % 2 else 9e-5] for i in range(60)]
    seen = recorded(write_folder, ["prompt_tokens", "completion_tokens", "cost_usd"], rows)
    assert predict_costs(seen, UNSEEN)[:, 0] == pytest.approx([1e-5, 9e-5], rel=0.35)


def test_missing_costs_are_skipped(write_folder):
    rows = [[f"q{i}", "m", 1, "" if i % 3 else 2e-5] for i in range(60)]
    predicted = predict_costs(recorded(write_folder, ["cost_usd"], rows), UNSEEN)
    assert predicted[:, 0] == pytest.approx([2e-5, 2e-5], rel=0.02)


def test_a_price_is_found_in_what_was_paid():
    sent, got = np.array([100.0, 200.0, 50.0]), np.array([10.0, 400.0, 1.0])
    price = fitted_price(sent, got, 1.5e-7 * sent + 6e-7 * got, source="a test")
    assert price == Price(prompt=150, completion=600, source="a test")


def test_no_price_explains_what_was_paid_by_the_call():
    sent = np.array([100.0, 200.0, 50.0])
    assert fitted_price(sent, np.zeros(3), np.full(3, 1e-4), source="a test") is None


def test_absurd_costs_are_no_price():
    assert fitted_price(np.ones(3), np.zeros(3), np.full(3, 1e6), source="a test") is None


def test_nothing_paid_is_a_price():
    price = fitted_price(np.zeros(2), np.zeros(2), np.zeros(2), source="a test")
    assert price == Price(prompt=0, completion=0, source="a test")
