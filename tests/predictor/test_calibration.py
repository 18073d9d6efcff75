"""What the default's p and std promise, against probabilities that are known."""

from __future__ import annotations

import numpy as np
import pytest

from optllm_router._types import Prediction
from optllm_router.metrics import expected_calibration_error
from optllm_router.predictor import make_predictor

WORDS = np.array(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "eps",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lam",
        "mu",
        "nu",
        "xi",
    ]
)
K, SEEDS = 4, 4


def world(seed: int, n: int, *, telling: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts of any of the words, each of which moves the log-odds of every candidate.

    Returns 2,000 texts more than n, their true success probabilities, and scores drawn from them.
    """
    rng = np.random.default_rng(seed)
    weights, base = rng.normal(0, telling, (len(WORDS), K)), rng.normal(0, 1, K)
    has = rng.random((n + 2_000, len(WORDS))) < 0.45
    p = 1 / (1 + np.exp(-(base + (has - 0.45) @ weights)))
    texts = [" ".join(WORDS[row]) for row in has]
    return texts, p, (rng.random(p.shape) < p).astype(float)


def predicted(
    seed: int, n: int, *, telling: float, name: str = "auto"
) -> tuple[Prediction, np.ndarray]:
    """What is said after n graded texts of 2,000 others, and the truth about these."""
    texts, p, scores = world(seed, n, telling=telling)
    predictor = make_predictor(name, n_candidates=K, seed=seed).fit(texts[:n], scores[:n])
    return predictor.predict(texts[n:]), p[n:]


def measured(name: str, n: int, telling: float, seeds: int) -> tuple[float, float]:
    """Share of true probabilities within 1.96 std, and expected calibration error: means."""
    covered, off = [], []
    for seed in range(seeds):
        said, truth = predicted(seed, n, telling=telling, name=name)
        covered.append(np.mean(np.abs(said.p - truth) <= 1.96 * said.std))
        off.append(expected_calibration_error(said.p, truth))
    return float(np.mean(covered)), float(np.mean(off))


@pytest.mark.parametrize("telling", [0.6, 0.0], ids=["telling", "mute"])
@pytest.mark.parametrize(
    ("n", "seeds", "least", "most_off"),
    [(30, SEEDS, 0.90, 0.09), (100, SEEDS, 0.90, 0.06), (400, SEEDS, 0.95, 0.05)],
)
def test_p_is_calibrated_and_std_is_honest_about_what_was_not_fitted(
    n, seeds, least, most_off, telling
):
    covered, off = measured("auto", n, telling, seeds)
    assert covered >= least
    assert off <= most_off


@pytest.mark.parametrize(
    ("name", "telling", "least", "most_off"),
    [
        ("auto", 0.6, 0.95, 0.05),
        ("auto", 0.0, 0.95, 0.03),
        ("bagged_forest", 0.6, 0.90, 0.05),
        ("bagged_forest", 0.0, 0.95, 0.10),  # the paper's knows no shrinkage
        ("knn", 0.6, 0.90, 0.035),
        ("knn", 0.0, 0.95, 0.035),
        ("clusters", 0.6, 0.70, 0.04),
        ("clusters", 0.0, 0.95, 0.035),
        ("base_rates", 0.6, 0.10, 0.035),  # knows how good a candidate is, not the text
        ("base_rates", 0.0, 0.90, 0.03),
    ],
)
def test_every_predictor_is_calibrated_after_400_texts(name, telling, least, most_off):
    covered, off = measured(name, 400, telling, 2)
    assert covered >= least
    assert off <= most_off


def test_texts_that_say_nothing_leave_little_doubt():
    """The uncertainty falls towards that of the base rates, and not only below what texts told."""
    said, _ = predicted(0, 400, telling=0.0)
    heard, _ = predicted(0, 400, telling=0.6)
    assert said.std.mean() < 0.75 * heard.std.mean()


def test_labels_make_it_surer():
    few, many = (predicted(0, n, telling=0.0)[0].std.mean() for n in (30, 400))
    assert many < 0.75 * few
