"""The upper concave hull of every query's candidates, all queries at once.

Among a query's candidates only those on the upper concave hull of the points (cost, p) can
appear in an allocation that is optimal for some price of money (Sinha & Zoltners, "The
multiple-choice knapsack problem", Operations Research 27(3), 1979). The walk along a hull is
gift-wrapping (Jarvis, 1973): from the present vertex go to the candidate of steepest ascent.
All queries of a block step together, and a block is small enough to stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, IntArray

IndexArray: TypeAlias = NDArray[np.int32]

# Entries of one block's working matrix: a handful of such matrices fit a core's cache.
_BLOCK_ENTRIES = 65_536
_NOWHERE = -1.0


@dataclass(frozen=True)
class Hulls:
    """The hulls of n queries, one after the other: query i owns ``offset[i]:offset[i + 1]``.

    Every query has at least one vertex, its cheapest candidate (of equally cheap ones the most
    successful). Along a query's vertices cost and p increase strictly, and slopes never increase.

    Attributes:
        offset: shape (n + 1,).
        candidate: shape (v,), which candidate a vertex is.
        cost: shape (v,), USD.
        p: shape (v,), success probability.
        slope: shape (v,), gain in p per USD on the way from the previous vertex; infinite at
            a query's first vertex, which is taken at any price.
    """

    offset: IntArray
    candidate: IndexArray
    cost: FloatArray
    p: FloatArray
    slope: FloatArray

    @property
    def first(self) -> IntArray:
        """Shape (n,): every query's first vertex."""
        return self.offset[:-1]

    @property
    def owner(self) -> IndexArray:
        """Shape (v,): the query that a vertex belongs to."""
        sizes = np.diff(self.offset)
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def upper_hulls(p: FloatArray, cost: FloatArray) -> Hulls:
    """Find the upper concave hull of (cost, p) of every row.

    Ties: of equal costs the highest p stays; candidates on one line make one long step;
    a candidate that adds no p is no vertex.

    Args:
        p: shape (n, k), validated.
        cost: shape (n, k), validated.
    """
    n, k = p.shape
    rows = max(1, _BLOCK_ENTRIES // k)
    # Room for every candidate; the system gives memory only to what is written.
    hulls = Hulls(
        offset=np.zeros(n + 1, dtype=np.int64),
        candidate=np.empty(n * k, dtype=np.int32),
        cost=np.empty(n * k),
        p=np.empty(n * k),
        slope=np.empty(n * k),
    )
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        _write(hulls, start, _walk(p[block], cost[block]))
    used = slice(0, int(hulls.offset[-1]))
    return Hulls(
        hulls.offset, hulls.candidate[used], hulls.cost[used], hulls.p[used], hulls.slope[used]
    )


@dataclass(frozen=True)
class _Step:
    """One vertex more on the hulls of some rows of a block; ``top`` is their highest p."""

    row: IntArray
    candidate: IndexArray
    cost: FloatArray
    p: FloatArray
    slope: FloatArray
    top: FloatArray


def _walk(p: FloatArray, cost: FloatArray) -> list[_Step]:
    """The hulls of one block, vertex by vertex."""
    # Candidates run along the first axis, so that all arithmetic is over long contiguous rows.
    p_columns, cost_columns = np.ascontiguousarray(p.T), np.ascontiguousarray(cost.T)
    step = _cheapest(p_columns, cost_columns)
    steps = []
    while len(step.row):
        steps.append(step)
        p_columns, cost_columns, step = _ascend(p_columns, cost_columns, step)
    return steps


def _cheapest(p: FloatArray, cost: FloatArray) -> _Step:
    """Every row's cheapest candidate, of equally cheap ones the most successful."""
    least = cost.min(axis=0)
    candidate = _most_successful(p, cost == least)
    rows = np.arange(p.shape[1])
    reached = p[candidate, rows]
    return _Step(rows, candidate, least, reached, np.full(len(rows), np.inf), p.max(axis=0))


def _ascend(p: FloatArray, cost: FloatArray, at: _Step) -> tuple[FloatArray, FloatArray, _Step]:
    """Go to the steepest candidate above each row's vertex; rows that are at the top leave.

    A candidate with more p than the vertex also costs more: it would otherwise have been
    steeper than the vertex itself one step earlier. Rounding keeps this, as it is monotone.
    """
    climbing = np.flatnonzero(at.p < at.top)
    if len(climbing) < len(at.row):
        p, cost = np.take(p, climbing, axis=1), np.take(cost, climbing, axis=1)
    gain = p - at.p[climbing]
    with np.errstate(all="ignore"):  # candidates that are no higher divide to anything
        slope = np.where(gain > 0.0, gain / (cost - at.cost[climbing]), _NOWHERE)
    steepest = slope.max(axis=0)
    candidate = _most_successful(p, slope == steepest)
    there = candidate, np.arange(len(candidate))
    step = _Step(
        row=at.row[climbing],
        candidate=candidate,
        cost=cost[there],
        p=p[there],
        # Nearly collinear vertices can round to a slope above the one before: keep the order.
        slope=np.minimum(steepest, at.slope[climbing]),
        top=at.top[climbing],
    )
    return p, cost, step


def _most_successful(p: FloatArray, allowed: NDArray[np.bool_]) -> IndexArray:
    """Index along the first axis of the highest allowed p, of equals the first."""
    if np.count_nonzero(allowed) > p.shape[1]:
        allowed_p = np.where(allowed, p, _NOWHERE)
        allowed = allowed_p == allowed_p.max(axis=0)
    index = np.arange(len(p), dtype=np.int32)[:, np.newaxis]
    first: IndexArray = np.where(allowed, index, np.int32(len(p))).min(axis=0)
    return first


def _write(hulls: Hulls, start: int, steps: list[_Step]) -> None:
    """Put the hulls of one block, whose first row is ``start``, where they belong."""
    sizes = np.zeros(len(steps[0].row), dtype=np.int64)
    for step in steps:
        sizes[step.row] += 1
    end = hulls.offset[start + 1 : start + 1 + len(sizes)]
    np.cumsum(sizes, out=end)
    end += hulls.offset[start]
    first = end - sizes
    for depth, step in enumerate(steps):
        vertex = first[step.row] + depth
        hulls.candidate[vertex] = step.candidate
        hulls.cost[vertex] = step.cost
        hulls.p[vertex] = step.p
        hulls.slope[vertex] = step.slope
