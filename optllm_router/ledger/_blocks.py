"""What a process holds for calls to come: how large its blocks are, and what is left in them."""

from __future__ import annotations

from dataclasses import dataclass

from optllm_router.ledger._operations import Held, Reservation

LIFE_SECONDS = 1.5
"""A block is given back after so long."""
_FEWEST_CALLS, _MOST_CALLS = 4, 1024
"""For how many calls a block holds money, as far as the budgets allow."""
_COVERED_SECONDS = 0.5
"""For so much of the traffic that was seen a block holds money,"""
_GROWTH = 4
"""and for at most so many times the calls that the one before it served."""


class Holdings:
    """What the blocks of a process hold, by budget, in nano-dollars.

    Changed by who has the ledger's lock; anyone may look.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def of(self, budget: str) -> int:
        """What is held of one budget."""
        return self._held.get(budget, 0)

    def add(self, held: Held, amount: int, soft: int) -> None:
        """Hold so much more, or less, of a block's budgets: of hard ones, and of soft ones."""
        for (name, _), hard in held.accounts:
            now = self._held.get(name, 0) + (amount if hard else soft)
            if now:
                self._held[name] = now
            else:
                self._held.pop(name, None)


@dataclass
class Block:
    """What is left of a block, as its holder knows; amounts in nano-dollars.

    Attributes:
        held: how it was leased.
        left: of the most that calls can cost.
        soft_left: of what they can set aside in soft budgets.
        since: when it was asked for, Unix seconds.
        drawn: how many calls drew from it.
    """

    held: Held
    left: int
    soft_left: int
    since: float
    drawn: int = 0

    @property
    def until(self) -> float:
        """When it is given back, Unix seconds."""
        over = self.since + LIFE_SECONDS
        return over if self.held.until is None else min(over, self.held.until)

    def covers(self, reservation: Reservation, now: float) -> bool:
        """Whether a call can draw from it now."""
        return (
            self.since <= now < self.until
            and reservation.amount(True) <= self.left
            and reservation.amount(False) <= self.soft_left
        )

    def draw(self, reservation: Reservation) -> None:
        """Take what a call needs."""
        self.left -= reservation.amount(True)
        self.soft_left -= reservation.amount(False)
        self.drawn += 1

    def is_low(self) -> bool:
        """Whether it is time to ask for another one."""
        return 2 * self.left < self.held.amount_nano


def calls_to_hold_for(before: Block | None, now: float) -> int:
    """How many calls the next block is to hold money for, by what the one before served."""
    if before is None:
        return _FEWEST_CALLS
    per_second = before.drawn / max(now - before.since, 1e-3)
    seen = min(int(per_second * _COVERED_SECONDS), _GROWTH * before.drawn, _MOST_CALLS)
    return max(_FEWEST_CALLS, seen)
