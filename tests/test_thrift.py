"""How a client spends a budget of which nobody knows how long it must last."""

from __future__ import annotations

from decimal import Decimal

from in_process import InProcess

from optllm_router import Budget, BudgetExceededError, Candidate, OptLLM, Price
from optllm_router._types import Usage

NANO_PER_TOKEN = {"cheap": Decimal(1_000), "dear": Decimal(20_000)}


class Terse(InProcess):
    """Answers questions of any length with ten tokens."""

    def consumed(self, candidate, call) -> Usage:
        return Usage(call.prompt_bytes // 4, 10)


def ask(sqlite_url: str, calls: int, *, pace: bool) -> list[str]:
    """Who answers each call under a cap that pays for about 120 dear answers; "" for nobody."""
    models = [
        Candidate(name, f"x/{name}", Price(nano, nano, "test"), 10)
        for name, nano in NANO_PER_TOKEN.items()
    ]
    settings = {"budget": Budget("0.06", pace=pace), "explore": 0, "store": sqlite_url}
    answered = []
    with OptLLM(models, transport=Terse(), **settings) as client:
        for number in range(calls):
            messages = [{"role": "user", "content": "So?" * (number * 7 % 41)}]
            try:
                answer = client.chat.completions.create(model="auto", messages=messages)
                answered.append(answer.optllm.candidate)
            except BudgetExceededError:
                answered.append("")
    return answered


def test_with_pacing_the_second_half_of_a_total_budget_answers_on(sqlite_url):
    answered = ask(sqlite_url, 250, pace=True)
    assert answered[:50] == ["dear"] * 50
    assert "" not in answered
    assert 0 < answered[125:].count("dear") < answered[:125].count("dear")


def test_without_pacing_it_is_spent_as_calls_come(sqlite_url):
    answered = ask(sqlite_url, 250, pace=False)
    assert answered[:100] == ["dear"] * 100
    assert answered.count("") > 30
