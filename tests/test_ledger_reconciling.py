"""A provider's report puts true costs in the place of full amounts, and frees what is left."""

from __future__ import annotations

import atexit
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from optllm_router import InvalidDataError
from optllm_router._money import MAX_NANO, NANO_PER_USD, Budget
from optllm_router.cli import main
from optllm_router.ledger import (
    Charge,
    ExpiredBlock,
    LeasingLedger,
    Ledger,
    Period,
    Reservation,
    read_charges,
    reconcile,
)
from optllm_router.ledger._operations import Leasing
from optllm_router.store import Database
from optllm_router.store.schema import balances, reservation_budgets, reservations

EVER = Period(0.0, 1e12)
START = 1_000_800.0
MOST = 1_000
LATER = 60.0
END_OF_HOUR = START + 3_600


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(store_url):
    with closing(Database(store_url)) as database:
        yield database


@pytest.fixture
def ledger(database, clock) -> Ledger:
    ledger = Ledger(database, clock)
    ledger.set_budget(Budget(f"{1_000 * MOST}e-9"))
    return ledger


def call(id: str, *scopes: str, most: int = MOST) -> Reservation:
    return Reservation(f"{id}-0", id, "m", most, scopes, "test", 30.0)


def die(process: LeasingLedger) -> None:
    """As if it were killed: what it holds is not given back."""
    atexit.unregister(process._at_exit)
    with process._changed:
        process._closing = True
        process._blocks.clear()
        process._changed.notify_all()


def leave_block(database: Database, clock: Clock, name: str, *scopes: str) -> None:
    """A process makes one call that costs nothing, and dies with a block for four more."""
    process = LeasingLedger(database, clock)
    assert process.reserve(call(name, *scopes)).result() is None
    database.catch_up()
    process.release(f"{name}-0")
    database.catch_up()
    assert len(process._blocks[scopes]) == 1
    die(process)


def expire(ledger: Ledger, clock: Clock) -> None:
    clock.now += LATER
    ledger.recover()


def spent(ledger: Ledger, name: str = "default") -> int:
    assert ledger.verify() == []
    balance = ledger.balance(name)
    assert balance.reserved_nano == 0
    return balance.spent_nano


def test_twenty_deaths_burn_little_and_a_complete_report_frees_that(ledger, database, clock):
    ledger.set_limit("default", 100)
    most = NANO_PER_USD // 20
    for death in range(20):
        process = LeasingLedger(database, clock)
        for n in range(3):
            id = f"{death}.{n}"
            assert process.reserve(call(id, most=most)).result() is None
            process.release(f"{id}-0")
            database.catch_up()
        die(process)
    expire(ledger, clock)
    assert 0 < spent(ledger) <= 2 * NANO_PER_USD
    listed = reconcile(ledger, database, [])
    assert len(listed.expired_blocks) == 20
    assert sum(block.amount_nano for block in listed.expired_blocks) == spent(ledger)
    assert (listed.corrections, listed.still_expired) == ((), 0)
    done = reconcile(ledger, database, [], complete=EVER)
    assert done.expired_blocks == ()
    assert {(one.candidate, one.after_nano) for one in done.corrections} == {("", 0)}
    assert spent(ledger) == 0


def test_expired_blocks_are_listed_with_what_they_hold_and_where(ledger, database, clock):
    ledger.set_budget(Budget(1, scope="tag:*"))
    leave_block(database, clock, "a", "tag:x")
    expire(ledger, clock)
    (block,) = reconcile(ledger, database, []).expired_blocks
    assert block == ExpiredBlock(block.id, 4 * MOST, START, ("default", "tag:*/tag:x"))
    assert block.id.startswith("block-")


def test_what_unknown_calls_were_charged_stays_in_the_blocks(ledger, database, clock):
    """They were drawn from a block, sent, and not written down before their process died."""
    for name in "ab":
        leave_block(database, clock, name)
    expire(ledger, clock)
    unknown = [Charge("x", 700), Charge("y", 500)]
    for _ in range(2):
        reconcile(ledger, database, unknown, complete=EVER)
        assert spent(ledger) == 1_200
    assert reconcile(ledger, database, unknown[:1], complete=EVER).expired_blocks == ()
    assert spent(ledger) == 700
    reconcile(ledger, database, [Charge("foreign", 10**6)], complete=EVER)
    assert spent(ledger) == 700


