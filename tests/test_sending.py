"""What one send sets aside, and the bound that it sends."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from in_process import InProcess

from optllm_router import InvalidRequestError, OptLLM, Price
from optllm_router._errors import ProviderRejectedError
from optllm_router._query import Query
from optllm_router._sending import Sending
from optllm_router._steps import Request
from optllm_router._types import Candidate, Decision, Usage
from optllm_router.candidates import read_candidates
from optllm_router.pricing import charge_nano

DECISION = Decision("d", "small", (), 0.5, 0.1, 1, 1.0, 0.0, "to see")
SMALL = Candidate(
    "small", "x/small", Price(Decimal(10), Decimal(20), "test"), 4096, context_tokens=8192
)

SMALL_TALK = replace(SMALL, name="talk", context_tokens=100_000)
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.mark.parametrize("words", [1, 3500, 4000, 6000])
@pytest.mark.parametrize("asked", [None, 50])
def test_what_is_set_aside_pays_for_the_bound_that_is_sent(words, asked):
    query = Query.from_messages(
        [{"role": "user", "content": "word " * words}], max_output_tokens=asked, choices=2
    )
    sending = Sending(Request(DECISION, query.call, {"small": SMALL}, {}, ()), SMALL, 0)
    sending.begin(600.0, bounded=True)
    bound = sending.call.max_output_tokens
    assert bound == asked or (asked is None and bound <= min(4096, 8192 - words * 5 // 4))
    most = Usage(query.call.most_prompt_tokens, 2 * bound)
    assert sending.reservation.amount_nano == charge_nano(SMALL.price, most)
    assert sending.paid(most).cost_nano == sending.reservation.amount_nano


class Strict(InProcess):
    """Refuses what its context has no room for; a word is a token."""

    def __init__(self) -> None:
        self.bounds: list[int | None] = []

    def consumed(self, candidate, call) -> Usage:
        self.bounds.append(call.max_output_tokens)
        words = sum(len(message["content"].split()) for message in call.messages)
        if words + (call.max_output_tokens or 0) > candidate.context_tokens:
            raise ProviderRejectedError("maximum context length", candidate=candidate.name)
        return Usage(words, 1)


@pytest.mark.parametrize("budget", [None, "1 USD"])
def test_a_hard_budget_does_not_make_a_long_prompt_fail(sqlite_url, budget):
    provider = Strict()
    long = [{"role": "user", "content": "word " * 5000}]
    with OptLLM([SMALL], budget=budget, store=sqlite_url, transport=provider) as client:
        assert client.chat.completions.create(model="small", messages=long).optllm.cost_nano
        assert client.verify() == []
    assert [bound is None for bound in provider.bounds] == [budget is None]


def test_who_gives_no_answer_that_long_is_not_asked(sqlite_url):
    provider = Strict()
    models = read_candidates([{"litellm_params": {"model": "openai/gpt-3.5-turbo"}}, SMALL_TALK])
    with OptLLM(models, store=sqlite_url, transport=provider) as client:
        ask = client.chat.completions.create
        made = ask(model="auto", messages=QUESTION, max_tokens=12_000).optllm
        assert made.candidate == SMALL_TALK.name
        assert made.left_out == {
            "openai/gpt-3.5-turbo": "answers with 4096 tokens at most, and max_tokens is 12000"
        }
        with pytest.raises(InvalidRequestError, match="answers with 4096 tokens at most"):
            ask(model="openai/gpt-3.5-turbo", messages=QUESTION, max_tokens=12_000)
