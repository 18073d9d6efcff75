"""Arguments that a provider does not take: who is asked all the same, and who is left out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import ThreadingHTTPServer
from typing import Any

import openai
import pytest
import yaml
from scripted_http import COMPLETION, ScriptedProvider

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router._arguments import ARGUMENTS
from optllm_router._dispensable import _DEFAULTS, REFUSABLE, is_dispensable
from optllm_router._types import Call, Candidate, Price
from optllm_router.capabilities import cannot_serve, left_out
from optllm_router.transports import refused_arguments

HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
ANTHROPIC_S = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 2},
}
NOT_LOOKED_AT = {
    *("user", "stream", "stream_options", "metadata"),  # litellm's own, or dropped by it
    *("max_tokens", "max_completion_tokens", "timeout", "extra_body", "extra_headers"),
}
FREE = Price(Decimal(0), Decimal(0), "test")
ASKS_FOR_NOTHING = {
    "store": False,
    "safety_identifier": "somebody",
    "prompt_cache_key": "some cache",
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "n": 1,
    "seed": None,
    "verbosity": "medium",
}


class Provider(ThreadingHTTPServer):
    """Answers in OpenAI's way and in Anthropic's; keeps what it was sent, with the path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sent: list[tuple[str, dict[str, Any]]] = []


class Answering(ScriptedProvider):
    server: Provider

    def do_POST(self) -> None:
        self.server.sent.append((self.path, json.loads(self.read())))
        self.send(ANTHROPIC_S if "messages" in self.path else COMPLETION)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entry(name: str, model: str, url: str, **params: Any) -> dict[str, Any]:
    price = {"input_cost_per_token": "1e-6", "output_cost_per_token": "2e-6"}
    place = {"model": model, "api_base": url, "api_key": "sk-unused"}
    return {"model_name": name, "litellm_params": {**place, **price, **params}}


def claude(provider: Provider, **params: Any) -> dict[str, Any]:
    return entry("claude", "anthropic/claude-3-5-haiku-latest", provider.url, **params)


def plain(provider: Provider, **params: Any) -> dict[str, Any]:
    return entry("plain", "openai/sim-tiny", f"{provider.url}/v1", **params)


def client_of(*models: Any, store: str) -> OptLLM:
    return OptLLM(list(models), store=store, max_retries=0, explore=0.0, seed=0)


@pytest.mark.parametrize(("name", "value"), ASKS_FOR_NOTHING.items())
def test_who_does_not_take_what_asks_for_nothing_is_asked_without_it(
    provider, sqlite_url, name, value
):
    with client_of(claude(provider), store=sqlite_url) as client:
        create = client.chat.completions.create
        answer = create(model="claude", messages=HI, **{name: value})
        assert answer.choices[0].message.content == "Hi"
    ((path, body),) = provider.sent
    assert path.endswith("/messages")
    assert name not in body


def test_what_asks_for_nothing_is_still_told_to_who_takes_it(provider, sqlite_url):
    told = {"frequency_penalty": 0, "store": False, "safety_identifier": "x", "logprobs": False}
    served = {**plain(provider), "router": {"transport": "httpx"}, "model_name": "served"}
    with client_of(plain(provider), served, store=sqlite_url) as client:
        for name in ("plain", "served"):
            client.chat.completions.create(model=name, messages=HI, **told)
    for _, body in provider.sent:
        assert {name: body[name] for name in told} == told


def test_who_does_not_take_an_argument_is_left_out_and_it_says_why(provider, sqlite_url):
    models = claude(provider), plain(provider)
    with client_of(*models, store=sqlite_url) as client:
        client.learn([("Hi", "claude", 1.0)] * 30 + [("Hi", "plain", 0.0)] * 30)
        client.wait_for_refit()
        create = client.chat.completions.create
        assert create(model="auto", messages=HI, store=False).optllm.candidate == "claude"
        answer = create(model="auto", messages=HI, seed=1, store=False)
        assert answer.optllm.candidate == "plain"
        assert answer.optllm.left_out == {"claude": "does not support 'seed'"}
    (_, first), (_, second) = provider.sent
    assert "store" not in first
    assert (second["seed"], second["store"]) == (1, False)


def test_async_leaves_the_same_out(provider, sqlite_url):
    async def ask() -> None:
        async with AsyncOptLLM([claude(provider), plain(provider)], store=sqlite_url) as client:
            create = client.chat.completions.create
            answer = await create(model="auto", messages=HI, seed=1)
            assert answer.optllm.left_out == {"claude": "does not support 'seed'"}
            with pytest.raises(openai.BadRequestError, match="'seed'") as refused:
                await create(model="claude", messages=HI, seed=1)
            assert refused.value.param == "seed"
            plan = await client.plan(["Hi"], seed=1)
            assert plan.quote.shares == {"claude": 0.0, "plain": 1.0}

    asyncio.run(ask())
    assert [path for path, _ in provider.sent] == ["/v1/chat/completions"]


