"""Fit and predict speed, size, and what one query costs: ``python tests/benchmarks/predictor.py``.

Texts are synthetic: log lines of about 100 characters, and questions of about 500. Every figure
is the median of several runs, features included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import sklearn

from optllm_router.predictor import PREDICTORS, make_predictor, save_predictor

SENTENCES = """
the connection from server closed after receiving a packet error while user session opened
which of following best describes theory energy market cell function court history value
"""
WORDS = SENTENCES.split()


def log_lines(n: int, rng: np.random.Generator) -> list[str]:
    """Recurring traffic: 200 templates with changing values."""
    templates = [" ".join(rng.choice(WORDS, size=9)) for _ in range(200)]
    values = rng.integers(256, size=(n, 5))
    return [
        f"{templates[rng.integers(200)]} {a}.{b}.{c}.{d}:{e} port={e} blk_{a * b * c * d}"
        for a, b, c, d, e in values.tolist()
    ]


def questions(n: int, rng: np.random.Generator) -> list[str]:
    """Scattered traffic: no two alike."""
    return [" ".join(rng.choice(WORDS, size=80)) + "?" for _ in range(n)]


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median duration of ``work``, after one run that does not count."""
    work()
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def measure(name: str, texts: list[str], n_labels: int, n_models: int) -> dict[str, float]:
    """All figures of one predictor on one kind of text."""
    rng = np.random.default_rng(0)
    scores = (rng.random((n_labels, n_models)) < rng.random(n_models)).astype(float)
    predictor = make_predictor(name, n_candidates=n_models)
    begin = time.perf_counter()
    predictor.fit(texts[:n_labels], scores)
    fit_seconds = time.perf_counter() - begin
    asked = texts[n_labels:]
    batch = median_seconds(lambda: predictor.predict(asked), 3)
    rotation = iter(asked * 3)
    single = median_seconds(lambda: predictor.predict([next(rotation)]), 300)
    rotation = iter(asked * 3)
    learn = median_seconds(lambda: predictor.learn_one(next(rotation), 0, 1.0), 300)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictor.npz"
        save_predictor(predictor, path)
        size = path.stat().st_size
    return {
        "mean_characters": round(statistics.mean(map(len, asked)), 1),
        "fit_seconds": round(fit_seconds, 3),
        "queries_per_second": round(len(asked) / batch, 1),
        "one_query_ms": round(1e3 * single, 4),
        "learn_one_ms": round(1e3 * learn, 4),
        "size_mb": round(size / 1e6, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictor", choices=PREDICTORS, default="auto")
    parser.add_argument("--labels", type=int, default=3_000)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = {
        "log_lines": log_lines(options.labels + options.queries, rng),
        "questions": questions(options.labels + options.queries // 5, rng),
    }
    result = {
        "predictor": options.predictor,
        "labels": options.labels,
        "models": options.models,
        **{
            kind: measure(options.predictor, texts, options.labels, options.models)
            for kind, texts in kinds.items()
        },
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit_learn": sklearn.__version__,
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    for kind in kinds:
        print(kind, *(f"{key}={value}" for key, value in result[kind].items()), sep="  ")


if __name__ == "__main__":
    main()