def test_a_charge_larger_than_all_blocks_frees_none(ledger, database, clock):
    leave_block(database, clock, "a")
    expire(ledger, clock)
    done = reconcile(ledger, database, [Charge("foreign", 10**6)], complete=EVER)
    assert (len(done.expired_blocks), done.corrections) == (1, ())
    assert spent(ledger) == 4 * MOST


def test_each_budget_keeps_what_may_have_been_charged_to_it(ledger, database, clock):
    ledger.set_budget(Budget(1, scope="tag:*"))
    for name in ("x", "y"):
        leave_block(database, clock, name, f"tag:{name}")
    expire(ledger, clock)
    reconcile(ledger, database, [Charge("unknown", 700)], complete=EVER)
    assert spent(ledger, "tag:*/tag:x") == spent(ledger, "tag:*/tag:y") == 700
    assert 700 <= spent(ledger) <= 1_400


@pytest.mark.parametrize(
    "period",
    [
        Period(START - 10, START + 1_000),  # clocks may differ by a little
        Period(START + 1, START + 1_000),
        Period(0, START + 29),
    ],
)
def test_a_report_says_nothing_about_other_times(ledger, database, clock, period):
    leave_block(database, clock, "a")
    assert ledger.reserve(call("dead")).result() is None
    expire(ledger, clock)
    done = reconcile(ledger, database, [], complete=period)
    assert (done.corrections, done.still_expired, len(done.expired_blocks)) == ((), 1, 1)
    assert spent(ledger) == 5 * MOST


def test_expired_calls_that_a_complete_report_does_not_charge_are_free(ledger, database, clock):
    for id in ("charged", "not charged"):
        assert ledger.reserve(call(id)).result() is None
    expire(ledger, clock)
    assert reconcile(ledger, database, [Charge("charged", 9)]).still_expired == 1
    assert spent(ledger) == 9 + MOST
    foreign = [Charge("charged", 9), Charge("unknown", 1)]
    assert reconcile(ledger, database, foreign, complete=EVER).still_expired == 1
    assert reconcile(ledger, database, [Charge("charged", 9)], complete=EVER).still_expired == 0
    assert spent(ledger) == 9


def test_a_second_attempt_that_was_not_written_down_is_unknown_too(ledger, database, clock):
    """Its decision is known by the first attempt, which cost less than is charged for both."""
    leave_block(database, clock, "a")
    assert ledger.reserve(call("d")).result() is None
    assert ledger.settle("d-0", 100).result() is True
    expire(ledger, clock)
    reconcile(ledger, database, [Charge("d", 100), Charge("d", 250, "n")], complete=EVER)
    assert spent(ledger) == 100 + 250


def test_a_holder_that_was_not_dead_after_all_is_counted_in_full(ledger, database, clock):
    process = LeasingLedger(database, clock)
    assert process.reserve(call("a")).result() is None
    database.catch_up()
    process.release("a-0")
    (block,) = process._blocks[()]
    held = [block.held]
    die(process)
    expire(ledger, clock)
    reconcile(ledger, database, [], complete=EVER)
    assert spent(ledger) == 0
    from optllm_router.ledger._operations import Drawing, Returning

    reservation = call("late")
    ledger._submit(Drawing(reservation.id, reservation, held[0])).result()
    assert ledger.settle("late-0", 600).result() is True
    assert spent(ledger) == 600
    assert ledger._submit(Returning(held[0].block_id, 0)).result() is False


