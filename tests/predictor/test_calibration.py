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


def predicted(seed: int, n: int, *, telling: float) -> tuple[Prediction, np.ndarray]:
    """What is said after n graded texts of 2,000 others, and the truth about these."""
    texts, p, scores = world(seed, n, telling=telling)
    predictor = make_predictor(n_candidates=K, seed=seed).fit(texts[:n], scores[:n])
    return predictor.predict(texts[n:]), p[n:]


@pytest.mark.parametrize("telling", [0.6, 0.0], ids=["telling", "mute"])
@pytest.mark.parametrize(("n", "least", "most_off"), [(30, 0.80, 0.09), (400, 0.95, 0.05)])
def test_p_is_calibrated_and_std_is_honest_about_what_was_not_fitted(n, least, most_off, telling):
    covered, off = [], []
    for seed in range(SEEDS):
        said, truth = predicted(seed, n, telling=telling)
        covered.append(np.mean(np.abs(said.p - truth) <= 1.96 * said.std))
        off.append(expected_calibration_error(said.p, truth))
    assert np.mean(covered) >= least, covered
    assert np.mean(off) <= most_off, off


def test_labels_make_it_surer():
    few, many = (predicted(0, n, telling=0.0)[0].std.mean() for n in (30, 400))
    assert many < 0.75 * few
