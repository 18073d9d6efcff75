"""Prices of limited resources: the Lagrangian dual of an allocation problem, minimised.

Give the budget a price and every candidate's capacity a price. Each query then chooses alone,
what it gains less what it pays, and ::

    dual(prices) = sum over queries of max over candidates (value - prices paid)
                   + what all the limits are worth at these prices

is, for *any* prices >= 0, at least what any feasible allocation reaches: the certificate. The
dual is convex, and its minimum is the optimum of the linear relaxation. As a maximum it has
corners, so it is smoothed to ``T log sum exp(. / T)`` and minimised by projected Newton steps,
T falling from coarse to fine (Nesterov, "Smooth minimization of non-smooth functions",
Mathematical Programming 103, 2005; Bertsekas, "Projected Newton methods", SIAM Journal on
Control and Optimization 20(2), 1982). There are k + 1 prices only, however many the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optllm_router._types import FloatArray

IMPOSSIBLE = -1e9  # worth of an impossible choice: no prices that matter make it attractive
_TEMPERATURES = tuple(0.1 * 0.25**level for level in range(8))
_NEWTON_STEPS = 30
_TOLERANCE = 1e-6  # of a limit: by how much the smoothed choices may miss it
_NEARLY_ZERO = 1e-3
_LEAST_DAMPING, _MOST_DAMPING = 1e-6, 1e9


@dataclass(frozen=True)
class Limits:
    """An allocation problem whose limits are scaled to 1 per query.

    Attributes:
        value: shape (n, k), what a choice is worth, in -1..1; ``IMPOSSIBLE`` where it cannot be.
        cost: shape (n, k), what it takes of the budget; zeros when there is no budget.
        load: shape (n, k), what it takes of its candidate's capacity; zeros where unlimited.
    """

    value: FloatArray
    cost: FloatArray
    load: FloatArray

    @property
    def floor(self) -> float:
        """Every allocation of possible choices is worth at least this."""
        return float(np.where(self.value > 0.5 * IMPOSSIBLE, self.value, np.inf).min(axis=1).sum())

    def reduced(self, prices: FloatArray) -> FloatArray:
        """What each choice is worth after paying for what it takes, shape (n, k)."""
        worth: FloatArray = self.value - prices[0] * self.cost - prices[1:] * self.load
        return worth

    def bound(self, prices: FloatArray) -> float:
        """No feasible allocation is worth more than this, whatever the prices (>= 0)."""
        n = len(self.value)
        return float(self.reduced(prices).max(axis=1).sum() + n * prices.sum())


@dataclass(frozen=True)
class DualPoint:
    """The best prices found.

    Attributes:
        prices: shape (k + 1,), of the budget and of each capacity, per scaled unit.
        bound: the dual at these prices.
        shares: shape (n, k), the smoothed choices: rows sum to 1.
        infeasible: True when the bound is below what any allocation is worth: a proof that
            none keeps the limits.
    """

    prices: FloatArray
    bound: float
    shares: FloatArray
    infeasible: bool


def minimise_dual(limits: Limits) -> DualPoint:
    """Find prices whose bound is as low as can be."""
    prices = np.zeros(limits.value.shape[1] + 1)
    if not len(limits.value):
        return DualPoint(prices, 0.0, limits.value, infeasible=False)
    best, least = prices, limits.bound(prices)
    floor = limits.floor - 1e-9 * len(limits.value)
    smooth = _Smooth(limits, _TEMPERATURES[0], prices)
    for temperature in _TEMPERATURES:
        smooth = _descend(_Smooth(limits, temperature, smooth.prices))
        bound = limits.bound(smooth.prices)
        if bound < least:
            best, least = smooth.prices, bound
        if least < floor:
            break
    return DualPoint(best, least, smooth.shares, infeasible=least < floor)


class _Smooth:
    """The smoothed dual per query at some prices: its height, slope and curvature."""

    def __init__(self, limits: Limits, temperature: float, prices: FloatArray) -> None:
        self.limits, self.temperature, self.prices = limits, temperature, prices
        reduced = limits.reduced(prices)
        top = reduced.max(axis=1, keepdims=True)
        weights = np.exp((reduced - top) / temperature)
        total = weights.sum(axis=1, keepdims=True)
        self.shares: FloatArray = weights / total
        self.height = float((top + temperature * np.log(total)).mean() + prices.sum())

    def gradient(self) -> FloatArray:
        """Shape (k + 1,): what is left of each limit."""
        n = len(self.shares)
        used = np.einsum("qj,qj->j", self.shares, self.limits.load) / n
        spent = np.einsum("qj,qj->", self.shares, self.limits.cost) / n
        left: FloatArray = 1.0 - np.concatenate([[spent], used])
        return left

    def hessian(self) -> FloatArray:
        """Shape (k + 1, k + 1): the mean covariance of what the choices take, over T."""
        n, k = self.shares.shape
        taken = self.shares * self.limits.load
        mean_cost = np.einsum("qj,qj->q", self.shares, self.limits.cost)
        above = self.limits.cost - mean_cost[:, np.newaxis]
        covariance = np.empty((k + 1, k + 1))
        covariance[0, 0] = np.einsum("qj,qj,qj->", self.shares, above, above)
        covariance[0, 1:] = covariance[1:, 0] = np.einsum("qj,qj->j", taken, above)
        covariance[1:, 1:] = -taken.T @ taken
        covariance[1:, 1:] += np.diag(np.einsum("qj,qj->j", taken, self.limits.load))
        covariance /= n * self.temperature
        return covariance


def _descend(smooth: _Smooth) -> _Smooth:
    """Newton steps at one temperature, prices kept >= 0."""
    damping = _LEAST_DAMPING
    for _ in range(_NEWTON_STEPS):
        step = _Step(smooth)
        if step.missed < _TOLERANCE:
            break
        lower = step.taken(damping)
        if lower is None:
            break
        smooth, damping = lower
    return smooth


class _Step:
    """A projected Newton step, more cautious the more it is damped (Levenberg, Marquardt).

    Attributes:
        missed: how far the prices are from optimal: the largest move of a gradient step.
    """

    def __init__(self, smooth: _Smooth) -> None:
        self._from = smooth
        self._gradient = smooth.gradient()
        prices = smooth.prices
        self.missed = float(np.abs(prices - np.maximum(0.0, prices - self._gradient)).max())
        # A price that is nearly 0 and wants to fall goes there, apart from the Newton step.
        self._falling = (prices <= min(_NEARLY_ZERO, self.missed)) & (self._gradient > 0.0)

    def taken(self, damping: float) -> tuple[_Smooth, float] | None:
        """Where the dual is lower (by Armijo's rule), and how to damp next; None if nowhere."""
        hessian = self._from.hessian()
        while damping < _MOST_DAMPING:
            there = _Smooth(self._from.limits, self._from.temperature, self._to(hessian, damping))
            expected = float(self._gradient @ (there.prices - self._from.prices))
            if there.height < self._from.height + 1e-4 * expected:
                return there, max(_LEAST_DAMPING, 0.1 * damping)
            damping *= 10.0
        return None

    def _to(self, hessian: FloatArray, damping: float) -> FloatArray:
        free = np.flatnonzero(~self._falling)
        curvature = hessian[np.ix_(free, free)] + damping * np.eye(len(free))
        prices = np.where(self._falling, 0.0, self._from.prices)
        prices[free] -= np.linalg.solve(curvature, self._gradient[free])
        return np.maximum(0.0, prices)