@pytest.mark.parametrize("seed", range(4))
def test_no_budget_ever_falls_below_the_truth(ledger, database, clock, seed):
    chance = random.Random(seed)
    ledger.set_budget(Budget(1, scope="tag:*"))
    truth: Counter[str] = Counter()
    written: Counter[str] = Counter()
    bill: list[Charge] = []

    def charge(id: str, cost: int, scopes: tuple[str, ...]) -> None:
        bill.append(Charge(id, cost))
        for name in ("default", *(f"tag:*/{scope}" for scope in scopes)):
            truth[name] += cost
            written[name] += 0 if id.endswith("unwritten") else cost

    for death in range(10):
        scopes = chance.choice([(), ("tag:x",), ("tag:y",), ("tag:x", "tag:y")])
        process = LeasingLedger(database, clock)
        for n in range(chance.randint(1, 6)):
            id = f"{death}.{n}"
            assert process.reserve(call(id, *scopes)).result() is None
            database.catch_up()
            cost = chance.randint(0, MOST)
            fate = chance.choice(["settled", "released", "charged", "not charged"])
            if fate in ("settled", "charged"):
                charge(id, cost, scopes)
            if fate == "settled":
                process.settle(f"{id}-0", cost)
            elif fate == "released":
                process.release(f"{id}-0")
        database.catch_up()
        if chance.random() < 0.5 and process._blocks.get(scopes):  # sent, and not written down
            charge(f"{death}.unwritten", chance.randint(1, MOST), scopes)
        die(process)
        clock.now += chance.choice([0, 1, 40])
    expire(ledger, clock)
    before = {balance.budget: balance.spent_nano for balance in ledger.balances()}
    reconcile(ledger, database, bill, complete=EVER)
    assert ledger.verify() == []
    unwritten = sum(one.cost_nano for one in bill if one.id.endswith("unwritten"))
    for balance in ledger.balances():
        assert truth[balance.budget] <= balance.spent_nano <= before[balance.budget]
        assert balance.spent_nano <= truth[balance.budget] + 4 * unwritten  # four kinds of calls
    known = [one for one in bill if not one.id.endswith("unwritten")]
    reconcile(ledger, database, known, complete=EVER)
    for balance in ledger.balances():
        assert balance.spent_nano == written[balance.budget]


# What charges of a complete report mean


def attempt(
    number: int, candidate: str = "m", *scopes: str, most: int = MOST, lease: float = 30.0
) -> Reservation:
    """One of the attempts of a decision ``d``."""
    return Reservation(f"d-{number}", "d", candidate, most, scopes, "test", lease)


def try_all(ledger: Ledger, clock: Clock, *attempts: Reservation) -> None:
    """They are sent, and their process dies."""
    for one in attempts:
        assert ledger.reserve(one).result() is None
        clock.now += 0.01
    expire(ledger, clock)


def states(database: Database) -> dict[str, tuple[str, int, int]]:
    with database.read() as connection:
        rows = connection.execute(select(reservations).where(reservations.c.candidate != "")).all()
    return {row.id: (row.state, row.settled_nano, row.estimated) for row in rows}


def test_what_another_candidate_of_a_charged_decision_held_is_free(ledger, database, clock):
    try_all(ledger, clock, attempt(0), attempt(1, "n"))
    done = reconcile(ledger, database, [Charge("d", 200, "n")], complete=EVER)
    assert (done.still_expired, spent(ledger)) == (0, 200)
    assert states(database) == {"d-0": ("released", 0, 0), "d-1": ("settled", 200, 0)}


def test_tries_of_one_candidate_keep_together_what_they_were_charged(ledger, database, clock):
    try_all(ledger, clock, attempt(0), attempt(1), attempt(2), attempt(3, "n"))
    bill = [Charge("d", 700, "m"), Charge("d", 600, "m")]
    assert reconcile(ledger, database, bill).still_expired == 4
    assert reconcile(ledger, database, bill, complete=EVER).still_expired == 0
    assert [states(database)[f"d-{n}"] for n in range(4)] == [
        *(("settled", 1_000, 0), ("settled", 300, 0)),
        *(("released", 0, 0), ("released", 0, 0)),
    ]
    reconcile(ledger, database, bill, complete=EVER)
    assert spent(ledger) == 1_300


def test_a_charge_of_a_decision_alone_is_kept_once_and_is_an_estimate(ledger, database, clock):
    assert ledger.reserve(attempt(0)).result() is None
    ledger.settle("d-0", 100).result()
    assert ledger.reserve(attempt(1)).result() is None
    ledger.release("d-1").result()
    try_all(ledger, clock, attempt(2, "n"), attempt(3, "o"))
    reconcile(ledger, database, [Charge("d", 350)], complete=EVER)
    assert states(database) == {
        **{"d-0": ("settled", 100, 0), "d-1": ("released", 0, 0)},
        **{"d-2": ("settled", 250, 1), "d-3": ("released", 0, 0)},
    }


def test_a_charge_by_the_reservation_leaves_its_siblings_free(ledger, database, clock):
    try_all(ledger, clock, attempt(0), attempt(1))
    reconcile(ledger, database, [Charge("d-1", 40), Charge("d", 7, "m")], complete=EVER)
    assert states(database) == {"d-0": ("settled", 7, 0), "d-1": ("settled", 40, 0)}


