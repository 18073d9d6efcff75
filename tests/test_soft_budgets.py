"""A soft budget through the client: no bound is forced on answers, and less is set aside."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal

import pytest

from optllm_router import Budget, BudgetExceededError, Candidate, OptLLM, Price
from optllm_router._types import Call, Completion, Usage
from optllm_router.ledger import Ledger, _balances
from optllm_router.store import Database

CANDIDATE = Candidate("m", "openai/m", Price(Decimal(1_000), Decimal(10_000), "test"), 100_000)
WORST_NANO = 100_000 * 10_000
SOFT, HARD = Budget("0.5", name="soft", hard=False), Budget(5, name="hard")


class Recorder:
    """A transport that keeps what was asked of it."""

    def __init__(self, completion_tokens: int = 20) -> None:
        self.calls: list[Call] = []
        self._usage = Usage(10, completion_tokens)

    def check(self, candidates) -> None:
        """Every candidate can be called."""

    def send(self, candidate: Candidate, call: Call) -> Completion:
        self.calls.append(call)
        message = {"role": "assistant", "content": "4"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return Completion({**body, "choices": [choice]}, self._usage)


def ask(client: OptLLM, **arguments) -> None:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    client.chat.completions.create(messages=messages, **arguments)


@pytest.mark.parametrize(
    ("budgets", "bound"),
    [([SOFT], None), ([HARD], 100_000), ([SOFT, HARD], 100_000), ([], None)],
    ids=["soft", "hard", "both", "none"],
)
def test_only_hard_budgets_bound_answers(sqlite_url, budgets, bound):
    transport = Recorder()
    with OptLLM([CANDIDATE], budget=budgets, store=sqlite_url, transport=transport) as client:
        ask(client)
        ask(client, max_tokens=7)
    assert [call.max_output_tokens for call in transport.calls] == [bound, 7]


@pytest.mark.parametrize("comes", [HARD, Budget(5, name="soft")], ids=["new", "changed"])
def test_a_hard_budget_of_another_process_bounds_the_next_call(sqlite_url, monkeypatch, comes):
    """Whatever this process remembers of the budgets."""
    monkeypatch.setattr(_balances, "_FRESH_SECONDS", 3600.0)
    transport = Recorder()
    with OptLLM([CANDIDATE], budget=SOFT, store=sqlite_url, transport=transport) as client:
        ask(client)
        with closing(Database(sqlite_url)) as database:
            Ledger(database).set_budget(comes)
        client._runtime.ledger._start_afresh()  # a block would cover the call
        ask(client)
        assert client.verify() == []
    assert [call.max_output_tokens for call in transport.calls] == [None, 100_000]


def test_a_soft_budget_pays_for_what_a_hard_one_refuses(sqlite_url, tmp_path):
    hard = Budget("0.5")
    for budget, store in ((hard, f"sqlite:///{tmp_path}/hard.db"), (SOFT, sqlite_url)):
        client = OptLLM([CANDIDATE], budget=budget, store=store, transport=Recorder())
        with client:
            if budget.hard:
                with pytest.raises(BudgetExceededError) as caught:
                    ask(client)
                assert caught.value.needed_nano >= WORST_NANO
            else:
                for _ in range(20):
                    ask(client)
                assert client.balance.spent_nano == 20 * (10 * 1_000 + 20 * 10_000)
            assert client.verify() == []


def test_what_calls_cost_beyond_is_counted_and_expected_of_the_next(sqlite_url):
    transport = Recorder(completion_tokens=90_000)
    client = OptLLM([CANDIDATE], budget=SOFT, store=sqlite_url, transport=transport)
    with client:
        ask(client)
        balance = client.balance
        assert balance.spent_nano == 10 * 1_000 + 90_000 * 10_000 > balance.limit_nano
        assert 0 < balance.excess_nano < balance.spent_nano
        with pytest.raises(BudgetExceededError):
            ask(client)
        assert client.verify() == []
    assert len(transport.calls) == 1
