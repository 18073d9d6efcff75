"""``client.budgets``: look at the budgets of the store, and change them while calls run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

from optllm_router._money import Budget
from optllm_router.ledger import Balance, Ledger, set_what_is_given


class Budgets:
    """``client.budgets``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def list(self) -> Sequence[Balance]:
        """Those that are for each (``tenant:*``), then every other in its current window.

        What each has spent is in the balance of its own, of which there is one from its first
        call on.
        """
        return [*self._ledger.templates(), *self._ledger.balances()]

    def set(
        self,
        budget: str | float | Decimal | Budget,
        *,
        name: str = "",
        hard: bool | None = None,
        pace: bool | None = None,
        thresholds: Sequence[int] | None = None,
    ) -> None:
        """Create a budget, or change one from now on: its limit, and what else is given.

        A limit below what is spent stops new calls and cancels none. Other processes obey within
        two seconds.

        Args:
            budget: like ``"5 USD per day for tenant:acme"``; a ``Budget`` gives everything.
            name: what it is called; its scope by default.
            hard: whether the most that a call can cost is set aside.
            pace: whether the money is to last for the window.
            thresholds: percentages of the limit whose crossing is reported.

        Raises:
            ConfigurationError: it is no budget, or a budget of that name has another scope, window
                or time zone.
        """
        set_what_is_given(
            self._ledger, budget, name=name, hard=hard, pace=pace, thresholds=thresholds
        )

    def remove(self, name: str) -> None:
        """Take a budget out of use; what it spent stays in the books.

        Raises:
            ConfigurationError: no budget of that name.
        """
        self._ledger.remove_budget(name)


class AsyncBudgets:
    """``client.budgets``."""

    def __init__(self, ledger: Ledger) -> None:
        self._budgets = Budgets(ledger)

    async def list(self) -> Sequence[Balance]:
        """As :meth:`Budgets.list`, without blocking the event loop."""
        return await asyncio.to_thread(self._budgets.list)

    async def set(
        self,
        budget: str | float | Decimal | Budget,
        *,
        name: str = "",
        hard: bool | None = None,
        pace: bool | None = None,
        thresholds: Sequence[int] | None = None,
    ) -> None:
        """As :meth:`Budgets.set`, without blocking the event loop."""
        await asyncio.to_thread(
            self._budgets.set, budget, name=name, hard=hard, pace=pace, thresholds=thresholds
        )

    async def remove(self, name: str) -> None:
        """As :meth:`Budgets.remove`, without blocking the event loop."""
        await asyncio.to_thread(self._budgets.remove, name)
