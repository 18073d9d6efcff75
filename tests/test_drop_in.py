"""Programs that were written for openai's client find its types wherever they look."""

from __future__ import annotations

import importlib

import litellm_clients
import openai
import pytest
from openai._legacy_response import LegacyAPIResponse
from openai._response import APIResponse, AsyncAPIResponse
from openai.pagination import AsyncPage, SyncPage
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router.simulation import Faults

ASKED = {"model": "sim-tiny", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
WORD = {"model": "sim-tiny", "input": "What is 12 + 30?"}
HTTP = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
"""The library that the installed openai speaks HTTP with."""


@pytest.fixture
def client(models, sqlite_url):
    with OptLLM(models, store=sqlite_url, seed=0, max_retries=0) as client:
        yield client


def run(models, store: str, program) -> None:
    """Run a coroutine with a client of its own."""

    async def with_client() -> None:
        async with AsyncOptLLM(models, store=store, seed=0, max_retries=0) as client:
            await program(client)

    litellm_clients.run(with_client())


# Raw responses

RAW = {
    "completions": lambda client: client.chat.completions.with_raw_response.create(**ASKED),
    "chat": lambda client: client.chat.with_raw_response.completions.create(**ASKED),
    "client": lambda client: client.with_raw_response.chat.completions.create(**ASKED),
    "responses": lambda client: client.responses.with_raw_response.create(**WORD),
    "its responses": lambda client: client.with_raw_response.responses.create(**WORD),
    "models": lambda client: client.models.with_raw_response.list(),
    "its models": lambda client: client.with_raw_response.models.retrieve("sim-tiny"),
}
PARSED = {"responses": Response, "its responses": Response, "its models": Model}


def check_raw(raw: object, kind: type) -> None:
    assert isinstance(raw, LegacyAPIResponse)
    assert isinstance(raw.http_response, HTTP.Response)
    assert isinstance(raw.http_request, HTTP.Request)
    assert isinstance(raw.headers, HTTP.Headers)
    assert raw.status_code == 200
    parsed = raw.parse()
    assert isinstance(parsed, kind)
    if kind in (ChatCompletion, Response):
        assert parsed.optllm.candidate == raw.headers["x-optllm-candidate"] == "sim-tiny"
        assert raw.request_id == parsed.id


@pytest.mark.parametrize("where", RAW)
def test_raw_responses(client, where):
    kind = SyncPage if where == "models" else PARSED.get(where, ChatCompletion)
    check_raw(RAW[where](client), kind)


@pytest.mark.parametrize("where", RAW)
def test_raw_responses_without_blocking(models, sqlite_url, where):
    kind = AsyncPage if where == "models" else PARSED.get(where, ChatCompletion)

    async def program(client: AsyncOptLLM) -> None:
        check_raw(await RAW[where](client), kind)

    run(models, sqlite_url, program)


STREAMING = {
    "completions": lambda client: client.chat.completions.with_streaming_response,
    "chat": lambda client: client.chat.with_streaming_response.completions,
    "client": lambda client: client.with_streaming_response.chat.completions,
}


@pytest.mark.parametrize("where", STREAMING)
def test_responses_that_are_read_as_they_come(client, where):
    with STREAMING[where](client).create(**ASKED) as response:
        assert isinstance(response, APIResponse)
        assert isinstance(response.http_response, HTTP.Response)
        assert isinstance(response.parse(), ChatCompletion)


@pytest.mark.parametrize("where", STREAMING)
def test_responses_that_are_read_as_they_come_without_blocking(models, sqlite_url, where):
    async def program(client: AsyncOptLLM) -> None:
        async with STREAMING[where](client).create(**ASKED) as response:
            assert isinstance(response, AsyncAPIResponse)
            assert isinstance(await response.parse(), ChatCompletion)

    run(models, sqlite_url, program)


def test_models_are_listed_by_openai_s_client(client):
    names = [model.id for model in client.models.list(timeout=3)]
    assert [model.id for model in client.openai.models.list()] == names
    with client.models.with_streaming_response.retrieve("sim-tiny") as response:
        assert response.parse() == client.models.retrieve("sim-tiny", extra_headers={})
    with pytest.raises(openai.NotFoundError, match="did you mean 'sim-tiny'"):
        client.openai.models.retrieve("sim-tin")
    with pytest.raises(openai.BadRequestError, match=r"GET /v1/files is not served"):
        client.openai.files.list()


# Streams and errors


def test_a_stream_is_openai_s(client):
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        assert isinstance(stream, openai.Stream)
        assert isinstance(stream.response, HTTP.Response)
        assert stream.response.headers["x-optllm-candidate"] == "sim-tiny"
        assert all(isinstance(chunk, ChatCompletionChunk) for chunk in stream)


def test_a_stream_is_openai_s_without_blocking(models, sqlite_url):
    async def program(client: AsyncOptLLM) -> None:
        async with await client.chat.completions.create(**ASKED, stream=True) as stream:
            assert isinstance(stream, openai.AsyncStream)
            assert isinstance(stream.response, HTTP.Response)
            assert [isinstance(chunk, ChatCompletionChunk) async for chunk in stream]

    run(models, sqlite_url, program)


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.chat.completions.create(**ASKED),
        lambda client: client.responses.create(**WORD),
    ],
    ids=["chat", "responses"],
)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("rate_limit", openai.RateLimitError),
        ("server_error", openai.InternalServerError),
        ("cut", openai.APIConnectionError),
    ],
)
def test_errors_hold_openai_s_requests_and_responses(client, server, ask, fault, kind):
    server.faults = Faults(script=(fault,))
    with pytest.raises(kind) as caught:
        ask(client)
    error = caught.value
    assert isinstance(error, openai.APIError)
    assert isinstance(error.request, HTTP.Request)
    if isinstance(error, openai.APIStatusError):
        assert isinstance(error.response, HTTP.Response)
        assert error.response.status_code == error.status_code
        assert error.response.json()["error"] == error.body


