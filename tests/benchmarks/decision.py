"""What one decision costs, and where the time goes: ``python tests/benchmarks/decision.py --json``.

One query of about 190 characters, 10 candidates, a predictor fitted on 1,500 graded texts, and a
sample of 256 recent queries as traffic; no provider, no ledger. Figures are in microseconds over
``--decisions`` queries, each seen once: of CPU time, as others may use
the machine, and by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import numpy as np

from optllm_router import Candidate, MaxSuccess, Price, Query, Router, Usage
from optllm_router.capabilities import left_out
from optllm_router.features import TextFeaturizer
from optllm_router.policy import explore
from optllm_router.simulation import make_tasks
from optllm_router.traffic import Means, Pot

CANDIDATES = tuple(
    Candidate(
        f"model-{j}", f"x/model-{j}", Price(Decimal(100 * 2**j), Decimal(300 * 2**j), "x"), 1000
    )
    for j in range(10)
)
GRADED, TRAFFIC = 1_500, 256
MEANS = Means((Pot(1.0, 0.0, 86_400.0, 5_000),), 43_200.0)


def taught(prompts: list[str]) -> Router:
    """A router that knows scores and lengths of the first prompts."""
    rng = np.random.default_rng(1)
    router = Router(CANDIDATES, MaxSuccess(), seed=0)
    asked = [
        (prompt, j) for prompt in prompts for j in rng.choice(len(CANDIDATES), 2, replace=False)
    ]
    right = rng.random(len(asked))
    router.learn_many(
        (prompt, CANDIDATES[j].name, float(chance < 0.3 + 0.05 * j))
        for (prompt, j), chance in zip(asked, right, strict=True)
    )
    router.observe_many(
        (prompt, CANDIDATES[j].name, len(prompt), Usage(len(prompt) // 4, 20 + len(prompt)))
        for prompt, j in asked
    )
    router.wait()
    return router


def timed(work: Callable[[Any], object], inputs: Iterable[Any]) -> dict[str, float]:
    """Microseconds per call: medians and 99th percentiles."""
    cpu, clock = [], []
    for one in inputs:
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        work(one)
        cpu.append(1e6 * (time.thread_time() - cpu_begin))
        clock.append(1e6 * (time.perf_counter() - begin))
    names = ("cpu_p50", "cpu_p99", "clock_p50", "clock_p99")
    figures = [*np.percentile(cpu, [50, 99]), *np.percentile(clock, [50, 99])]
    return dict(zip(names, np.round(figures, 1).tolist(), strict=True))


def measure(decisions: int) -> dict[str, dict[str, float]]:
    """The whole decision, then its parts."""
    tasks = make_tasks(GRADED + TRAFFIC + decisions, np.random.default_rng(0))
    prompts = [task.prompt for task in tasks]
    router = taught(prompts[:GRADED])
    queries = [Query.from_messages([{"role": "user", "content": prompt}]) for prompt in prompts]
    for query in queries[GRADED : GRADED + TRAFFIC]:
        router.decide([query], MEANS)
    asked = queries[GRADED + TRAFFIC :]
    featurizer = TextFeaturizer().fit(prompts[:GRADED])
    traffic, rng = router._traffic, np.random.default_rng(0)
    forecasts = [router.forecast([query]) for query in asked]
    choices = [traffic.choose(MaxSuccess(), forecast, MEANS) for forecast in forecasts]
    return {
        "decision": timed(lambda query: router.decide([query], MEANS), asked),
        "measuring the messages": timed(
            lambda query: Query.from_messages(query.call.messages), asked
        ),
        "who cannot serve": timed(lambda query: left_out(CANDIDATES, query.call), asked),
        "features, once": timed(lambda query: featurizer.transform([query.text]), asked),
        "success (features included)": timed(
            lambda query: router._learner.predict([query.text]), asked
        ),
        "lengths (features included)": timed(
            lambda query: router._lengths.predict([query.text]), asked
        ),
        "expected cost": timed(
            lambda query: router._costs.expected_usd(query.call, [100.0] * len(CANDIDATES)), asked
        ),
        "policy": timed(lambda forecast: traffic.choose(MaxSuccess(), forecast, MEANS), forecasts),
        "exploration": timed(
            lambda pair: explore(*pair, doubt=0.1, uniform=0.01, rng=rng),
            list(zip(choices, forecasts, strict=True)),
        ),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.decisions)
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine["numpy"] = np.__version__
        print(json.dumps({"microseconds": figures, "machine": machine}))
        return
    print(f"{'microseconds':28}", *(f"{name:>9}" for name in figures["decision"]))
    for name, figure in figures.items():
        print(f"{name:28}", *(f"{value:9.1f}" for value in figure.values()))


if __name__ == "__main__":
    main()
