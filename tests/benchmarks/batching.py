"""What deciding concurrent calls together buys, and what it costs in time, on recorded traffic.

    python tests/benchmarks/batching.py FOLDER... --json

Recorded queries arrive in groups of 1 to 1,024 that are there at once, under one cap for all of
them and nothing known of how many will come. A group of one is decided as it comes; a larger one
as the batcher does it, in one go. Either way predictions come from a predictor fitted on a few
labels, costs are predicted and paid as recorded, and nothing is sent that the cap could not pay
at the candidate's dearest. ``latency_ms`` is how long a call waits for the decision of its whole
group, features and predictions included (median over the groups).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optllm_router import Predictor, exact_front, make_predictor
from optllm_router.evaluation import RecordedOutcomes, load_recorded, split_recorded
from optllm_router.evaluation.costs import predict_costs
from optllm_router.policy import Forecast, MaxSuccess
from optllm_router.traffic import Means, Pot, Traffic

GROUPS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Prepared:
    """n queries: how to predict them, what they are forecast to cost, what is true."""

    predictor: Predictor
    queries: list[str]
    forecast_cost: np.ndarray
    score: np.ndarray
    cost: np.ndarray


def prepared(data: RecordedOutcomes, labels: float, seed: int, most: int) -> Prepared:
    """A fitted predictor, and shuffled test queries."""
    split = split_recorded(data, labels=labels, seed=seed)
    test = split.test.select(np.random.default_rng(seed).permutation(len(split.test))[:most])
    predictor = make_predictor("auto", n_candidates=len(data.models), seed=seed)
    predictor.fit(split.train.queries, split.train.score)
    cost = predict_costs(split.train, test.queries, seed=seed)
    return Prepared(predictor, list(test.queries), cost, test.score, test.cost)


def run(data: Prepared, usd: float, group: int) -> dict[str, Any]:
    """Decide, pay and count, group by group."""
    traffic, dearest = Traffic(data.cost.shape[1]), data.cost.max(axis=0)
    left, successes, refused, seconds = usd, 0.0, 0, []
    for start in range(0, len(data.queries), group):
        rows = slice(start, start + group)
        begin = time.perf_counter()
        said = data.predictor.predict(data.queries[rows])
        batch = Forecast(said.p, said.std, data.forecast_cost[rows])
        choice = traffic.choose(MaxSuccess(), batch, Means((Pot(left),)))
        seconds.append(time.perf_counter() - begin)
        for i, chosen in enumerate(choice.allocation):
            tried = (j for j in (chosen, *choice.fallbacks[i]) if dearest[j] <= left)
            j = next(tried, None)
            if j is None:
                refused += 1
            else:
                left -= data.cost[start + i, j]
                successes += data.score[start + i, j]
    spent = usd - left
    return {
        "group": group,
        "success": successes / len(data.queries),
        "successes_per_usd": successes / spent if spent else 0.0,
        "used": spent / usd,
        "refused": refused / len(data.queries),
        "latency_ms": 1e3 * statistics.median(seconds),
    }


def measure(data: Prepared, share: float) -> dict[str, Any]:
    """Groups of every size under one cap, a share of the way from cheapest to most success."""
    p = data.predictor.predict(data.queries).p
    paid = exact_front(p, data.forecast_cost).along(data.cost)
    usd = float(paid[0] + share * (paid[-1] - paid[0]))
    return {"usd": usd, "groups": [run(data, usd, group) for group in GROUPS]}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--labels", type=float, default=0.02)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--queries", type=int, default=1_024, help="of each folder, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for folder in options.folders:
        recorded = load_recorded(folder)
        data = prepared(recorded, options.labels, options.seed, options.queries)
        for share in options.shares:
            results.append({"dataset": recorded.name, "share": share, **measure(data, share)})
            for one in results[-1]["groups"]:
                print(
                    f"{recorded.name:9} {share:.0%}  groups of {one['group']:4}  "
                    f"success {one['success']:.4f}  per USD {one['successes_per_usd']:9.1f}  "
                    f"used {one['used']:.1%}  refused {one['refused']:.1%}  "
                    f"latency {one['latency_ms']:.2f} ms",
                    file=sys.stderr if options.json else sys.stdout,
                    flush=True,
                )
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine["numpy"] = np.__version__
        print(json.dumps({"labels": options.labels, "results": results, "machine": machine}))


if __name__ == "__main__":
    main()