@pytest.mark.parametrize("known", ["settled", "settled in full", "expired"])
def test_a_candidate_that_the_books_do_not_know_was_drawn_from_a_block(
    ledger, database, clock, known
):
    """However much more the books have for another one of that decision."""
    leave_block(database, clock, "a")
    assert ledger.reserve(attempt(0)).result() is None
    if known == "settled":
        ledger.settle("d-0", 900).result()
    elif known == "settled in full":
        ledger.settle_in_full("d-0").result()
    expire(ledger, clock)
    reconcile(ledger, database, [Charge("d", 10, "m"), Charge("d", 250, "n")], complete=EVER)
    assert spent(ledger) == 250 + states(database)["d-0"][1]


def test_a_charge_beyond_all_tries_was_for_one_that_the_books_do_not_know(ledger, database, clock):
    leave_block(database, clock, "a")
    try_all(ledger, clock, attempt(0), attempt(1))
    reconcile(ledger, database, [Charge("d", 2_300, "m")], complete=EVER)
    assert spent(ledger) == 2_300


def test_tries_in_two_windows_keep_the_charge_in_each(ledger, database, clock):
    ledger.set_budget(Budget(1, "hour", name="hourly"))
    clock.now += 3_600 - clock.now % 3_600 - 0.005
    try_all(ledger, clock, attempt(0), attempt(1), attempt(2))
    reconcile(ledger, database, [Charge("d", 200, "m")], complete=EVER)
    assert ledger.verify() == []
    assert {id: nano for id, (_, nano, _) in states(database).items()} == {
        **{"d-0": 200, "d-1": 200, "d-2": 0},
    }


@pytest.mark.parametrize("known", [100, None])
@pytest.mark.parametrize("earlier", [60, 300])
def test_a_report_charges_nothing_to_a_try_of_an_earlier_period(
    ledger, database, clock, known, earlier
):
    """The earlier one was charged by the previous report."""
    assert ledger.reserve(attempt(0)).result() is None
    if known is None:
        ledger.settle_in_full("d-0").result()
    else:
        ledger.settle("d-0", known).result()
    clock.now += earlier
    period = Period(clock.now - 35, clock.now + LATER)
    try_all(ledger, clock, attempt(1))
    reconcile(ledger, database, [Charge("d", 80, "m")], complete=period)
    assert states(database)["d-1"][:2] == ("expired", MOST)


@pytest.mark.parametrize("known", [100, None])
@pytest.mark.parametrize("earlier", [60, 300])
def test_an_unwritten_try_is_not_taken_for_one_of_an_earlier_period(
    ledger, database, clock, known, earlier
):
    assert ledger.reserve(attempt(0, lease=earlier - 30)).result() is None
    if known is not None:
        ledger.settle("d-0", known).result()
    clock.now += earlier
    period = Period(clock.now - 35, clock.now + LATER)
    leave_block(database, clock, "a")
    expire(ledger, clock)
    for _ in range(2):
        reconcile(ledger, database, [Charge("d", 80, "m")], complete=period)
        assert spent(ledger) == (known or MOST) + 80


@pytest.mark.parametrize("known", ["expired", "settled in full"])
def test_an_unwritten_try_may_count_in_the_next_window(ledger, database, clock, known):
    ledger.set_budget(Budget(1, "hour", name="hourly"))
    clock.now += 3_600 - clock.now % 3_600 - 1
    assert ledger.reserve(attempt(0)).result() is None
    if known == "settled in full":
        ledger.settle_in_full("d-0").result()
    clock.now += 5
    leave_block(database, clock, "a")
    expire(ledger, clock)
    bill = [Charge("d", 80, "m")]
    for complete in (None, EVER, EVER):
        reconcile(ledger, database, bill, complete=complete)
        assert spent(ledger, "hourly") == (4 * MOST if complete is None else 80)
    reconcile(ledger, database, [], complete=EVER)
    assert spent(ledger, "hourly") == 0


def test_what_is_charged_beyond_a_known_cost_is_kept_where_that_counts_too(ledger, database, clock):
    """An unknown try may have been charged there: so it is unknown, and an expired one stays."""
    ledger.set_budget(Budget(1, "hour", name="hourly"))
    clock.now += 3_600 - clock.now % 3_600 - 1
    assert ledger.reserve(attempt(0)).result() is None
    ledger.settle("d-0", 100).result()
    leave_block(database, clock, "a")
    clock.now += 5
    try_all(ledger, clock, attempt(1))
    reconcile(ledger, database, [Charge("d", 300, "m")], complete=EVER)
    assert states(database)["d-1"][:2] == ("expired", MOST)
    assert spent(ledger) == 100 + 200 + MOST


