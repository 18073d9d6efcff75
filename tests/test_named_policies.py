"""Policies by names of the user's own, in the configuration, in a program and in calls."""

from __future__ import annotations

import openai
import pytest
import yaml

from optllm_router import ConfigurationError, OptLLM
from optllm_router.config import load_settings, read_settings
from optllm_router.policy import MatchBest, MaxSuccess, MinCost, WillingnessToPay

HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
POLICIES = {
    "cheap": "min_cost:0.8",
    "thrifty": {"type": "min_cost", "target": 0.7},
    "careful": {"type": "match_best", "confidence": 0.99},
    "plain": {"type": "max_success"},
}


@pytest.fixture
def client(models, sqlite_url, server):
    named = {**POLICIES, "own": WillingnessToPay(0.01)}
    with OptLLM(models, store=sqlite_url, explore=0, policies=named) as client:
        yield client


def policy_of(client, **call):
    return client._session.prepare(HELLO, call.pop("model", "auto"), call).options.policy


def test_a_configuration_names_policies(models, tmp_path):
    path = tmp_path / "config.yaml"
    router = {"policies": POLICIES, "policy": "cheap"}
    path.write_text(yaml.safe_dump({"model_list": models, "router": router}))
    settings = load_settings(path)
    assert settings.policies == {
        "cheap": MinCost(0.8),
        "thrifty": MinCost(0.7),
        "careful": MatchBest(0.99),
        "plain": MaxSuccess(),
    }
    assert settings.policy is settings.policies["cheap"]
    assert load_settings(path, policy="careful").policy == MatchBest(0.99)


def test_a_policy_may_be_written_as_a_mapping_without_a_name(models):
    settings = read_settings(models, policy={"type": "min_cost", "target": 0.8})
    assert settings.policy == MinCost(0.8)


@pytest.mark.parametrize(
    ("policies", "part"),
    [
        (["cheap"], "must name policies"),
        ({"match_best": "min_cost:0.8"}, "'match_best', which is there already"),
        ({"a:b": "min_cost:0.8"}, "a name has 1 to 64 letters"),
        ({7: "min_cost:0.8"}, "policies names 7"),
        ({"cheap": "min_csot:0.8"}, "did you mean 'min_cost'"),
        ({"cheap": {"target": 0.8}}, "has no type"),
        ({"cheap": {"type": ["min_cost"]}}, "has no type"),
        ({"cheap": {"type": "min_cost"}}, "is not whole; it needs target"),
        ({"cheap": {"type": "min_cost", "targte": 0.8}}, "did you mean 'target'"),
        ({"cheap": {"type": "min_cost", "target": "0.8"}}, "target '0.8' must be"),
        ({"cheap": {"type": "min_cost", "target": 3}}, "target success 3"),
    ],
)
def test_what_names_no_policy_is_told(models, policies, part):
    with pytest.raises(ConfigurationError, match=".*".join(part.split())):
        read_settings(models, policies=policies)


def test_calls_ask_for_a_policy_by_name(client):
    cheap = client.settings.policies["cheap"]
    assert policy_of(client, model="auto:cheap") is cheap
    assert policy_of(client, extra_body={"optllm": {"policy": "cheap"}}) is cheap
    assert client.with_options(policy="cheap")._session.options.policy is cheap
    assert policy_of(client, model="auto:own") == WillingnessToPay(0.01)
    assert policy_of(client, model="auto:min_cost:0.5") == MinCost(0.5)
    answer = client.chat.completions.create(model="auto:cheap", messages=HELLO)
    assert "target success 0.8" in answer.optllm.reason  # which nothing was learnt for yet
    assert client.plan(["What is 1 + 1?"], policy="cheap").quote


def test_a_name_that_is_unknown_tells_the_nearest_and_all(client):
    with pytest.raises(openai.BadRequestError, match="did you mean 'cheap'") as caught:
        client.chat.completions.create(model="auto:chaep", messages=HELLO)
    assert "cheap, thrifty, careful, plain, own, max_success" in str(caught.value)
    assert caught.value.param == "model"


def test_named_policies_are_models(client):
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["auto", "auto:cheap", "auto:thrifty"]
    assert client.models.retrieve("auto:cheap").owned_by == "optllm_router"
    with pytest.raises(openai.NotFoundError, match="did you mean 'auto:cheap'"):
        client.models.retrieve("auto:chaep")


def test_the_policies_that_calls_take_are_models(client):
    names = [model.id for model in client.models.list()]
    assert {"auto:max_success", "auto:match_best"} < set(names)
    assert not {"auto:min_cost", "auto:willingness_to_pay"} & set(names)
    for name in ("auto:match_best", "auto:match_best:0.9", "auto:min_cost:0.8"):
        for models in (client.models, client.openai.models):
            found = models.retrieve(name)
            assert (found.id, found.owned_by) == (name, "optllm_router")
        assert client.chat.completions.create(model=name, messages=HELLO).id


@pytest.mark.parametrize("name", ["auto:", "auto:min_cost", "auto:min_cost:3", "auto:match_bets"])
def test_what_calls_do_not_take_is_no_model(client, name):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