def test_who_is_to_wait_reads_how_long_where_openai_says_it(client, server):
    server.faults = Faults(script=("rate_limit",), retry_after_seconds=1.5)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**ASKED)
    assert float(caught.value.response.headers["retry-after"]) == 1.5


# The client


MARKS = [
    getattr(openai, name) for name in ("NOT_GIVEN", "not_given", "omit") if hasattr(openai, name)
]


@pytest.mark.parametrize("mark", MARKS)
def test_what_is_marked_as_left_out_is_left_out(models, sqlite_url, mark):
    """Wrappers hand openai's marks on, wherever openai takes them."""
    with OptLLM(models, store=sqlite_url, timeout=mark, max_retries=mark) as client:
        assert client.settings.timeout_seconds == 600.0
        assert client.settings.max_retries == 2
        copy = client.with_options(timeout=30, max_retries=1)
        options = copy.with_options(timeout=mark, max_retries=mark)._session.options
        assert (options.timeout_seconds, options.max_retries) == (30.0, 1)
        answer = client.chat.completions.create(**ASKED, stream=mark, tools=mark, timeout=mark)
        assert isinstance(answer, ChatCompletion)


def test_whatever_can_be_iterated_is_a_list(client):
    """As openai's signatures have it."""
    tool = {"type": "function", "function": {"name": "f"}}
    answer = client.chat.completions.create(
        model="sim-tiny",
        messages=(message for message in ASKED["messages"]),
        tools=iter([tool]),
    )
    assert isinstance(answer, ChatCompletion)


def test_a_copy_shares_what_a_client_is(client):
    copy = client.copy(timeout=30, max_retries=1, policy="match_best")
    assert copy.chat.completions.create(**ASKED).optllm.candidate == "sim-tiny"
    assert not client.is_closed()
    assert not copy.is_closed()
    copy.close()
    assert client.is_closed()
    assert copy.is_closed()


def test_who_closes_openai_s_client_closes_no_other(client):
    with client.openai as theirs:
        assert theirs.responses.create(**WORD).output_text
    assert theirs.is_closed()
    assert client.responses.create(**WORD).output_text
    assert not client.is_closed()


def test_who_closes_openai_s_client_closes_no_other_without_blocking(models, sqlite_url):
    async def program(client: AsyncOptLLM) -> None:
        async with client.openai as theirs:
            assert (await theirs.responses.create(**WORD)).output_text
        assert theirs.is_closed()
        assert (await client.responses.create(**WORD)).output_text
        assert not client.is_closed()

    run(models, sqlite_url, program)
