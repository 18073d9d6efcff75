"""What can be done to the books: one function per operation, each safe to run again.

When a transaction fails, or the reply of its commit is lost, its operations are run anew. Each
then finds what it wrote the first time (``written``) and gives the same answer.

A *block* is a reservation that a process holds for calls to come, see :mod:`._leases`. Drawing
moves money from the block's entry to that of a call: the balances stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from optllm_router._errors import ConfigurationError, OptLLMError
from optllm_router.ledger._balances import Moved, room_from
from optllm_router.ledger._books import Books, Entry, Part, State
from optllm_router.ledger._limits import Account, Limit
from optllm_router.ledger._thresholds import Crossing

_BLOCK_SHARE = 64
"""The blocks of a process hold at most this fraction of what a budget has left."""
BLOCK_LEASE_SECONDS = 30.0
"""After so long, other processes take a block's holder to be dead."""


@dataclass(frozen=True)
class Reservation:
    """Money to set aside for one call.

    Attributes:
        id: identifies the reservation; settling and releasing name it.
        decision_id: the decision that the call carries out.
        candidate: who is going to be paid.
        amount_nano: the most that the call can cost, in nano-dollars; set aside in hard budgets.
        scopes: what the call belongs to, like ``tenant:acme``. Every budget on one of these or on
            everything must have room.
        price_source: where the price came from.
        lease_seconds: how long the call may take before its process counts as dead.
        soft_nano: what is set aside in soft budgets; ``None`` for the most that it can cost.
    """

    id: str
    decision_id: str
    candidate: str
    amount_nano: int
    scopes: tuple[str, ...]
    price_source: str
    lease_seconds: float
    soft_nano: int | None = None

    def amount(self, hard: bool) -> int:
        """What is set aside in a hard budget, or in a soft one."""
        return self.amount_nano if hard or self.soft_nano is None else self.soft_nano


@dataclass(frozen=True)
class Refusal:
    """Why a reservation was not made; amounts in nano-dollars.

    Attributes:
        budget: the budget that had no room.
        scope: what it pays for.
        window: over which time.
        left_nano: what it had left.
        needed_nano: what had to be set aside.
        reserved_nano: what other calls have set aside, part of which may come back.
        next_window: Unix seconds from which there is room, unless others use it; ``None`` when
            time alone does not help.
    """

    budget: str
    scope: str
    window: str
    left_nano: int
    needed_nano: int
    reserved_nano: int
    next_window: int | None


@dataclass(frozen=True)
class Soft:
    """Money was set aside, and no hard budget was among those that apply.

    So the answer needs no bound. Where a reservation holds in a hard budget, it is the most that
    the call can cost only if its answer keeps to the bound that was reckoned with.
    """


@dataclass(frozen=True)
class Effects:
    """What the operations of a group did together."""

    moves: dict[Account, Moved]
    crossings: list[Crossing]


@dataclass
class Operation:
    """Something to do to the books.

    Attributes:
        id: the reservation that it is about.
        written: whether a transaction before this one did it; it may have been committed or not.
        effects: of the whole group, on the first operation of one.
        failures: how often the database could not write it.
    """

    id: str
    written: bool = field(default=False, init=False)
    effects: Effects | None = field(default=None, init=False)
    failures: int = field(default=0, init=False)

    def ids(self) -> tuple[str, ...]:
        """The reservations that it looks at."""
        return (self.id,)

    def scopes(self) -> tuple[str, ...]:
        """The scopes of a call that asks for money."""
        return ()

    def apply(self, books: Books, now: float) -> object:
        """Do it; what cannot be done is refused before anything is changed.

        Raises:
            OptLLMError: it cannot be done.
        """
        raise NotImplementedError

    def attempt(self, books: Books, now: float) -> object:
        """As :meth:`apply`; an error is returned, so that the rest of a group goes on."""
        try:
            return self.apply(books, now)
        except OptLLMError as error:
            return error

    def describe(self) -> str:
        """What it moves, for the log."""
        return type(self).__name__


@dataclass
class Reserving(Operation):
    """Set money aside for a call; the result is a refusal, or as :func:`granted` says."""

    reservation: Reservation
    is_hard: bool = field(default=True, init=False)

    def scopes(self) -> tuple[str, ...]:
        """Those of the call."""
        return self.reservation.scopes

    def apply(self, books: Books, now: float) -> Refusal | Soft | None:
        """Set it aside in all budgets, or in none."""
        if _was_made(self, books):
            return granted(hard=self.is_hard)
        reservation = self.reservation
        limits = books.limits_of(reservation.scopes)
        for limit in limits:
            refusal = _refusal(limit, books.counted(limit), reservation.amount(limit.hard))
            if refusal is not None:
                return refusal
        parts = [Part(limit.account, reservation.amount(limit.hard)) for limit in limits]
        _enter(books, reservation, parts, now)
        self.written = True
        self.is_hard = any(limit.hard for limit in limits)
        return granted(hard=self.is_hard)


