"""What openai's client takes and ours does not: each by name, and why."""

from __future__ import annotations

import inspect

import openai
import pytest
from openai.resources import Embeddings, Models
from openai.resources.chat.completions import Completions
from openai.resources.responses import Responses

from optllm_router import InvalidRequestError, OptLLM, _arguments, _responses
from optllm_router._completions import Completions as OurCompletions
from optllm_router._models import Models as OurModels

NOT_PRICED = "its price is not that of tokens"
NOT_KEPT = "answers are not kept"
NOT_ONE_PROVIDER = "calls go to many providers; a setting of theirs belongs to the model's entry"

CREATE = {
    "audio": NOT_PRICED,
    "modalities": NOT_PRICED,
    "prediction": "billed beyond max_tokens",
    "moderation": "an OpenAI service beside the answer",
    "prompt_cache_options": "cache writes are billed apart",
    "prompt_cache_retention": "cache writes are billed apart",
    "service_tier": "it changes the price",
    "web_search_options": NOT_PRICED,
    "extra_query": "it goes into a provider's URL, and may choose who answers",
}
RESPONSES = {
    "background": NOT_KEPT,
    "context_management": "an OpenAI service beside the answer",
    "conversation": NOT_KEPT,
    "max_tool_calls": "no tool is run here",
    "moderation": CREATE["moderation"],
    "previous_response_id": NOT_KEPT,
    "prompt": "OpenAI's templates are not known here",
    "prompt_cache_options": CREATE["prompt_cache_options"],
    "prompt_cache_retention": CREATE["prompt_cache_retention"],
    "service_tier": CREATE["service_tier"],
    "store": NOT_KEPT,
    "stream_options": "nothing of it changes what is sent",
    "truncation": "nothing is cut out of a conversation",
    "extra_query": CREATE["extra_query"],
}
METHODS = {
    Completions: dict.fromkeys(("delete", "list", "messages", "retrieve", "update"), NOT_KEPT),
    Models: {
        "delete": "the models are those of the configuration",
        "with_raw_response": "nothing is asked over HTTP",
        "with_streaming_response": "nothing is asked over HTTP",
    },
}
CLIENT = {
    **dict.fromkeys(
        ("files", "uploads", "vector_stores", "containers", "conversations", "skills"), NOT_KEPT
    ),
    **dict.fromkeys(("images", "audio", "videos", "realtime", "live", "moderations"), NOT_PRICED),
    **dict.fromkeys(
        ("fine_tuning", "evals", "admin", "webhooks", "content_provenance_checks"),
        "OpenAI's own services",
    ),
    **dict.fromkeys(("beta", "completions"), "superseded by chat.completions and responses"),
    "batches": "many queries are planned with client.plan()",
}
OPTIONS = dict.fromkeys(
    (
        *("api_key", "admin_api_key", "organization", "project", "webhook_secret", "provider"),
        *("base_url", "websocket_base_url", "data_residency", "http_client", "workload_identity"),
        *("default_headers", "set_default_headers", "default_query", "set_default_query"),
        "_enforce_credentials",
        "_extra_kwargs",
    ),
    NOT_ONE_PROVIDER,
)


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def public(kind) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_chat_completions_take_what_openai_s_take():
    ours = parameters(OurCompletions.create) | set(_arguments.ARGUMENTS)
    assert parameters(Completions.create) - ours - set(CREATE) == set()
    assert set(CREATE) & ours == set()
    assert set(_arguments.ARGUMENTS) - parameters(Completions.create) == set()


@pytest.mark.parametrize("name", CREATE)
def test_what_is_left_out_of_chat_completions_is_refused_by_name(name):
    with pytest.raises(InvalidRequestError, match=f"{name!r} is not taken"):
        _arguments.check_names({name: None})


def test_responses_take_what_openai_s_take():
    ours = _responses.SAME | _responses.TRANSLATED
    assert parameters(Responses.create) - ours - set(RESPONSES) == set()
    assert set(RESPONSES) & ours == set()
    assert ours - parameters(Responses.create) == set()


@pytest.mark.parametrize("name", RESPONSES)
def test_what_is_left_out_of_responses_is_refused_by_name(name):
    with pytest.raises(InvalidRequestError, match=f"{name} is not taken"):
        _responses.chat_arguments({"input": "Hi", name: "x"})


@pytest.mark.parametrize(
    ("theirs", "ours"), [(Completions, OurCompletions), (Models, OurModels)], ids=["chat", "models"]
)
def test_resources_have_the_methods_of_openai_s(theirs, ours):
    assert public(theirs) - public(ours) - set(METHODS[theirs]) == set()
    assert set(METHODS[theirs]) & public(ours) == set()


def test_responses_and_embeddings_are_openai_s_own():
    assert "create" in public(Responses) & public(Embeddings)
    assert {"responses", "embeddings"} <= public(OptLLM)


def test_the_client_has_the_resources_of_openai_s():
    annotated = {
        name
        for name, value in inspect.getmembers(openai.OpenAI)
        if type(value).__name__ in ("cached_property", "property") and not name.startswith("_")
    }
    beside = {
        "with_raw_response",
        "with_streaming_response",
        "auth_headers",
        "default_headers",
        "base_url",
        "custom_auth",
        "default_query",
        "user_agent",
        "qs",
    }
    assert annotated - beside - public(OptLLM) - set(CLIENT) == set()
    assert set(CLIENT) & public(OptLLM) == set()


def test_with_options_takes_what_openai_s_does():
    ours = parameters(OptLLM.with_options)
    assert parameters(openai.OpenAI.with_options) - ours - set(OPTIONS) == set()
    assert {"timeout", "max_retries"} <= ours
