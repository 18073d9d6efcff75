"""Where the text says nothing, the default is not worse than base rates that ignore it."""

from __future__ import annotations

import numpy as np
import pytest

from optllm_router.evaluation import RecordedOutcomes, evaluate

N, SEEDS = 1_000, 4
WORDS = np.array([f"word{i}" for i in range(60)])


def scattered(seed: int, labels: float) -> RecordedOutcomes:
    """Random words; some queries are harder for all, and dearer models are better.

    The test set is judged by what is to be expected of an answer whose text says nothing: by
    each model's rate, instead of by chance.
    """
    rng = np.random.default_rng(seed)
    skill, k = np.array([-0.8, -0.2, 0.3, 0.6, 1.0]), 5
    logits = skill + rng.normal(0, 1.2, (N, 1)) + rng.normal(0, 0.5, (N, k))
    p = 1 / (1 + np.exp(-logits))
    score = (rng.random((N, k)) < p).astype(float)
    tested = np.random.default_rng(seed).permutation(N)[int(N * labels) :]
    score[tested] = p.mean(axis=0)
    cost = np.array([1.0, 2.0, 5.0, 12.0, 40.0]) * 1e-4 * rng.lognormal(0, 0.5, (N, 1))
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 25))) for _ in range(N)]
    nothing = np.full((N, k), np.nan)
    return RecordedOutcomes(
        name="scattered",
        ids=[str(i) for i in range(N)],
        tasks=[""] * N,
        queries=texts,
        references=None,
        models=tuple("abcde"),
        score=score,
        cost=cost,
        prompt_tokens=nothing,
        completion_tokens=nothing,
        answers=None,
    )


@pytest.mark.parametrize("labels", [0.02, 0.1, 0.3])
def test_the_default_does_no_harm_where_texts_say_nothing(labels):
    lost = []
    for seed in range(SEEDS):
        run = evaluate(scattered(seed, labels), labels=labels, seed=seed)
        ours, static = (run.methods[name].figures.auc for name in ("optllm", "static"))
        lost.append(static - ours)
    assert np.mean(lost) <= 0.002, lost