def test_what_shares_a_charge_with_a_call_under_way_is_undecided(ledger, database, clock):
    try_all(ledger, clock, attempt(0), attempt(1))
    assert ledger.reserve(attempt(2)).result() is None
    bill = [Charge("d", 300, "m")]
    assert reconcile(ledger, database, bill, complete=EVER).still_expired == 2
    ledger.release("d-2").result()
    assert reconcile(ledger, database, bill, complete=EVER).still_expired == 0
    assert spent(ledger) == 300


def test_a_call_for_nothing_does_not_stay_expired(ledger, database, clock):
    try_all(ledger, clock, attempt(0, most=0))
    assert reconcile(ledger, database, [], complete=EVER).still_expired == 0


def test_a_part_of_what_a_call_may_have_been_charged_is_not_its_cost(ledger, database, clock):
    assert ledger.reserve(attempt(0)).result() is None
    ledger.settle("d-0", 100).result()
    try_all(ledger, clock, attempt(1))
    bill = [Charge("d-1", 40), Charge("d", 130, "m")]
    assert reconcile(ledger, database, bill).corrections == ()
    reconcile(ledger, database, bill, complete=EVER)
    assert states(database) == {"d-0": ("settled", 100, 0), "d-1": ("settled", 70, 0)}


class Fate(NamedTuple):
    """What became of an attempt, as the books know it, and what it was truly charged."""

    state: str
    candidate: str
    cost: int
    named_by: tuple[str, ...]
    later: int


