"""LiteLLM's own router, with our strategy, over real HTTP."""

from __future__ import annotations

import asyncio

import litellm_clients
import pytest
from simulated_entries import model_entries

from optllm_litellm import OptLLMRoutingStrategy
from optllm_router import InvalidRequestError, Query, UnknownModelError, Usage, WillingnessToPay
from optllm_router.simulation import SimulationServer
from optllm_router.transports.litellm import load_litellm

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def routed():
    """A LiteLLM router of one group of simulated models, and our strategy inside it."""
    litellm = load_litellm()
    with SimulationServer() as server:
        entries = [{**entry, "model_name": "auto"} for entry in model_entries(server.base_url)]
        router = litellm.Router(model_list=entries)
        strategy = OptLLMRoutingStrategy(router, policy=WillingnessToPay(0.01), explore=0.0)
        strategy.install()
        yield server, router, strategy
        litellm_clients.close()


def test_litellm_sends_where_the_strategy_says(routed) -> None:
    server, router, strategy = routed
    for _ in range(30):
        strategy.learn(MESSAGES, "openai/sim-tiny", score=1.0)
        strategy.learn(MESSAGES, "openai/sim-frontier", score=0.0)
    before = server.requests["sim-frontier"]
    answer = router.completion(model="auto", messages=MESSAGES)
    assert answer.choices[0].message.content
    assert answer.model != "sim-frontier"
    again = asyncio.run(strategy.async_get_available_deployment("auto", MESSAGES))
    assert again["litellm_params"]["model"] == f"openai/{answer.model}"
    assert server.requests["sim-frontier"] == before


def test_what_answers_consume_changes_what_they_are_expected_to_cost(routed) -> None:
    _, _, strategy = routed
    router = strategy._router("auto")
    query = Query.from_messages(MESSAGES)
    before = router.expected_usd([query])[0]
    for _ in range(20):
        strategy.observe(MESSAGES, "openai/sim-editor", Usage(10, 3))
    router.wait()
    column = [candidate.model for candidate in router.candidates].index("openai/sim-editor")
    assert router.expected_usd([query])[0][column] < before[column] / 5


def test_what_cannot_be_routed_is_said(routed) -> None:
    _, _, strategy = routed
    with pytest.raises(UnknownModelError, match="'other'; known are 'auto'"):
        strategy.get_available_deployment("other", MESSAGES)
    with pytest.raises(InvalidRequestError, match="only chat completions"):
        strategy.get_available_deployment("auto", input="text to embed")
    with pytest.raises(UnknownModelError, match="openai/absent"):
        strategy.learn(MESSAGES, "openai/absent", score=1.0)
    with pytest.raises(InvalidRequestError, match="score 2"):
        strategy.learn(MESSAGES, "openai/sim-tiny", score=2)