@dataclass
class Closing(Operation):
    """Settle, release or expire a reservation; the result is whether this changed anything.

    Attributes:
        state: what becomes of it.
        cost_nano: what the call cost; ``None`` for all that was reserved.
        estimated: whether the provider did not say.
        drawing: how it was made, when it was drawn from a block: should that have failed to
            arrive, it is made good now.
    """

    state: State
    cost_nano: int | None
    estimated: bool
    drawing: Drawing | None = None

    def ids(self) -> tuple[str, ...]:
        """The reservation, and the block that it was drawn from."""
        return (self.id,) if self.drawing is None else self.drawing.ids()

    def describe(self) -> str:
        """What the call cost."""
        cost = "all" if self.cost_nano is None else self.cost_nano
        return f"{cost} nano-dollars that were {self.state}"

    def apply(self, books: Books, now: float) -> bool:
        """Close it unless it is closed."""
        if self.drawing is not None and books.entry(self.id) is None:
            self.drawing.apply(books, now)
        entry = books.entry(self.id)
        if entry is None:
            return False
        cost = entry.reserved if self.cost_nano is None else self.cost_nano
        closed = replace(entry, state=self.state, settled=cost, estimated=self.estimated)
        closable = ("open",) if self.state == "expired" else ("open", "expired")
        if entry.state not in closable:
            return self.written and entry == closed
        books.put(self.id, closed)
        self.written = True
        return True


@dataclass(frozen=True)
class Held:
    """A block as it was leased.

    Attributes:
        block_id: its reservation.
        accounts: where it holds money, and whether the budget is hard.
        amount_nano: the most that calls drawn from it can cost together.
        soft_nano: what they can set aside in soft budgets together.
        until: Unix seconds at which the window of one of its budgets ends; ``None`` for never.
    """

    block_id: str
    accounts: tuple[tuple[Account, bool], ...]
    amount_nano: int
    soft_nano: int
    until: float | None

    @property
    def is_hard(self) -> bool:
        """Whether one of the budgets is."""
        return any(hard for _, hard in self.accounts)


@dataclass
class Leasing(Operation):
    """Hold money for calls to come; the result says what is held, ``None`` when too little is left.

    Attributes:
        like: a call like those to come.
        calls: how many.
        holds: what the process holds already of a budget, in nano-dollars, by its name.
    """

    like: Reservation
    calls: int
    holds: Callable[[str], int]
    held: Held | None = field(default=None, init=False)

    def scopes(self) -> tuple[str, ...]:
        """Those of the calls."""
        return self.like.scopes

    def apply(self, books: Books, now: float) -> Held | None:
        """Hold money for as many as fit into a small part of what is left."""
        if self.written and books.entry(self.id) is not None:
            return self.held
        limits = books.limits_of(self.like.scopes)
        calls = min([self.calls, *(self._calls_in(limit, books) for limit in limits)])
        if calls < 2:
            return None
        amount, soft = calls * self.like.amount(True), calls * self.like.amount(False)
        self.held = Held(
            self.id,
            tuple((limit.account, limit.hard) for limit in limits),
            amount,
            soft,
            min((limit.span.ends for limit in limits if limit.span.ends), default=None),
        )
        parts = [Part(limit.account, amount if limit.hard else soft) for limit in limits]
        block = Reservation(
            self.id, "", "", amount, self.like.scopes, "", BLOCK_LEASE_SECONDS, soft
        )
        _enter(books, block, parts, now, block=True)
        books.leased.update({limit.name: amount if limit.hard else soft for limit in limits})
        self.written = True
        return self.held

    def _calls_in(self, limit: Limit, books: Books) -> int:
        """How many calls a block may hold money for, by one limit."""
        used = sum(moved.used for moved in books.counted(limit).values())
        held = self.holds(limit.name) + books.leased[limit.name]
        room = max(0, limit.nano - used + held) // _BLOCK_SHARE - held
        return max(0, room) // max(1, self.like.amount(limit.hard))


