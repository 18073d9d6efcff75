"""A provider's report puts true costs in the place of full amounts, each charge once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optllm_router import InvalidDataError
from optllm_router._money import MAX_NANO, Budget
from optllm_router.ledger import Charge, Ledger, Reservation, read_charges, reconcile
from optllm_router.store import Database


@pytest.fixture
def books(sqlite_url) -> Iterator[tuple[Ledger, Database]]:
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


def test_the_charges_of_one_call_add_up(books):
    ledger, _ = books
    charges = [
        *(Charge("a", 100), Charge("a-0", 30), Charge("a", 7, "model 0")),
        *(Charge("b", 1, "model 1"), Charge("b-1", 2)),
    ]
    done = reconcile(*books, charges)
    corrected = {one.reservation_id: (one.before_nano, one.after_nano) for one in done.corrections}
    assert corrected == {"a-0": (1_000, 137), "b-1": (1_000, 3)}
    assert (done.unmatched, done.still_expired) == ((), 1)
    assert ledger.balance("default").spent_nano == 137 + 3 + 1_000
    again = reconcile(*books, charges)
    assert (again.corrections, len(again.unmatched)) == ((), 5)
    assert ledger.balance("default").spent_nano == 137 + 3 + 1_000


def test_charges_that_are_too_much_together_settle_nothing(books):
    ledger, _ = books
    with pytest.raises(InvalidDataError, match=r"'b-1' add up to 9007199\.25"):
        reconcile(*books, [Charge("a", 5), Charge("b-1", MAX_NANO), Charge("b-1", 1)])
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
