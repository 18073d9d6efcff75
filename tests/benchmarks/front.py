"""How fast the allocation room is, and against whom.

    python tests/benchmarks/front.py --queries 1000000 --models 10 --json

Figures: the exact front of that size (median of 5 runs, and the peak memory of a fresh process
that does nothing else), its growth over 10k, 100k and 1M queries, HiGHS on the same instance of
5,000 x 10 (its linear bound must be ours), without and with a capacity per candidate, and the
paper's OptLLM-M on 31,360 x 8.
The instances are random: dearer models tend to be better, so that hulls have several vertices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from optllm_router.allocation import exact_front, optllm_m, solve_with_capacities

Matrix = NDArray[np.float64]
REPEATS = 5


def random_instance(n: int, k: int, seed: int) -> tuple[Matrix, Matrix]:
    """Success probabilities and costs of n queries and k models, in USD."""
    rng = np.random.default_rng(seed)
    skill = np.sort(rng.random(k))
    p = rng.standard_normal((n, k))
    p += 4.0 * (skill - rng.random((n, 1)))
    p = 1.0 / (1.0 + np.exp(-p))
    cost = 1e-3 * np.exp(4.0 * skill) * rng.lognormal(0.0, 0.5, (n, k))
    return p, cost


def median_seconds(task: Callable[[], object]) -> float:
    """Median wall-clock time of ``REPEATS`` runs."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def front_figures(n: int, k: int, seed: int) -> dict[str, Any]:
    """Seconds for the front, and for the questions asked of it."""
    p, cost = random_instance(n, k, seed)
    front_seconds = median_seconds(lambda: exact_front(p, cost))
    front = exact_front(p, cost)
    usd = float(0.7 * front.cost[0] + 0.3 * front.cost[-1])
    solution = front.at_budget(usd)
    return {
        "queries": n,
        "models": k,
        "points": len(front),
        "front_seconds": front_seconds,
        "at_budget_seconds": median_seconds(lambda: front.at_budget(usd)),
        "along_seconds": median_seconds(lambda: front.along(p)),
        "allocation_seconds": median_seconds(lambda: front.allocation(-1)),
        "budget_gap_successes": solution.gap,
    }


def peak_megabytes(n: int, k: int, seed: int) -> float:
    """Peak memory of a fresh process that makes the instance and its front.

    To be called while this process is still small: Linux counts what the parent had at the
    moment of the fork into the child's peak.
    """
    command = [sys.executable, __file__, "--queries", str(n), "--models", str(k)]
    child = subprocess.run(
        [*command, "--seed", str(seed), "--peak-only"], check=True, capture_output=True, text=True
    )
    return float(child.stdout)


def print_own_peak(n: int, k: int, seed: int) -> None:
    """What the child process of :func:`peak_megabytes` does."""
    p, cost = random_instance(n, k, seed)
    exact_front(p, cost)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(kilobytes / 1e3 if sys.platform != "darwin" else kilobytes / 1e6)


def linear_program(p: Matrix, cost: Matrix, usd: float) -> dict[str, Any]:
    """The linear relaxation, as ``scipy.optimize.linprog`` takes it."""
    n, k = p.shape
    return {
        "c": -p.ravel(),
        "A_ub": cost.reshape(1, -1),
        "b_ub": [usd],
        "A_eq": scipy.sparse.kron(scipy.sparse.eye(n), np.ones((1, k)), format="csr"),
        "b_eq": np.ones(n),
        "bounds": (0.0, 1.0),
        "method": "highs",
    }


def highs_figures(seed: int, n: int = 5_000, k: int = 10) -> dict[str, Any]:
    """HiGHS on the linear relaxation and on the integer program, and ours with the same budget.

    The integer program runs with HiGHS's default tolerance, a relative gap of 1e-4.
    """
    p, cost = random_instance(n, k, seed)
    front = exact_front(p, cost)
    usd = float(0.7 * front.cost[0] + 0.3 * front.cost[-1])
    ours_seconds = median_seconds(lambda: exact_front(p, cost).at_budget(usd))
    ours = front.at_budget(usd)
    program = linear_program(p, cost, usd)
    linear = scipy.optimize.linprog(**program)
    linear_seconds = median_seconds(lambda: scipy.optimize.linprog(**program))
    start = time.perf_counter()
    integer = scipy.optimize.linprog(**program, integrality=np.ones(n * k))
    integer_seconds = time.perf_counter() - start
    return {
        "queries": n,
        "models": k,
        "ours_seconds": ours_seconds,
        "ours_success": ours.success,
        "ours_bound": ours.bound,
        "linprog_seconds": linear_seconds,
        "linprog_bound": -linear.fun,
        "linprog_times_slower": linear_seconds / ours_seconds,
        "milp_seconds": integer_seconds,
        "milp_success": -integer.fun,
        "milp_times_slower": integer_seconds / ours_seconds,
    }


def capacity_figures(seed: int, n: int = 5_000, k: int = 10) -> dict[str, Any]:
    """A budget and at most 70 % of what each candidate would get without capacities."""
    p, cost = random_instance(n, k, seed)
    front = exact_front(p, cost)
    usd = float(0.6 * front.cost[0] + 0.4 * front.cost[-1])
    wanted = np.bincount(front.at_budget(usd).allocation, minlength=k)
    capacities = np.maximum((0.7 * wanted).astype(int), int(1.2 * n / k))
    ours = solve_with_capacities(p, cost, capacities, usd)
    program = linear_program(p, cost, usd)
    each = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye(k), format="csr")
    program["A_ub"] = scipy.sparse.vstack([program["A_ub"], each], format="csr")
    program["b_ub"] = np.concatenate([program["b_ub"], capacities])
    start = time.perf_counter()
    linear = scipy.optimize.linprog(**program)
    linear_seconds = time.perf_counter() - start
    return {
        "queries": n,
        "models": k,
        "ours_seconds": median_seconds(lambda: solve_with_capacities(p, cost, capacities, usd)),
        "ours_success": ours.success,
        "ours_bound": ours.bound,
        "ours_relative_gap": ours.gap / ours.bound,
        "linprog_seconds": linear_seconds,
        "linprog_bound": -linear.fun,
    }


def optllm_m_figures(seed: int, n: int = 31_360, k: int = 8) -> dict[str, Any]:
    """The paper's multi-objective solver beside the exact front, on the size of its LogPai."""
    p, cost = random_instance(n, k, seed)
    front, archive = exact_front(p, cost), optllm_m(p, cost)
    best = np.interp(archive.cost, front.cost, front.success)
    return {
        "queries": n,
        "models": k,
        "optllm_m_seconds": median_seconds(lambda: optllm_m(p, cost)),
        "exact_seconds": median_seconds(lambda: exact_front(p, cost)),
        "optllm_m_points": len(archive),
        "exact_points": len(front),
        "mean_loss_rate": float((best - archive.success).mean() / n),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def main() -> None:
    """Measure, and print one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line for machines")
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = (options.queries, options.models, options.seed)
    if options.peak_only:
        print_own_peak(*size)
        return
    peak = peak_megabytes(*size)
    figures = {
        "front": {**front_figures(*size), "peak_megabytes": peak},
        "growth": [
            front_figures(n, options.models, options.seed) for n in (10_000, 100_000, 1_000_000)
        ],
        "highs": highs_figures(options.seed),
        "capacities": capacity_figures(options.seed),
        "optllm_m": optllm_m_figures(options.seed),
        "machine": machine(),
    }
    print(json.dumps(figures, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
