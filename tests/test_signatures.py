"""What openai's client takes and ours does not: each by name, and why.

What it takes, it takes in the same way: by keyword, and with the same defaults.
"""

from __future__ import annotations

import inspect
from decimal import Decimal

import openai
import pytest
from openai.resources import Embeddings, Models
from openai.resources.chat import Chat
from openai.resources.chat.completions import AsyncCompletions, Completions
from openai.resources.responses import Responses
from openai.types import responses, shared_params

from optllm_router import (
    AsyncOptLLM,
    Candidate,
    ConfigurationError,
    InvalidRequestError,
    OptLLM,
    Price,
    _arguments,
    _embeddings,
    _models,
    _responses,
)
from optllm_router._completions import AsyncCompletions as OurAsyncCompletions
from optllm_router._completions import Chat as OurChat
from optllm_router._completions import Completions as OurCompletions
from optllm_router._models import Models as OurModels
from optllm_router.transports import HttpxTransport

NOT_PRICED = "its price is not that of tokens"
NOT_KEPT = "answers are not kept"
NOT_ONE_PROVIDER = "calls go to many providers; a setting of theirs belongs to the model's entry"
NOT_HTTP = "a part of openai's machinery for HTTP; client.openai has it"

CREATE = {
    "audio": NOT_PRICED,
    "modalities": NOT_PRICED,
    "prediction": "billed beyond max_tokens",
    "moderation": "an OpenAI service beside the answer",
    "prompt_cache_options": "cache writes are billed apart",
    "prompt_cache_retention": "cache writes are billed apart",
    "service_tier": "it changes the price",
    "web_search_options": NOT_PRICED,
    "extra_query": "each provider reads its own URL: it belongs to the model's entry",
}
RESPONSES = {
    "access_programs": "OpenAI's own services",
    "background": NOT_KEPT,
    "background_options": NOT_KEPT,
    "context_management": "an OpenAI service beside the answer",
    "conversation": NOT_KEPT,
    "image": NOT_PRICED,
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
REASONING = {
    "context": "the chat API has nothing like it",
    "generate_summary": "the chat API has no summaries of reasoning",
    "mode": "the chat API has nothing like it",
    "summary": "the chat API has no summaries of reasoning",
}
TOOL = {
    "async": "no tool is run here",
    "allowed_callers": "programs of the model's own run at OpenAI",
    "defer_loading": "searching for tools is done at OpenAI",
    "output_schema": "the chat API has nothing like it",
}
EMBEDDINGS = {"extra_query": CREATE["extra_query"]}
METHODS = {
    Chat: {},
    Completions: dict.fromkeys(("delete", "list", "messages", "retrieve", "update"), NOT_KEPT),
    Models: {"delete": "the models are those of the configuration"},
}
RESPONSES_METHODS = {
    **dict.fromkeys(("cancel", "delete", "input_items", "retrieve"), NOT_KEPT),
    "compact": "an OpenAI service beside the answer",
    "connect": "answers are streamed as events, not over a WebSocket",
    "input_tokens": "counting is a service of OpenAI's",
}
CLIENT = {
    **dict.fromkeys(
        ("files", "uploads", "vector_stores", "containers", "conversations", "skills"), NOT_KEPT
    ),
    **dict.fromkeys(("images", "audio", "videos", "realtime", "live", "moderations"), NOT_PRICED),
    **dict.fromkeys(
        (
            *("fine_tuning", "evals", "admin", "webhooks", "content_provenance_checks"),
            *("decisions", "safety"),
        ),
        "OpenAI's own services",
    ),
    **dict.fromkeys(("beta", "completions"), "superseded by chat.completions and responses"),
    "batches": "many queries are planned with client.plan()",
    **dict.fromkeys(
        ("base_url", "default_headers", "default_query", "auth_headers", "custom_auth"),
        NOT_ONE_PROVIDER,
    ),
    **dict.fromkeys(("qs", "user_agent", "platform_headers", "get_api_list"), NOT_HTTP),
    **dict.fromkeys(("get", "post", "put", "patch", "delete", "request"), NOT_HTTP),
}
SETTINGS = dict.fromkeys(
    (
        *("admin_api_key", "organization", "project", "webhook_secret", "provider"),
        *("base_url", "websocket_base_url", "data_residency", "http_client", "workload_identity"),
        *("default_headers", "set_default_headers", "default_query", "set_default_query"),
        *("_enforce_credentials", "_extra_kwargs", "_strict_response_validation"),
    ),
    NOT_ONE_PROVIDER,
)
OPTIONS = {**SETTINGS, "api_key": "another key is another client's"}
ATTRIBUTES = {
    **dict.fromkeys(("organization", "project", "websocket_base_url"), NOT_ONE_PROVIDER),
    **dict.fromkeys(
        ("admin_api_key", "webhook_secret", "workload_identity", "provider"), NOT_ONE_PROVIDER
    ),
    "api_key": "keys are the models', and are not handed out",
}
"""Of an object, beside what its class has."""
MODEL = {"model": (inspect.Parameter.empty, "auto")}
"""Who names no model is routed."""
RETRIES = {"max_retries": (openai.DEFAULT_MAX_RETRIES, None)}
"""``None`` is the same number; see ``test_the_client_s_defaults_are_openai_s``."""


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def differences(theirs, ours, left_out=()) -> dict[str, tuple]:
    """By name, what openai's parameters and ours are where they differ.

    Positions and defaults count. openai's marks for what is left out are ``None`` with us, and so
    is what a function takes as further keyword arguments.
    """
    further = inspect.Parameter("further", inspect.Parameter.KEYWORD_ONLY, default=None)
    mine = inspect.signature(ours).parameters
    found = {}
    for name, their in inspect.signature(theirs).parameters.items():
        if name in ("self", *left_out):
            continue
        our = mine.get(name, further)
        default = None if isinstance(their.default, LEFT_OUT) else their.default
        if our.kind != their.kind:
            found[name] = (their.kind, our.kind)
        elif our.default != default:
            found[name] = (default, our.default)
    return found


LEFT_OUT = tuple(getattr(openai, name) for name in ("NotGiven", "Omit") if hasattr(openai, name))


@pytest.fixture
def client(sqlite_url):
    model = Candidate("m", "x/m", Price(Decimal(1), Decimal(1), "test"), 10)
    with OptLLM([model], store=sqlite_url, transport=HttpxTransport()) as client:
        yield client


def public(kind) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_chat_completions_take_what_openai_s_take():
    ours = parameters(OurCompletions.create) | set(_arguments.ARGUMENTS)
    assert parameters(Completions.create) - ours - set(CREATE) == set()
    assert set(CREATE) & ours == set()
    assert set(_arguments.ARGUMENTS) - parameters(Completions.create) == set()


@pytest.mark.parametrize("method", ["create", "parse"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(Completions, OurCompletions), (AsyncCompletions, OurAsyncCompletions)],
    ids=["sync", "async"],
)
def test_chat_completions_take_it_as_openai_s_do(theirs, ours, method):
    theirs = getattr(theirs, method, None)
    if theirs is None:
        pytest.skip("this openai has it elsewhere")
    assert differences(theirs, getattr(ours, method), CREATE) == MODEL


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
    ("theirs", "ours"),
    [(Chat, OurChat), (Completions, OurCompletions), (Models, OurModels)],
    ids=["chat", "completions", "models"],
)
def test_resources_have_the_methods_of_openai_s(theirs, ours):
    assert public(theirs) - public(ours) - set(METHODS[theirs]) == set()
    assert set(METHODS[theirs]) & public(ours) == set()


