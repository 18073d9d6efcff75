"""What deciding concurrent calls together buys, and what it costs in time, on recorded traffic.

    python tests/benchmarks/batching.py FOLDER... --json

Recorded queries arrive in groups that are there at once, under one cap for all of them. A group of
one is decided as it comes; a larger one as the batcher does it, in one go. The cap is

- ``unpaced``: for good, with nothing known of how many queries will come, and each group may spend
  what it finds. Only what is planned together shares the money;
- ``total``: the same, but the less is left, the less a query may cost;
- ``daily``: for a day over which the queries come evenly, as many as on the day before. The price
  of the recent traffic then stands for the queries to come, and a group of one knows it, too.

Predictions come from a predictor fitted on a few labels, costs are predicted and paid as recorded,
and nothing is sent that the cap could not pay at the candidate's dearest. ``latency_ms`` is how
long a call waits for the decision of its whole group, features and predictions included (median
over the groups).
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

GROUPS = {
    "unpaced": (1, 4, 16, 64, 256, 1024),
    "total": (1, 4, 16, 64, 256, 1024),
    "daily": (1, 4, 16, 64),
}
DAY_SECONDS = 86_400.0
TODAY = 20_000 * DAY_SECONDS
"""When the queries begin to come, Unix seconds."""


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


def means(cap: str, usd: float, left: float, seen: int, n: int) -> Means:
    """What there is to spend when ``seen`` of n queries have come."""
    if cap != "daily":
        return Means((Pot(left, limit_usd=usd, paced=cap == "total"),))
    pot = Pot(left, start=TODAY, end=TODAY + DAY_SECONDS, seen=seen)
    return Means((pot,), now=TODAY + DAY_SECONDS * seen / n)


def traffic_before(data: Prepared) -> Traffic:
    """As many queries came yesterday as will today."""
    traffic, today = Traffic(data.cost.shape[1]), int(TODAY // 3600)
    hourly = len(data.queries) // 24
    traffic.arrivals.add_hours(dict.fromkeys(range(today - 24, today), hourly))
    return traffic


def run(data: Prepared, usd: float, cap: str, group: int) -> dict[str, Any]:
    """Decide, pay and count, group by group."""
    traffic, dearest = traffic_before(data), data.cost.max(axis=0)
    left, successes, refused, seconds = usd, 0.0, 0, []
    for start in range(0, len(data.queries), group):
        rows = slice(start, start + group)
        begin = time.perf_counter()
        said = data.predictor.predict(data.queries[rows])
        batch = Forecast(said.p, said.std, data.forecast_cost[rows])
        spendable = means(cap, usd, left, start, len(data.queries))
        choice = traffic.choose(MaxSuccess(), batch, spendable)
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
        "cap": cap,
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
    groups = [run(data, usd, cap, group) for cap, sizes in GROUPS.items() for group in sizes]
    return {"usd": usd, "groups": groups}


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
                    f"{recorded.name:9} {share:.0%}  {one['cap']} cap  groups of {one['group']:4}  "
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
