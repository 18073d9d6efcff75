"""Changing a budget while calls run: what is given changes, and all else stays as it is."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from optllm_router._money import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router.ledger._ledger import Ledger


def set_what_is_given(
    ledger: Ledger,
    budget: str | float | Decimal | Budget,
    *,
    name: str = "",
    hard: bool | None = None,
    pace: bool | None = None,
    thresholds: Sequence[int] | None = None,
) -> Budget:
    """Create a budget, or change the limit of one that is there, and what else is given.

    Args:
        ledger: where it is kept.
        budget: as for :meth:`Budget.parse`; a ``Budget`` gives everything.
        name: what it is called; its scope by default.
        hard: as of ``Budget``; ``None`` leaves it as it is, and is True for a new one.
        pace: the same.
        thresholds: as of ``Budget``; ``None`` leaves them as they are.

    Returns:
        Budget: what was asked for.

    Raises:
        ConfigurationError: it is no budget, or a budget of that name has another scope, window or
            time zone.
    """
    manners = {"hard": hard, "pace": pace, "thresholds": thresholds}
    given = {what: value for what, value in manners.items() if value is not None}
    wanted = replace(Budget.parse(budget, name=name), **given)  # type: ignore[arg-type]
    if isinstance(budget, Budget):
        ledger.set_budget(wanted)
    else:
        ledger.set_budget(wanted, only=("limit_nano", *given))
    return wanted
