"""What every solver offers, so that one can stand in for another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from optllm_router.allocation._solution import Solution


class Answers(Protocol):
    """What a solver says about one instance: an allocation for a constraint."""

    def at_budget(self, usd: float) -> Solution:
        """The most success within a budget in USD."""
        ...

    def at_success(self, rate: float) -> Solution:
        """The least cost that reaches a mean success rate, 0..1."""
        ...


class Solver(Protocol):
    """Turns success probabilities (n, k) and costs (n, k, in USD) into answers."""

    def __call__(self, p: ArrayLike, cost: ArrayLike) -> Answers: ...
