"""Instances and oracles that all allocation tests share."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, sparse


class Instance(NamedTuple):
    p: np.ndarray
    cost: np.ndarray


def instances(max_queries: int = 5, max_candidates: int = 4) -> st.SearchStrategy[Instance]:
    """Small instances: every second one is full of ties, zeros and collinear candidates."""
    shapes = st.tuples(st.integers(1, max_queries), st.integers(1, max_candidates))
    smooth = (
        st.floats(0.0, 1.0, allow_subnormal=False),
        st.floats(0.0, 100.0).map(lambda usd: round(usd, 9)),  # whole nano-dollars
    )
    coarse = (st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]), st.integers(0, 5).map(float))
    return st.tuples(shapes, st.sampled_from([smooth, coarse])).flatmap(
        lambda drawn: st.builds(
            Instance,
            hnp.arrays(np.float64, drawn[0], elements=drawn[1][0]),
            hnp.arrays(np.float64, drawn[0], elements=drawn[1][1]),
        )
    )


def random_instance(n: int, k: int, seed: int) -> Instance:
    """Dearer candidates tend to be better, as with real models."""
    rng = np.random.default_rng(seed)
    skill = np.sort(rng.random(k))
    p = 1.0 / (1.0 + np.exp(-rng.normal(4.0 * (skill - rng.random((n, 1))), 0.7, (n, k))))
    cost = 1e-3 * np.exp(4.0 * skill) * rng.lognormal(0.0, 0.5, (n, k))
    return Instance(p, cost)


def all_allocations(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """Cost and success of every allocation there is, correctly rounded."""
    n, k = instance.p.shape
    choices = list(itertools.product(range(k), repeat=n))
    rows = np.arange(n)
    cost = [math.fsum(instance.cost[rows, list(choice)]) for choice in choices]
    success = [math.fsum(instance.p[rows, list(choice)]) for choice in choices]
    return np.array(cost), np.array(success)


def milp_optimum(
    instance: Instance, usd: float, capacities: np.ndarray | None = None, *, relaxed: bool = False
) -> float:
    """Most successes within a budget (and capacities) by scipy's HiGHS."""
    n, k = instance.p.shape
    one_each = sparse.kron(sparse.eye(n), np.ones((1, k)), format="csr")
    constraints = [
        optimize.LinearConstraint(one_each, 1.0, 1.0),
        optimize.LinearConstraint(instance.cost.reshape(1, -1), -np.inf, usd),
    ]
    if capacities is not None:
        per_candidate = sparse.kron(np.ones((1, n)), sparse.eye(k), format="csr")
        constraints.append(optimize.LinearConstraint(per_candidate, -np.inf, capacities))
    result = optimize.milp(
        -instance.p.ravel(),
        constraints=constraints,
        integrality=np.full(n * k, 0 if relaxed else 1),
        bounds=optimize.Bounds(0.0, 1.0),
        options={"mip_rel_gap": 0.0},
    )
    assert result.success, result.message
    return -float(result.fun)
