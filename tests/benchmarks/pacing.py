"""Whether a paced budget lasts, and what it buys, on recorded traffic against a virtual clock.

    python tests/benchmarks/pacing.py FOLDER... --labels 0.02 --seeds 3 --json

Recorded queries arrive over a week, by night less than by day and at weekends less than on
weekdays; nobody tells the router how many will come. It decides with a predictor fitted on a few
labels and with predicted costs, pays the recorded cost, and sends nothing that its budget could
not pay at the candidate's dearest. Scenarios: one budget for the week, where the router has seen
the arrivals of the week before (``week``) or starts with nothing (``cold``); one budget for each
day (``day``); a week with an hour of ten times the usual traffic (``burst``). ``greedy`` takes the
best that is affordable until the money is gone; ``hindsight`` knows every query and its true cost
beforehand, and the same predictions: no price does better. A budget is a share of the way from
the cost of always asking the cheapest to that of always asking whoever is predicted best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optllm_router import exact_front, make_predictor
from optllm_router.evaluation import RecordedOutcomes, load_recorded, split_recorded
from optllm_router.evaluation.costs import predict_costs
from optllm_router.policy import Forecast, MaxSuccess
from optllm_router.traffic import Means, Pot, Traffic

HOUR, DAY = 3600.0, 86400.0
MONDAY = 4 * DAY  # 1970 began on a Thursday
DAYS = 7
BY_HOUR = np.array(
    [2, 1, 1, 1, 1, 2, 4, 8, 14, 18, 20, 20, 16, 18, 20, 19, 17, 14, 10, 8, 7, 6, 5, 3]
)
BY_DAY = np.array([1.0, 1.1, 1.1, 1.0, 0.9, 0.3, 0.25])


@dataclass(frozen=True)
class Scenario:
    """Days per window; whether the week before was seen; whether there is a burst."""

    days: int = DAYS
    seen_before: bool = True
    burst: bool = False


SCENARIOS = {
    "week": Scenario(),
    "day": Scenario(days=1),
    "burst": Scenario(burst=True),
    "cold": Scenario(seen_before=False),
}


@dataclass(frozen=True)
class Recorded:
    """What is forecast of n queries, what is true of them, and when they arrive."""

    forecast: Forecast
    score: np.ndarray
    cost: np.ndarray
    moments: np.ndarray

    def between(self, start: float, end: float) -> slice:
        """Those of a window."""
        first, last = np.searchsorted(self.moments, [start, end])
        return slice(int(first), int(last))


def arrivals(n: int, rng: np.random.Generator, *, burst: bool) -> np.ndarray:
    """When n queries arrive, Unix seconds in ascending order."""
    weights = np.outer(BY_DAY, BY_HOUR).ravel()
    if burst:
        weights[int(rng.integers(24, len(weights) - 24))] += 10 * weights.mean()
    hours = rng.choice(len(weights), size=n, p=weights / weights.sum())
    return MONDAY + HOUR * np.sort(hours + rng.random(n))


def recorded(data: RecordedOutcomes, labels: float, seed: int, most: int) -> Recorded:
    """The test queries, shuffled, with what a router that saw the labelled ones predicts."""
    rng = np.random.default_rng(seed)
    split = split_recorded(data, labels=labels, seed=seed)
    test = split.test.select(rng.permutation(len(split.test))[:most])
    predictor = make_predictor("auto", n_candidates=len(data.models), seed=seed)
    said = predictor.fit(split.train.queries, split.train.score).predict(test.queries)
    cost = predict_costs(split.train, test.queries, seed=seed)
    return Recorded(Forecast(said.p, said.std, cost), test.score, test.cost, np.zeros(len(test)))


def run(data: Recorded, usd: float, scenario: Scenario, *, paced: bool) -> dict[str, float]:
    """Share of the money that was used at the end of the windows where it binds, and success."""
    traffic, dearest, days = Traffic(data.cost.shape[1]), data.cost.max(axis=0), scenario.days
    if scenario.seen_before:
        before = arrivals(len(data.score), np.random.default_rng(99), burst=False) - 7 * DAY
        traffic.arrivals.add_hours(Counter((before // HOUR).astype(int).tolist()))
    used, successes, refused = [], 0.0, 0
    for start in np.arange(MONDAY, MONDAY + DAYS * DAY, days * DAY):
        left = usd
        window = data.between(start, start + days * DAY)
        for seen, i in enumerate(range(window.start, window.stop)):
            one = slice(i, i + 1)
            batch = Forecast(data.forecast.p[one], data.forecast.std[one], data.forecast.cost[one])
            pot = Pot(left, start, start + days * DAY, seen, paced)
            choice = traffic.choose(MaxSuccess(), batch, Means((pot,), data.moments[i]))
            tried = [choice.allocation[0], *choice.fallbacks[0]]
            j = next((j for j in tried if dearest[j] <= left), None)
            if j is None:
                refused += 1
            else:
                left -= data.cost[i, j]
                successes += data.score[i, j]
        assert left >= 0
        if binds(data, window, usd):
            used.append(1 - left / usd)
    n = len(data.score)
    return {
        "used": float(np.mean(used)),
        "least_used": min(used),
        "success": successes / n,
        "refused": refused / n,
    }


def binds(data: Recorded, window: slice, usd: float) -> bool:
    """Whether the most success would cost more."""
    front = exact_front(data.forecast.p[window], data.forecast.cost[window])
    return bool(front.along(data.cost[window])[-1] > usd)


def hindsight(data: Recorded, usd: float, days: int) -> float:
    """The success rate of one price per window, chosen with the true costs known."""
    successes = 0.0
    for start in np.arange(MONDAY, MONDAY + DAYS * DAY, days * DAY):
        window = data.between(start, start + days * DAY)
        if window.stop > window.start:
            front = exact_front(data.forecast.p[window], data.forecast.cost[window])
            affordable = np.flatnonzero(front.along(data.cost[window]) <= usd)
            index = affordable[-1] if len(affordable) else 0
            successes += front.along(data.score[window])[index]
    return float(successes / len(data.score))


def measure(data: Recorded, share: float, scenario: Scenario) -> dict[str, Any]:
    """One budget in one scenario."""
    days = scenario.days
    paid = exact_front(data.forecast.p, data.forecast.cost).along(data.cost)
    cheapest, best = float(paid[0]), float(paid[-1])
    usd = (cheapest + share * (best - cheapest)) * days / DAYS
    return {
        "usd": usd,
        "paced": run(data, usd, scenario, paced=True),
        "greedy": run(data, usd, scenario, paced=False),
        "hindsight": hindsight(data, usd, days),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--labels", type=float, default=0.02)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--queries", type=int, default=5_000, help="of each folder, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for folder in options.folders:
        whole = load_recorded(folder)
        for seed in range(options.seeds):
            known = recorded(whole, options.labels, seed, options.queries)
            for name, scenario in SCENARIOS.items():
                rng = np.random.default_rng(seed)
                moments = arrivals(len(known.score), rng, burst=scenario.burst)
                data = replace(known, moments=moments)
                for share in options.shares:
                    one = {"dataset": whole.name, "scenario": name, "seed": seed}
                    one |= {"share": share, "queries": len(data.score)}
                    one |= measure(data, share, scenario)
                    results.append(one)
                    print(line(one), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine["numpy"] = np.__version__
        print(json.dumps({"labels": options.labels, "results": results, "machine": machine}))


def line(one: dict[str, Any]) -> str:
    """A result for people."""
    paced, greedy = one["paced"], one["greedy"]
    return (
        f"{one['dataset']:9} {one['scenario']:6} {one['share']:.0%} seed {one['seed']}  "
        f"used {paced['used']:.1%} (least {paced['least_used']:.1%})  "
        f"success {paced['success']:.4f}  "
        f"greedy {greedy['success']:.4f} (refused {greedy['refused']:.1%})  "
        f"hindsight {one['hindsight']:.4f}"
    )


if __name__ == "__main__":
    main()
