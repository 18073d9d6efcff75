"""LiteLLM's own router, with our strategy, over real HTTP."""

from __future__ import annotations

import asyncio

import pytest
from conftest import model_entries

from optllm_litellm import OptLLMRoutingStrategy
from optllm_router import InvalidRequestError, UnknownModelError, WillingnessToPay
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
        strategy = OptLLMRoutingStrategy(
            router.model_list, policy=WillingnessToPay(0.01), explore=0.0
        )
        router.set_custom_routing_strategy(strategy)
        yield server, router, strategy


def test_litellm_sends_where_the_strategy_says(routed) -> None:
    server, router, strategy = routed
    for _ in range(30):
        strategy.learn(MESSAGES, "openai/sim-tiny", score=1.0)
        strategy.learn(MESSAGES, "openai/sim-frontier", score=0.0)
    before = server.requests["sim-frontier"]
    answer = router.completion(model="auto", messages=MESSAGES)
    assert answer.choices[0].message.content
    again = asyncio.run(router.acompletion(model="auto", messages=MESSAGES))
    assert again.model == answer.model != "sim-frontier"
    assert server.requests["sim-frontier"] == before


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
