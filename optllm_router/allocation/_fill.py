"""What is left between two points of a front, spent greedily.

Two neighbouring points differ in one move, so a limit that falls between them leaves a little
money (or, for a target, a little too much success). It is traded for what the other side
wants: first along the hulls, best rate first, every move that fits; then for single candidates
off the hulls. The work is vectorised over all queries, in a bounded number of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, IntArray
    from optllm_router.allocation._hull import Hulls

_ROUNDS = 100
_BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class Trade:
    """Give some of one thing for more of another.

    Climbing the hulls (``direction`` 1) pays USD for success; descending them (-1) pays
    success for USD. One formula serves both: a change from x to y pays or gains
    ``direction * (y - x)``.

    Attributes:
        direction: 1 to climb, -1 to descend.
        paid: shape (n, k), what limits the changes: cost when climbing, p when descending.
        gained: shape (n, k), what they are for: p when climbing, cost when descending.
        paid_at: shape (v,), ``paid`` at every hull vertex.
    """

    direction: Literal[1, -1]
    paid: FloatArray
    gained: FloatArray
    paid_at: FloatArray


def spend(trade: Trade, hulls: Hulls, vertices: IntArray, amount: float) -> IntArray:
    """Trade up to ``amount`` of what is paid for as much as possible of what is gained.

    Args:
        trade: what is paid and gained.
        hulls: the hulls of all queries.
        vertices: shape (n,), the hull vertex of every query to start from.
        amount: how much may be paid, >= 0, in the unit of ``trade.paid``.

    Returns:
        The improved allocation, shape (n,). What it pays keeps to ``amount`` up to rounding.
    """
    vertices, left = _along_hulls(trade, hulls, vertices, amount)
    allocation = hulls.candidate[vertices].astype(np.int64)
    return _off_hulls(trade, allocation, left)


def _along_hulls(
    trade: Trade, hulls: Hulls, vertices: IntArray, amount: float
) -> tuple[IntArray, float]:
    """Walk on along the hulls where it fits; returns the vertices and what is left."""
    at = vertices.copy()
    end = hulls.offset[1:] - 1 if trade.direction == 1 else hulls.first
    query = np.arange(len(at))
    for _ in range(_ROUNDS):
        query = query[at[query] != end[query]]
        here = at[query]
        there = here + trade.direction
        price = trade.direction * (trade.paid_at[there] - trade.paid_at[here])
        fits = price <= amount
        # What does not fit now never will: the amount only shrinks, prices along a hull stay.
        query, price = query[fits], price[fits]
        if not len(query):
            break
        rate = trade.direction * hulls.slope[np.maximum(here, there)[fits]]
        best_first = np.argsort(-rate, kind="stable")
        total = np.cumsum(price[best_first])
        taken = max(1, int(np.searchsorted(total, amount, side="right")))
        at[query[best_first[:taken]]] += trade.direction
        amount = max(0.0, amount - float(total[taken - 1]))
    return at, amount


def _off_hulls(trade: Trade, allocation: IntArray, amount: float) -> IntArray:
    """Take the single changes of greatest gain that fit, one after the other."""
    query, candidate = _fitting_pairs(trade, allocation, amount)
    for _ in range(_ROUNDS):
        here = allocation[query]
        gain = trade.direction * (trade.gained[query, candidate] - trade.gained[query, here])
        price = trade.direction * (trade.paid[query, candidate] - trade.paid[query, here])
        fits = (gain > 0.0) & (price <= amount)
        if not fits.any():
            break
        query, candidate, gain, price = query[fits], candidate[fits], gain[fits], price[fits]
        best = int(gain.argmax())
        allocation[query[best]] = candidate[best]
        amount = max(0.0, amount - float(price[best]))
    return allocation


def _fitting_pairs(trade: Trade, allocation: IntArray, amount: float) -> tuple[IntArray, IntArray]:
    """All (query, candidate) that gain something and whose price fits, found block by block."""
    queries, candidates = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(allocation), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        at = allocation[rows, np.newaxis]
        gained, paid = trade.gained[rows], trade.paid[rows]
        gain = trade.direction * (gained - np.take_along_axis(gained, at, axis=1))
        price = trade.direction * (paid - np.take_along_axis(paid, at, axis=1))
        query, candidate = np.nonzero((gain > 0.0) & (price <= amount))
        queries.append(query + start)
        candidates.append(candidate)
    return np.concatenate(queries), np.concatenate(candidates)