fates = st.builds(
    Fate,
    state=st.sampled_from(
        ["settled", "settled in full", "released", "expired", "expired", "under way", "unwritten"]
    ),
    candidate=st.sampled_from("mn"),
    cost=st.integers(0, MOST),
    named_by=st.lists(
        st.sampled_from(["reservation", "candidate", "decision"]), min_size=1, max_size=2
    ).map(tuple),
    later=st.sampled_from([0, 0, 5, 40, 300, 3_600]),
)
periods = st.just(EVER) | st.builds(
    Period,
    st.integers(-1_000, 1_000).map(lambda seconds: END_OF_HOUR + seconds),
    st.integers(1_100, 10_000).map(lambda seconds: END_OF_HOUR + seconds),
)
decisions = st.lists(
    st.tuples(
        st.sampled_from([(), ("tag:x",), ("tag:x", "tag:y")]),
        st.lists(fates, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


class Told:
    """Calls whose truth is known here, in books that may know less."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.ledger = Ledger(database, clock)
        for budget in (Budget(1), Budget(1, "hour", name="hourly"), Budget(1, scope="tag:*")):
            self.ledger.set_budget(budget)
        self._billed: list[tuple[float, Charge]] = []
        self.costs: dict[str, int] = {}
        self.under_way: list[str] = []
        self.mixed = False
        self._database = database
        self._clock = clock

    def happen(self, id: str, scopes: tuple[str, ...], attempts: list[Fate]) -> None:
        """A try that the books do not know comes soon after one that they know."""
        unwritten = [number for number, fate in enumerate(attempts) if fate.state == "unwritten"]
        for number, fate in enumerate(attempts):
            if number == 0 or not unwritten:
                self._clock.now += fate.later
            elif number <= unwritten[0]:
                self._clock.now += min(fate.later, 40)
            if number and fate.later:
                self.mixed = True
            self._attempt(f"{id}-{number}", id, scopes, fate)

    def _attempt(self, id: str, decision: str, scopes: tuple[str, ...], fate: Fate) -> None:
        call = Reservation(id, decision, fate.candidate, MOST, scopes, "test", 30.0)
        cost = 0 if fate.state == "released" else fate.cost
        if fate.state == "unwritten":  # its money is in a block
            id = f"block-{id}"
            assert self.ledger._submit(Leasing(id, call, 3, lambda _: 0)).result() is not None
        else:
            assert self.ledger.reserve(call).result() is None
        if fate.state == "settled":
            self.ledger.settle(id, cost).result()
        elif fate.state == "settled in full":
            self.ledger.settle_in_full(id).result()
        elif fate.state == "released":
            self.ledger.release(id).result()
        elif fate.state == "under way":
            self.under_way.append(id)
        self.costs[id] = cost
        for part, by in enumerate(fate.named_by if cost else ()):
            nano = cost // 2 if part == 0 and len(fate.named_by) > 1 else cost
            cost -= nano
            if by == "reservation" and fate.state != "unwritten":
                charge = Charge(id, nano)
            else:
                charge = Charge(decision, nano, fate.candidate if by != "decision" else "")
            self._billed.append((self._clock.now, charge))

    def bill(self, period: Period) -> list[Charge]:
        """What a complete report names."""
        return [charge for sent, charge in self._billed if period.since <= sent < period.until]

    def die(self) -> None:
        """All but the calls that are under way."""
        with self._database.read() as connection:
            is_open = reservations.c.state == "open"
            left = connection.scalars(select(reservations.c.id).where(is_open)).all()
        for done in self.ledger._expire(set(left) - set(self.under_way)):
            done.result()

    def end(self) -> None:
        """What was under way comes to its end."""
        for id in self.under_way:
            if self.costs[id]:
                self.ledger.settle(id, self.costs[id]).result()
            else:
                self.ledger.release(id).result()

    def by_account(self) -> dict[tuple[str, int], tuple[int, int]]:
        """The truth, and what the books have."""
        truth: Counter[tuple[str, int]] = Counter()
        with self._database.read() as connection:
            for id, budget, start, _ in connection.execute(select(reservation_budgets)):
                truth[budget, start] += self.costs[id]
            return {
                (row.budget, row.window_start): (
                    truth[row.budget, row.window_start],
                    row.spent_nano + row.reserved_nano,
                )
                for row in connection.execute(select(balances))
            }


@settings(max_examples=60, deadline=None)
@given(decisions, periods, st.booleans(), st.booleans())
def test_whatever_happened_the_books_never_fall_below_the_truth(
    happened, period, names_others, twice
):
    with TemporaryDirectory() as folder, closing(Database(f"sqlite:///{folder}/books")) as database:
        clock = Clock()
        clock.now = END_OF_HOUR - 20
        world = Told(database, clock)
        for number, (scopes, attempts) in enumerate(happened):
            world.happen(f"d{number}", scopes, attempts)
        world.die()
        before = world.by_account()
        bill = world.bill(EVER if names_others else period)
        done = reconcile(world.ledger, database, bill, complete=period)
        world.end()
        if twice:
            done = reconcile(world.ledger, database, bill, complete=period)
        assert world.ledger.verify() == []
        for account, (truth, kept) in world.by_account().items():
            assert truth <= kept <= before[account][1]
        everything_is_written = all(
            fate.state != "unwritten" for _, attempts in happened for fate in attempts
        )
        is_all_told = period == EVER and (twice or not world.under_way)
        if everything_is_written and not world.mixed and is_all_told:
            assert (done.still_expired, done.expired_blocks) == (0, ())
            in_full = sum(
                MOST - fate.cost
                for _, attempts in happened
                for fate in attempts
                if fate.state == "settled in full"
            )
            truth, kept = world.by_account()["default", 0]
            assert truth <= kept <= truth + in_full


# Reports


@pytest.fixture
def three_calls(sqlite_url) -> Iterator[tuple[Ledger, Database]]:
    """Calls that expired: one of ``a``, two of ``b`` to two models; amounts of 1,000."""
    database = Database(sqlite_url)
    ledger = Ledger(database)
    ledger.set_budget(Budget(1))
    for id in ("a-0", "b-0", "b-1"):
        call = Reservation(id, id[0], f"model {id[-1]}", 1_000, (), "test", -1.0)
        assert ledger.reserve(call).result() is None
    assert ledger.recover() == 3
    yield ledger, database
    assert ledger.verify() == []
    database.close()


def test_the_charges_of_one_call_add_up(three_calls):
    ledger, _ = three_calls
    charges = [
        *(Charge("a", 100), Charge("a-0", 30), Charge("a", 7, "model 0")),
        *(Charge("b", 1, "model 1"), Charge("b-1", 2)),
    ]
    done = reconcile(*three_calls, charges)
    corrected = {one.reservation_id: (one.before_nano, one.after_nano) for one in done.corrections}
    assert corrected == {"a-0": (1_000, 137), "b-1": (1_000, 3)}
    assert (done.unmatched, done.still_expired) == ((), 1)
    assert ledger.balance("default").spent_nano == 137 + 3 + 1_000
    again = reconcile(*three_calls, charges)
    assert (again.corrections, len(again.unmatched)) == ((), 5)
    assert ledger.balance("default").spent_nano == 137 + 3 + 1_000


def test_charges_that_are_too_much_together_settle_nothing(three_calls):
    ledger, _ = three_calls
    with pytest.raises(InvalidDataError, match=r"'b-1' add up to 9007199\.25"):
        reconcile(*three_calls, [Charge("a", 5), Charge("b-1", MAX_NANO), Charge("b-1", 1)])
    assert ledger.balance("default").spent_nano == 3_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "names no id and no cost_usd"),
        ("\n\n", "names no id and no cost_usd"),
        ('{"id": "a", "cost_usd": 1}', "names no id and no cost_usd"),
        ("id,usd\na,1\n", "names no cost_usd"),
        ("[" * 100_000, "is no CSV or JSON list"),
        ('[{"id": "a"}]', "charge 1 needs an id and a cost_usd"),
        ("id,cost_usd\na,\n", "charge 1 needs an id and a cost_usd"),
        ("[1]", "charge 1 needs"),
        ("id,cost_usd,currency\na,1,usd\nb,1,EUR\n", "charge 2 is in 'EUR'; only USD is known"),
        (b"\xff\xfe\x00", "is no CSV or JSON list"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, content, says):
    file = tmp_path / "report"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidDataError, match=says):
        read_charges(file)


@pytest.mark.parametrize("content", ["id,cost_usd\n", "[]"])
def test_a_report_may_have_no_lines(tmp_path, content):
    file = tmp_path / "report"
    file.write_text(content)
    assert read_charges(file) == []


# The command


@pytest.fixture
def optllm(capsys):
    """Runs ``optllm budget reconcile``; gives its exit code, and what it said."""

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["budget", "reconcile", *arguments])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out + printed.err

    return run


@pytest.fixture
def dead_for_long(tmp_path, sqlite_url, monkeypatch):
    """A store in which a process died, in 1970, with a block and a call under way."""
    monkeypatch.chdir(tmp_path)
    clock = Clock()
    with closing(Database(sqlite_url)) as database:
        ledger = Ledger(database, clock)
        ledger.set_budget(Budget(1))
        leave_block(database, clock, "a")
        assert ledger.reserve(call("dead")).result() is None


@pytest.mark.usefixtures("dead_for_long")
def test_the_command_lists_blocks_and_frees_them(optllm, tmp_path):
    code, shown = optllm()
    assert code == 0, shown
    assert "1 expired calls still count in full" in shown
    assert "1 blocks of dead processes still count in full (0.000004 USD)" in shown
    (block,) = json.loads(optllm("--json")[1])["expired_blocks"]
    assert (block["amount_nano"], block["budgets"]) == (4 * MOST, ["default"])
    (tmp_path / "usage.csv").write_text("id,cost_usd\nunknown,0.0000007\n")
    until = ["--complete-until", "1970-02-01", "--complete-since", "1970-01-02", "--json"]
    assert json.loads(optllm("usage.csv", "--json")[1])["corrections"] == []
    done = json.loads(optllm("usage.csv", *until)[1])
    freed = [
        (one["candidate"], one["before_nano"], one["after_nano"]) for one in done["corrections"]
    ]
    assert freed == [("", 4 * MOST, 700), ("m", MOST, 0)]
    assert (done["still_expired"], done["expired_blocks"]) == (0, [])
    assert "of dead processes" not in optllm()[1]


@pytest.mark.usefixtures("dead_for_long")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--complete-until", "1970-02-01"], "give one"),
        (["usage.csv", "--complete-since", "1d"], "needs --complete-until"),
        (["usage.csv", "--complete-until", "9999-01-01"], "must be past"),
        (["usage.csv", "--complete-until", "2d", "--complete-since", "1d"], "must be past"),
        (["usage.csv", "--complete-until", "soon"], "is no moment"),
    ],
)
def test_a_period_that_makes_no_sense_frees_nothing(optllm, tmp_path, arguments, complaint):
    (tmp_path / "usage.csv").write_text("id,cost_usd\nunknown,0.0000007\n")
    code, said = optllm(*arguments)
    assert code == 2
    assert complaint in said
    assert len(json.loads(optllm("--json")[1])["expired_blocks"]) == 1
