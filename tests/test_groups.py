"""Several deployments of one name: who names it asks any of them."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import asdict, replace

import litellm_clients
import pytest
from simulated_entries import model_entries

from optllm_router import AsyncOptLLM, InvalidRequestError, OptLLM, UnknownModelError
from optllm_router._query import Query
from optllm_router.candidates import read_candidates
from optllm_router.policy import MaxSuccess
from optllm_router.router import Router
from optllm_router.simulation import Faults
from optllm_router.store import Partner

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
QUERY = Query.from_messages(QUESTION)
DOWN, UP = "sim-tiny", "sim-small"


def deployments(server, *names: str) -> list[dict]:
    """Simulated models behind one name, and one that has another."""
    known = {one["model_name"]: one for one in model_entries(server.base_url)}
    group = [{**known[name], "model_name": "gpt"} for name in names]
    return [*group, known["sim-editor"]]


def alike(count: int, **settings) -> Router:
    """A router for deployments of one price and name."""
    priced = {"model": "openai/m", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    entries = [{"model_name": "gpt", "litellm_params": priced}] * count
    return Router(read_candidates(entries), MaxSuccess(), **settings)


def test_another_of_the_name_is_asked_when_one_is_down(server, sqlite_url):
    server.faults = {DOWN: Faults(rates={"server_error": 1.0})}
    models = deployments(server, DOWN, UP)
    with OptLLM(models, store=sqlite_url, max_retries=0) as client:
        ask = client.chat.completions.create
        assert ask(model="gpt", messages=QUESTION).optllm.candidate == "gpt#2"
        assert list(ask(model="gpt", messages=QUESTION, stream=True))
        assert client.verify() == []
    assert server.requests == {DOWN: 2, UP: 2}


def test_one_can_be_named_alone(server, sqlite_url):
    with OptLLM(deployments(server, DOWN, UP), store=sqlite_url) as client:
        made = client.chat.completions.create(model="gpt#2", messages=QUESTION).optllm
        assert made.candidate == "gpt#2"
    assert server.requests == {UP: 1}


def test_a_number_takes_nobody_s_name():
    priced = {"model": "openai/m", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    names = ("gpt", "gpt", "gpt#2")
    read = read_candidates([{"model_name": one, "litellm_params": priced} for one in names])
    assert [(one.name, one.group) for one in read] == [
        ("gpt", ""),
        ("gpt#3", "gpt"),
        ("gpt#2", ""),
    ]


def test_decisions_can_be_copied():
    router = alike(2)
    for decision in (
        router.pin(QUERY, "gpt"),
        *router.decide([QUERY]),
        *router.plan([QUERY], 1)[0],
    ):
        kept = copy.deepcopy(decision)
        assert kept == decision
        assert kept.turned_to("gpt#2", "x") == decision.turned_to("gpt#2", "x")
        assert asdict(decision)["id"] == decision.id


def test_the_cheapest_of_a_name_is_first(server):
    router = Router(read_candidates(deployments(server, UP, DOWN)), MaxSuccess())
    for _ in range(5):
        decision = router.pin(QUERY, "gpt")
        assert (decision.candidate, decision.fallbacks) == ("gpt#2", ("gpt",))
        assert decision.propensity == 1.0
    assert router.pin(QUERY, "sim-editor").fallbacks == ()


def test_those_of_one_price_share_the_load():
    router = alike(3, seed=1)
    decisions = [router.pin(QUERY, "gpt") for _ in range(300)]
    asked = Counter(decision.candidate for decision in decisions)
    assert asked.keys() == {"gpt", "gpt#2", "gpt#3"}
    assert min(asked.values()) > 60
    for decision in decisions:
        assert {decision.candidate, *decision.fallbacks} == asked.keys()
        assert decision.propensity == pytest.approx(1 / 3)


def test_a_conversation_stays_with_its_deployment():
    """Its provider may still have the prompt in its cache."""
    router = alike(3, seed=1)
    stays = replace(QUERY, partner=Partner("gpt#3", 1_000, 0.0))
    decisions = [router.pin(stays, "gpt") for _ in range(20)]
    assert {(one.candidate, one.propensity) for one in decisions} == {("gpt#3", 1.0)}


def test_a_dear_deployment_keeps_no_conversation(server):
    router = Router(read_candidates(deployments(server, UP, DOWN)), MaxSuccess())
    decision = router.pin(replace(QUERY, partner=Partner("gpt", 1_000, 0.0)), "gpt")
    assert (decision.candidate, decision.propensity) == ("gpt#2", 1.0)


@pytest.mark.parametrize("kind", [OptLLM, AsyncOptLLM])
def test_follow_ups_to_a_group_are_for_who_answered(server, sqlite_url, kind):
    models = deployments(server, UP, UP)

    async def candidates() -> set[str]:
        asked, turns = set(), list(QUESTION)
        client = kind(models, store=sqlite_url, seed=3)
        for _ in range(6):
            answer = client.chat.completions.create(model="gpt", messages=turns)
            answer = await answer if kind is AsyncOptLLM else answer
            asked.add(answer.optllm.candidate)
            turns += [answer.choices[0].message.model_dump(), *QUESTION]
        if kind is AsyncOptLLM:
            await client.close()
        else:
            client.close()
        return asked

    assert len(litellm_clients.run(candidates())) == 1


def test_who_cannot_serve_the_call_is_left_out_of_the_group():
    first, second = alike(2).candidates
    first = replace(first, tags=frozenset({"trains"}))
    router = Router([first, second], MaxSuccess())
    query = Query.from_messages(QUESTION, forbidden_tags=["trains"])
    decision = router.pin(query, "gpt")
    assert (decision.candidate, decision.fallbacks) == ("gpt#2", ())
    assert decision.left_out == {"gpt": "is tagged 'trains'"}
    query = Query.from_messages(QUESTION, required_tags=["eu"])
    with pytest.raises(InvalidRequestError, match="model 'gpt' is not tagged 'eu'"):
        router.pin(query, "gpt")
    with pytest.raises(UnknownModelError):
        router.pin(query, "gpt#3")