def test_what_is_left_out_of_chat_completions_is_harmless_where_it_is_null():
    assert _arguments.LEFT_OUT.keys() == CREATE.keys()
    assert all(None in values for values in _arguments.LEFT_OUT.values())


@pytest.mark.parametrize("method", ["parse", "stream"])
def test_helpers_take_what_openai_s_take(method):
    theirs = parameters(getattr(Completions, method)) - set(CREATE)
    ours = getattr(OurCompletions, method)
    assert theirs - parameters(ours) - set(_arguments.ARGUMENTS) == set()
    assert "arguments" in parameters(ours), "handed on to openai's"


@pytest.mark.parametrize("method", ["list", "retrieve"])
@pytest.mark.parametrize("kind", [_models.Models, _models.AsyncModels])
def test_models_are_listed_with_openai_s_arguments(kind, method):
    assert parameters(getattr(kind, method)) == parameters(getattr(Models, method))
    assert differences(getattr(Models, method), getattr(kind, method)) == {}


def test_embeddings_take_what_openai_s_take():
    ours = set(_embeddings._ARGUMENTS)
    assert parameters(Embeddings.create) - ours == set(EMBEDDINGS)
    assert ours - parameters(Embeddings.create) == set()


@pytest.mark.parametrize(
    ("theirs", "ours", "left_out"),
    [
        (shared_params.Reasoning, _responses.REASONING, REASONING),
        (responses.ResponseTextConfigParam, _responses.TEXT, {}),
        (
            responses.ResponseFormatTextJSONSchemaConfigParam,
            _responses.FORMATS["json_schema"],
            {},
        ),
        (responses.FunctionToolParam, _responses.TOOLS["function"], TOOL),
        (responses.ToolChoiceAllowedParam, _responses.ALLOWED, {}),
        (shared_params.ResponseFormatText, _responses.FORMATS["text"], {}),
        (shared_params.ResponseFormatJSONObject, _responses.FORMATS["json_object"], {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_objects_of_a_response_hold_what_openai_s_hold(theirs, ours, left_out):
    assert theirs.__annotations__.keys() - ours - left_out.keys() == set()
    assert ours & left_out.keys() == set()
    assert ours - theirs.__annotations__.keys() == set()


def test_responses_and_embeddings_are_openai_s_own(client):
    """So their signatures are."""
    assert (type(client.responses), type(client.embeddings)) == (Responses, Embeddings)
    assert "create" in public(Responses) & public(Embeddings)
    assert {"responses", "embeddings"} <= public(OptLLM)
    served = {"create", "parse", "stream", "with_raw_response", "with_streaming_response"}
    assert public(Responses) - served - set(RESPONSES_METHODS) == set()
    assert served <= public(Responses)


def test_the_client_has_what_openai_s_has():
    assert public(openai.OpenAI) - public(OptLLM) - set(CLIENT) == set()
    assert set(CLIENT) & public(OptLLM) == set()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(openai.OpenAI, OptLLM), (openai.AsyncOpenAI, AsyncOptLLM)],
    ids=["sync", "async"],
)
def test_a_client_has_the_attributes_of_openai_s(theirs, ours):
    """Those that its class does not have: it is set up with them."""
    has = {name for name in vars(theirs(api_key="unused")) if not name.startswith("_")}
    assert {"timeout", "max_retries"} <= has
    assert has - public(ours) - set(ATTRIBUTES) - set(CLIENT) == set()
    assert set(ATTRIBUTES) & public(ours) == set()


def test_the_attributes_are_what_calls_use(client):
    assert (client.timeout, client.max_retries) == (600.0, 2)
    copy = client.with_options(timeout=30, max_retries=0)
    assert (copy.timeout, copy.max_retries) == (30.0, 0)
    assert (client.timeout, client.max_retries) == (600.0, 2)
    for name in ("timeout", "max_retries"):
        with pytest.raises(AttributeError):
            setattr(client, name, 5)


def test_the_client_is_set_up_with_what_openai_s_is():
    ours = parameters(OptLLM.__init__)
    assert parameters(openai.OpenAI.__init__) - ours - set(SETTINGS) == set()
    assert set(SETTINGS) & ours == set()
    assert {"api_key", "timeout", "max_retries"} <= ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(openai.OpenAI, OptLLM), (openai.AsyncOpenAI, AsyncOptLLM)],
    ids=["sync", "async"],
)
def test_the_client_is_set_up_as_openai_s_is(theirs, ours):
    assert differences(theirs.__init__, ours.__init__, SETTINGS) == RETRIES
    for method in ("with_options", "copy"):
        assert differences(getattr(theirs, method), getattr(ours, method), OPTIONS) == {}