def test_a_plan_leaves_the_same_out_before_anything_was_sent(provider, sqlite_url):
    with client_of(claude(provider), plain(provider), store=sqlite_url) as client:
        plan = client.plan(["Hi", "Ho"], logprobs=True)
        assert plan.quote.shares == {"claude": 0.0, "plain": 1.0}
        assert plan.decisions[0].left_out == {"claude": "does not support 'logprobs'"}
        assert plan.decisions[0].fallbacks == ()


def test_an_argument_that_nobody_takes_is_named(provider, sqlite_url):
    with client_of(claude(provider), store=sqlite_url) as client:
        for model in ("claude", "auto"):
            with pytest.raises(openai.BadRequestError, match="'verbosity'") as refused:
                client.chat.completions.create(model=model, messages=HI, verbosity="low")
            assert refused.value.param == "verbosity"
            assert "drop_params" in str(refused.value)
        with pytest.raises(openai.BadRequestError, match="'reasoning_effort'") as refused:
            client.responses.create(model="claude", input="Hi", reasoning={"effort": "low"})
        assert refused.value.param == "reasoning.effort"
    assert provider.sent == []


@pytest.mark.parametrize("setting", [True, "true"])
def test_what_may_be_dropped_leaves_nobody_out(provider, sqlite_url, setting):
    with client_of(claude(provider, drop_params=setting), store=sqlite_url) as client:
        create = client.chat.completions.create
        assert create(model="auto", messages=HI, seed=1, store=False).optllm.left_out == {}
    ((_, body),) = provider.sent
    assert not body.keys() & {"seed", "store"}


def test_what_litellm_drops_for_all_is_dropped(provider, tmp_path):
    document = {
        "model_list": [claude(provider, drop_params=False)],
        "litellm_settings": {"drop_params": True},
        "router": {"store": f"sqlite:///{tmp_path}/optllm.db"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    with OptLLM.from_config(path) as client:
        client.chat.completions.create(model="claude", messages=HI, seed=1)
    ((_, body),) = provider.sent
    assert "seed" not in body


def refused(model: str, **params: Any) -> frozenset[str]:
    candidate = Candidate("mine", model, FREE, 100, parameters=params, api_key="k")
    return refused_arguments([candidate]).get("mine", frozenset())


def test_litellm_is_asked_about_its_own_transport_only():
    mine = Candidate("mine", "anthropic/claude-3-5-haiku-latest", FREE, 100, api_key="k")
    elsewhere, embeds = replace(mine, transport="httpx"), replace(mine, operation="embedding")
    assert refused_arguments([elsewhere]) == refused_arguments([embeds]) == {}
    assert "seed" in refused_arguments([mine])["mine"]


def test_what_an_entry_allows_or_drops_is_not_refused():
    model = "anthropic/claude-3-5-haiku-latest"
    assert {"seed", "logprobs", "functions"} < refused(model)
    assert not refused(model) & {"tools", "temperature", "stop", "parallel_tool_calls"}
    assert "seed" not in refused(model, allowed_openai_params=["seed"])
    assert "seed" not in refused(model, additional_drop_params=["seed"])


def test_providers_are_known_by_setting_too_and_unknown_ones_refuse_nothing():
    assert "seed" in refused("claude-3-5-haiku-latest", custom_llm_provider="anthropic")
    assert refused("unheard-of/model") == frozenset()


def test_what_litellm_imitates_or_hands_to_another_api_is_not_refused():
    assert not refused("ollama/llama3") & {"tools", "functions", "tool_choice"}
    assert "reasoning_effort" not in refused("openai/responses/codex-mini")


@pytest.mark.parametrize(
    "model",
    ["openai/gpt-4o", "openai/sim-tiny", "gpt-4o-mini", "hosted_vllm/mine", "openrouter/x/y"],
)
def test_those_that_speak_openai_s_protocol_take_what_is_common(model):
    assert refused(model) <= {"verbosity", "reasoning_effort"}


def test_only_arguments_of_a_call_that_litellm_looks_at_are_looked_at():
    assert ARGUMENTS.keys() - NOT_LOOKED_AT == REFUSABLE
    assert _DEFAULTS.keys() < REFUSABLE


def test_what_asks_for_something_is_not_dispensable():
    for name in REFUSABLE - {"store", "safety_identifier", "prompt_cache_key"}:
        assert is_dispensable(name, None)
        assert not is_dispensable(name, "something")
    assert not is_dispensable("parallel_tool_calls", False)
    assert not is_dispensable("tool_choice", "none")
    assert not is_dispensable("tools", TOOLS)
    assert is_dispensable("tools", [])
    assert not is_dispensable("temperature", 0)


def test_an_argument_is_blamed_where_nothing_else_stands_in_the_way():
    mine = Candidate("mine", "x/y", FREE, 100, refuses=frozenset({"seed", "logit_bias"}))
    call = Call([], {"logit_bias": {"1": 5}, "temperature": 0, "seed": 1})
    assert left_out([mine], call) == {"mine": "does not support 'logit_bias' and 'seed'"}
    assert cannot_serve("no", [mine], call).param == "logit_bias"
    blind = replace(mine, unable=frozenset({"vision"}))
    looks = replace(call, needs=frozenset({"vision"}))
    assert left_out([blind], looks) == {"mine": "takes no images"}
    assert cannot_serve("no", [blind], looks).param is None
