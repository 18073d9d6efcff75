"""A user's budget or target against what an instance can do at all."""

from __future__ import annotations

from optllm_router._errors import InfeasibleError
from optllm_router.allocation._validation import check_amount, check_share

# Callers compute limits with sums of their own: a limit this close to the extreme is the extreme.
ROUNDING = 1e-12


def payable(usd: float, least: float, n: int) -> float:
    """The budget, at least ``least`` USD: what the cheapest allocation of n queries costs.

    Raises:
        InfeasibleError: when the budget is below that by more than rounding.
        InvalidDataError: when the budget is NaN or negative.
    """
    usd = check_amount(usd, "the budget in USD")
    if usd < least * (1.0 - ROUNDING):
        raise InfeasibleError(
            f"a budget of {usd:.10g} USD pays for no allocation of {n} queries: the cheapest "
            f"costs {least:.10g} USD; raise the budget to that or send less",
            limit=usd,
            attainable=least,
        )
    return max(usd, least)


def reachable(rate: float, highest: float, n: int) -> float:
    """The target in expected successes of n queries, less what rounding may have added.

    Args:
        rate: mean success rate asked for, 0..1.
        highest: the most expected successes that an allocation has.
        n: number of queries.

    Raises:
        InfeasibleError: when the target is above ``highest``; it speaks in rates.
        InvalidDataError: when the rate is not a number in 0..1.
    """
    rate = check_share(rate, "the target success rate")
    target = rate * n * (1.0 - ROUNDING)
    if target > highest:
        raise InfeasibleError(
            f"no allocation reaches a mean success rate of {rate:.10g}: the highest expected is "
            f"{highest / n:.10g}; lower the target or add a stronger candidate",
            limit=rate,
            attainable=highest / n,
        )
    return target
