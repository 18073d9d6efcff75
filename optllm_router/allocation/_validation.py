"""What enters this room is checked once, here, and named precisely when it is wrong."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router._nearest import quoted

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from optllm_router._types import FloatArray

# Beyond any amount that means something, and far enough from overflow for all sums.
_LARGEST = 1e200


def check_instance(p: ArrayLike, cost: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return ``p`` and ``cost`` as float64 matrices of one shape, or say what is wrong with them.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), USD, finite and >= 0.

    Raises:
        InvalidDataError: naming the first entry that cannot be.
    """
    p_matrix, cost_matrix = _matrix(p, "p"), _matrix(cost, "cost")
    if p_matrix.shape != cost_matrix.shape:
        raise InvalidDataError(
            f"p has shape {p_matrix.shape} and cost has shape {cost_matrix.shape}: "
            "both need one row per query and one column per candidate"
        )
    if p_matrix.shape[1] == 0:
        raise InvalidDataError("p and cost have no columns: at least one candidate is needed")
    _check_range(p_matrix, "p", low=0.0, high=1.0, wanted="a probability in 0..1")
    _check_range(
        cost_matrix,
        "cost",
        low=0.0,
        high=_LARGEST,
        wanted="an amount in USD, >= 0 and finite (at most 1e200)",
    )
    return p_matrix, cost_matrix


def check_values(values: ArrayLike, name: str, shape: tuple[int, int]) -> FloatArray:
    """Return ``values`` as a finite float64 matrix of a given shape, or say what is wrong.

    Raises:
        InvalidDataError: naming the shape, or the first entry that is NaN or infinite.
    """
    matrix = _matrix(values, name)
    if matrix.shape != shape:
        raise InvalidDataError(
            f"{name} has shape {matrix.shape}: it must be {shape} (queries, candidates)"
        )
    _check_range(
        matrix, name, low=-_LARGEST, high=_LARGEST, wanted="a finite number (at most 1e200)"
    )
    return matrix


def check_amount(value: float, name: str) -> float:
    """Return ``value`` as a float >= 0 (infinity allowed), refusing NaN and negative numbers."""
    amount = _as_number(value)
    if math.isnan(amount) or amount < 0.0:
        raise InvalidDataError(f"{name} is {quoted(value)}: it must be a number >= 0")
    return amount


def check_share(value: float, name: str) -> float:
    """Return ``value`` as a float in 0..1, refusing everything else."""
    share = _as_number(value)
    if not 0.0 <= share <= 1.0:
        raise InvalidDataError(f"{name} is {quoted(value)}: it must be a number in 0..1")
    return share


def check_count(value: int, name: str) -> int:
    """Return ``value`` if it is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InvalidDataError(
            f"{name} is {quoted(value)}: it must be a whole number, and at least 1"
        )
    return int(value)


def _as_number(value: object) -> float:
    """NaN for what is no number, or text."""
    if isinstance(value, (str, bytes)):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _matrix(values: ArrayLike, name: str) -> FloatArray:
    try:
        given = np.asarray(values)
        if np.iscomplexobj(given):
            raise TypeError("complex numbers are in it")
        matrix = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(f"{name} is not a matrix of numbers: {error}") from error
    if matrix.ndim != 2:
        raise InvalidDataError(
            f"{name} has {matrix.ndim} dimension(s), shape {matrix.shape}: "
            "it must be a matrix (queries, candidates)"
        )
    return matrix


def _check_range(values: FloatArray, name: str, *, low: float, high: float, wanted: str) -> None:
    # min and max propagate NaN and allocate nothing: the slow search runs for bad input only.
    if values.size == 0 or (values.min() >= low and values.max() <= high):
        return
    inside: NDArray[np.bool_] = (values >= low) & (values <= high)
    query, candidate = np.argwhere(~inside)[0]
    raise InvalidDataError(
        f"{name}[{query}, {candidate}] is {float(values[query, candidate])!r}: "
        f"it must be {wanted}; correct or drop query {query}"
    )
