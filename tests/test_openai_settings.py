"""What a program gives openai's constructor, given to ours: the key, and what sets nothing."""

from __future__ import annotations

import json
import os

import openai
import pytest
from scripted_http import COMPLETION, ScriptedProvider, listening

from optllm_router import AsyncOptLLM, ConfigurationError, OptLLM
from optllm_router.transports import HttpxTransport

KEY = "given-to-the-constructor"
ASKED = {"messages": [{"role": "user", "content": "What is 17 + 25?"}]}
PRICES = {"input_cost_per_token": "1e-6", "output_cost_per_token": "1e-6", "max_tokens": 50}


class Provider(ScriptedProvider):
    """Keeps the keys that it was sent; quotes that of a model called ``strict`` in a refusal."""

    keys: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        model, key = json.loads(self.read())["model"], self.headers["authorization"]
        self.keys.append((model, key))
        if model == "strict":
            refused = {"message": f"{key} is no key of ours", "code": "invalid_api_key"}
            self.send({"error": refused}, 401)
        else:
            self.send(COMPLETION)


@pytest.fixture
def openai_s(monkeypatch):
    """Where OpenAI is, for this test."""
    Provider.keys = []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with listening(Provider) as host:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{host}/v1")
        yield f"{host}/v1"


def entry(name: str, transport: str, **parameters) -> dict:
    return {
        "model_name": name,
        "litellm_params": {"model": f"openai/{name}", **PRICES, **parameters},
        "router": {"transport": transport},
    }


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
def test_the_key_goes_to_openai_s_models_only(openai_s, sqlite_url, transport):
    models = [
        entry("mine", transport),
        entry("keyed", transport, api_key="a-key-of-its-own"),
        entry("elsewhere", transport, api_base=openai_s, api_key="a-key-for-there"),
        entry("open", "httpx", api_base=openai_s),
    ]
    with OptLLM(models, api_key=KEY, store=sqlite_url, max_retries=0) as client:
        for model in models:
            client.chat.completions.create(model=model["model_name"], **ASKED)
    assert Provider.keys == [
        ("mine", f"Bearer {KEY}"),
        ("keyed", "Bearer a-key-of-its-own"),
        ("elsewhere", "Bearer a-key-for-there"),
        ("open", None),
    ]


@pytest.mark.parametrize("kind", [OptLLM, AsyncOptLLM])
def test_openai_s_models_are_known_by_their_provider(kind, sqlite_url):
    models = ["gpt-4o-mini", "openai/gpt-4o", "anthropic/claude-haiku-4-5", "azure/gpt-4o"]
    client = kind(models, api_key=KEY, store=sqlite_url, transport=HttpxTransport())
    keys = {one.name: one.api_key for one in client.settings.candidates}
    client._runtime.close()
    assert keys == {**dict.fromkeys(models[:2], KEY), **dict.fromkeys(models[2:])}


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
def test_the_key_is_shown_nowhere(openai_s, tmp_path, caplog, transport):
    store = f"sqlite:///{tmp_path}/optllm.db"
    models = [entry("strict", transport)]
    with OptLLM(models, api_key=KEY, store=store, max_retries=0) as client:
        assert KEY not in repr(client.settings)
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="strict", **ASKED)
    assert Provider.keys == [("strict", f"Bearer {KEY}")]
    assert "is no key of ours" in str(caught.value)
    assert KEY not in repr((str(caught.value), caught.value.body, caught.value.__dict__))
    assert KEY not in caplog.text
    for file in os.scandir(tmp_path):
        with open(file.path, "rb") as written:
            assert KEY.encode() not in written.read(), file.path


def test_a_key_of_nobody_s_is_refused(sqlite_url):
    models = [
        entry("open", "httpx", api_base="http://localhost:1/v1"),
        "anthropic/claude-haiku-4-5",
    ]
    with pytest.raises(ConfigurationError, match="no model is one of OpenAI's without") as caught:
        OptLLM(models, api_key=KEY, store=sqlite_url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", "sk-secret\n", "sk-secret and more", "sk-sécret"])
def test_what_is_no_key_is_refused_before_it_is_sent(sqlite_url, key):
    with pytest.raises(ConfigurationError, match="api_key is empty, or holds") as caught:
        OptLLM(["openai/gpt-4o"], api_key=key, store=sqlite_url)
    assert "secret" not in str(caught.value)


def test_a_key_that_changes_is_refused(sqlite_url):
    with pytest.raises(ConfigurationError, match="api_key must be text, not function"):
        OptLLM(["openai/gpt-4o"], api_key=lambda: KEY, store=sqlite_url)


NOTHING = {
    **dict.fromkeys(("api_key", "admin_api_key", "organization", "project", "http_client")),
    "base_url": openai.NOT_GIVEN,
    "default_headers": {},
    "default_query": {},
    "_strict_response_validation": False,
}


def test_what_sets_nothing_is_no_mistake(sqlite_url):
    settings = {"store": sqlite_url, "transport": HttpxTransport()}
    with OptLLM(["openai/gpt-4o"], **NOTHING, **settings) as client:
        assert client.settings.candidates[0].api_key is None
        assert client.with_options(**NOTHING).settings is client.settings