def test_the_client_s_defaults_are_openai_s(client):
    assert client.settings.max_retries == openai.DEFAULT_MAX_RETRIES
    assert client.settings.timeout_seconds == openai.DEFAULT_TIMEOUT.read


@pytest.mark.parametrize("method", ["with_options", "copy"])
def test_copies_take_what_openai_s_do(method):
    ours = parameters(getattr(OptLLM, method))
    assert parameters(getattr(openai.OpenAI, method)) - ours - set(OPTIONS) == set()
    assert set(OPTIONS) & ours == set()
    assert {"timeout", "max_retries"} <= ours


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("client", [OptLLM, AsyncOptLLM])
def test_what_is_set_elsewhere_is_refused_with_the_place(client, name):
    with pytest.raises(ConfigurationError, match=f"{name} is not taken: .* belongs? in ") as caught:
        client(**{name: "sk-secret"})
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_set_elsewhere_is_refused_of_copies(client, name):
    with pytest.raises(InvalidRequestError, match=f"{name} is not taken: .* belongs? in "):
        client.with_options(**{name: "sk-secret"})


def test_what_is_no_setting_gets_the_nearest(client):
    with pytest.raises(ConfigurationError, match="setting 'budgte' is unknown; did you mean 'bud"):
        OptLLM(["openai/gpt-4o"], budgte=5)
    with pytest.raises(InvalidRequestError, match="option 'tennant' is unknown; did you mean 'ten"):
        client.with_options(tennant="acme")


def test_models_must_be_named():
    with pytest.raises(ConfigurationError, match=r"models is None; give a list, like \['openai"):
        OptLLM()


def test_a_time_limit_is_openai_s_too(sqlite_url):
    model = Candidate("m", "x/m", Price(Decimal(1), Decimal(1), "test"), 10)
    settings = {"store": sqlite_url, "transport": HttpxTransport()}
    for timeout, seconds in ((30, 30.0), (openai.Timeout(9, read=5), 5.0), (None, 600.0)):
        with OptLLM([model], timeout=timeout, **settings) as client:
            assert client.settings.timeout_seconds == seconds
    with pytest.raises(ConfigurationError, match="timeout 'soon'"):
        OptLLM([model], timeout="soon", **settings)
    with pytest.raises(ConfigurationError, match="both timeout and timeout_seconds"):
        OptLLM([model], timeout=5, timeout_seconds=5, **settings)