@dataclass
class Drawing(Operation):
    """Move money from a block to a call, which the holder of the block has sent already.

    The block may have expired meanwhile, and even have been freed: then the call takes what is
    left of it, and counts in full nevertheless.

    Attributes:
        reservation: of the call.
        held: the block.
        is_outdated: whether one of its budgets became hard, or soft, since it was leased.
    """

    reservation: Reservation
    held: Held
    is_outdated: bool = field(default=False, init=False)

    def ids(self) -> tuple[str, ...]:
        """The call's and the block's."""
        return self.id, self.held.block_id

    def describe(self) -> str:
        """What was drawn."""
        return f"{self.reservation.amount_nano} nano-dollars that were set aside"

    def apply(self, books: Books, now: float) -> Soft | None:
        """Move it."""
        granted_as = granted(hard=self.held.is_hard)
        if _was_made(self, books):
            return granted_as
        parts = [
            Part(account, self.reservation.amount(hard)) for account, hard in self.held.accounts
        ]
        hard = {limit.name: limit.hard for limit in books.limits}
        self.is_outdated = any(hard.get(name, was) != was for (name, _), was in self.held.accounts)
        block = books.entry(self.held.block_id)
        if block is not None:
            drawn = {part.account: part.amount for part in parts}
            left = max(0, block.reserved - self.reservation.amount_nano)
            kept = [Part(p.account, max(0, p.amount - drawn[p.account])) for p in block.parts]
            settled = 0 if block.state == "open" else left
            smaller = replace(block, reserved=left, settled=settled, parts=tuple(kept))
            books.put(self.held.block_id, smaller)
        _enter(books, self.reservation, parts, now)
        self.written = True
        return granted_as


@dataclass
class Returning(Operation):
    """Give a block back; the result is whether it was.

    A block that does not hold what its holder thinks stays: a drawing did not arrive, or not yet.
    """

    left_nano: int

    def describe(self) -> str:
        """What it gives back."""
        return f"the return of {self.left_nano} nano-dollars that no call used"

    def apply(self, books: Books, now: float) -> bool:
        """Forget the block."""
        block = books.entry(self.id)
        if block is None:
            return self.written
        if block.state not in ("open", "expired") or block.reserved != self.left_nano:
            return False
        books.drop(self.id)
        self.written = True
        return True


@dataclass
class Freeing(Operation):
    """Take out of an expired block what nobody was charged for; the result is whether it was done.

    Its entry stays, so that a holder who was not dead after all finds it.

    Attributes:
        held_nano: what the block held when it was looked at; else it is left alone.
        kept_nano: what it keeps, as it may have been charged.
    """

    held_nano: int
    kept_nano: int

    def apply(self, books: Books, now: float) -> bool:
        """Free it."""
        block = books.entry(self.id)
        if self.written and block is not None and block.reserved == self.kept_nano:
            return True
        if block is None or not block.block or block.state not in ("expired", "settled"):
            return False
        if block.reserved != self.held_nano:
            return False
        freed = replace(
            block,
            state="settled" if self.kept_nano else "released",
            reserved=self.kept_nano,
            settled=self.kept_nano,
            estimated=False,
            parts=tuple(Part(p.account, min(p.amount, self.kept_nano)) for p in block.parts),
        )
        books.put(self.id, freed)
        self.written = True
        return True


_SOFT = Soft()


def granted(*, hard: bool) -> Soft | None:
    """What a reservation that was made results in: ``None`` where a hard budget applies."""
    return None if hard else _SOFT


def _was_made(operation: Operation, books: Books) -> bool:
    if books.entry(operation.id) is None:
        return False
    if operation.written:
        return True
    raise used_before(operation.id)


def used_before(id: str) -> ConfigurationError:
    """What is wrong with a second reservation of one id."""
    return ConfigurationError(
        f"reservation id {id!r} was used before; every call needs a unique one"
    )


def _enter(
    books: Books,
    reservation: Reservation,
    parts: Iterable[Part],
    now: float,
    *,
    block: bool = False,
) -> None:
    columns = {
        "decision_id": reservation.decision_id,
        "candidate": reservation.candidate,
        "price_source": reservation.price_source,
        "created_at": now,
        "expires_at": now + reservation.lease_seconds,
    }
    ordered = tuple(sorted(parts))
    entry = Entry("open", reservation.amount_nano, 0, False, ordered, block)
    books.put(reservation.id, entry, columns)


def _refusal(limit: Limit, slots: dict[int, Moved], needed: int) -> Refusal | None:
    """Why an amount does not fit, or ``None``."""
    left = limit.nano - sum(moved.used for moved in slots.values())
    if needed <= left:
        return None
    return Refusal(
        budget=limit.name,
        scope=limit.scope,
        window=limit.window,
        left_nano=max(0, left),
        needed_nano=needed,
        reserved_nano=sum(moved.reserved for moved in slots.values()),
        next_window=room_from(limit, slots, needed),
    )
