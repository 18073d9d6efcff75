"""Streams, parsing and raw responses through the client: real HTTP, openai's own types."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal

import litellm_clients
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk

from optllm_router import (
    AsyncOptLLM,
    BudgetExceededError,
    Call,
    Candidate,
    Chunk,
    Completion,
    InvalidRequestError,
    OptLLM,
    Price,
    ProviderConnectionError,
    ProviderUnavailableError,
    UnknownModelError,
    Usage,
)
from optllm_router.simulation import SIMULATED_MODELS, Faults

HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
TINY = SIMULATED_MODELS[-1]
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture
def client(models, sqlite_url):
    with OptLLM(models, budget="1 USD", store=sqlite_url, seed=0, max_retries=0) as client:
        yield client


def stream(client: OptLLM, **arguments):
    arguments = {"messages": HELLO, "model": "sim-tiny", **arguments}
    return client.chat.completions.create(stream=True, **arguments)


def text_of(chunks) -> str:
    return "".join(choice.delta.content or "" for one in chunks for choice in one.choices)


def assert_books_are_closed(client: OptLLM) -> None:
    assert client.verify() == []
    assert client.balance.reserved_nano == 0


# Streams


def test_a_stream_is_openai_s_and_says_in_the_end_how_it_was_made(client):
    with stream(client) as answer:
        assert isinstance(answer, openai.Stream)
        assert answer.optllm is None
        chunks = list(answer)
    expected = TINY.reply("What is 12 + 30?")
    assert all(type(chunk) is ChatCompletionChunk for chunk in chunks)
    assert {(chunk.id, chunk.object) for chunk in chunks} == {
        (answer.optllm.decision_id, "chat.completion.chunk")
    }
    assert text_of(chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    cost = 100 * expected.prompt_tokens + 300 * expected.completion_tokens
    assert answer.optllm.cost_nano == client.balance.spent_nano == cost
    client.feedback.create(answer.optllm.decision_id, score=1.0)
    assert_books_are_closed(client)


def test_usage_comes_last_where_it_was_asked_for(client):
    *others, last = stream(client, **USAGE)
    expected = TINY.reply("What is 12 + 30?")
    assert all(chunk.choices and chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage.prompt_tokens == expected.prompt_tokens
    assert last.usage.completion_tokens == expected.completion_tokens


def test_a_stream_is_routed(client):
    answer = stream(client, model="auto", extra_body={"optllm": {"policy": "min_cost:0.01"}})
    assert answer.response.headers["x-optllm-candidate"]
    assert text_of(answer)
    assert answer.optllm.candidate in client._runtime.candidates


@pytest.mark.parametrize("end", ["close", "leave", "response", "drop"])
def test_a_stream_that_is_left_early_is_settled(client, end):
    answer = stream(client)
    next(answer)
    if end == "close":
        answer.close()
    elif end == "leave":
        with answer:
            pass
    elif end == "response":
        answer.response.close()
    del answer
    deadline = time.monotonic() + 10
    while client.balance.reserved_nano and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.balance.spent_nano > 0
    assert_books_are_closed(client)


def test_a_fault_before_the_first_token_is_raised_at_once(client, server):
    server.faults = Faults(script=("server_error",))
    with pytest.raises(ProviderUnavailableError) as caught:
        stream(client)
    assert isinstance(caught.value, openai.InternalServerError)
    assert_books_are_closed(client)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"stream_options": {"include_usage": 5}}, "stream_options"),
        ({"stream_options": {"usage": True}}, "stream_options"),
        ({"messages": []}, "0 entries"),
    ],
)
def test_bad_arguments_of_a_stream(client, server, arguments, shown):
    with pytest.raises(InvalidRequestError, match=shown):
        stream(client, **arguments)
    assert server.requests == {}


def test_options_of_a_stream_need_one(client):
    with pytest.raises(InvalidRequestError, match="stream=True is not"):
        client.chat.completions.create(messages=HELLO, **USAGE)
    with pytest.raises(InvalidRequestError, match="stream 'yes'"):
        client.chat.completions.create(messages=HELLO, stream="yes")


def test_a_stream_that_does_not_fit_is_not_opened(models, sqlite_url, server):
    with (
        OptLLM(models, budget="0.00001 USD", store=sqlite_url) as client,
        pytest.raises(BudgetExceededError),
    ):
        stream(client)
    assert server.requests == {}


def test_streams_without_blocking(models, sqlite_url):
    async def run():
        async with AsyncOptLLM(models, budget="1 USD", store=sqlite_url) as client:
            create = client.chat.completions.create
            async with await create(messages=HELLO, model="sim-tiny", stream=True) as answer:
                assert isinstance(answer, openai.AsyncStream)
                chunks = [chunk async for chunk in answer]
            assert text_of(chunks) == TINY.reply("What is 12 + 30?").text
            assert answer.optllm.candidate == "sim-tiny"
            left = await create(messages=HELLO, model="sim-tiny", stream=True, **USAGE)
            await anext(left)
            await left.close()
            with pytest.raises(UnknownModelError):
                await create(messages=HELLO, model="nobody", stream=True)
            async with client.chat.completions.stream(messages=HELLO, model="sim-tiny") as events:
                kinds = {event.type async for event in events}
            assert "content.done" in kinds
            raw = await client.chat.completions.with_raw_response.create(
                messages=HELLO, model="auto"
            )
            assert raw.parse().optllm.decision_id == raw.request_id
            response = await client.responses.create(input="What is 12 + 30?", model="sim-tiny")
            assert response.output_text == TINY.reply("What is 12 + 30?").text
            with pytest.raises(UnknownModelError) as caught:
                await client.responses.create(input="Hi", model="nobody")
            assert isinstance(caught.value, openai.NotFoundError)
            assert client.verify() == []

    litellm_clients.run(run())


# openai's helpers over ours


def test_raw_responses_have_headers(client):
    raw = client.chat.completions.with_raw_response.create(messages=HELLO, model="sim-tiny")
    answer = raw.parse()
    assert raw.request_id == answer.id == answer.optllm.decision_id
    assert raw.headers["x-optllm-candidate"] == "sim-tiny"
    assert int(raw.headers["x-optllm-cost-nano"]) == answer.optllm.cost_nano
    assert json.loads(raw.text)["choices"][0]["message"]["role"] == "assistant"
    with client.chat.completions.with_streaming_response.create(
        messages=HELLO, model="sim-tiny", stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert_books_are_closed(client)


def test_the_stream_helper_puts_the_answer_together(client):
    with client.chat.completions.stream(messages=HELLO, model="sim-tiny") as events:
        deltas = "".join(event.delta for event in events if event.type == "content.delta")
        final = events.get_final_completion()
    assert deltas == final.choices[0].message.content == TINY.reply("What is 12 + 30?").text


class Sum(pydantic.BaseModel):
    total: int


def test_answers_are_parsed_into_a_class(client):
    parse = client.chat.completions.parse
    answer = parse(messages=HELLO, model="sim-tiny", response_format=Sum)
    assert isinstance(answer.choices[0].message.parsed, Sum)
    assert answer.optllm.candidate == "sim-tiny"
    with pytest.raises(InvalidRequestError, match="temperature"):
        parse(messages=HELLO, model="sim-tiny", response_format=Sum, temperature="hot")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"extra_query": {"api-version": "1"}}, "extra_query"),
        ({"extra_headers": {"authorization": "Bearer theirs"}}, "extra_headers"),
        ({"extra_headers": {"x-api-key": "theirs"}}, "extra_headers"),
        ({"extra_body": {"optllm": {"tenants": "a"}}}, "'tenants'"),
        ({"extra_body": {"fallbacks": ["x"]}}, "'fallbacks' is not taken"),
        ({"temperature": "hot"}, "temperature"),
        ({"timeout": -1}, "timeout -1"),
    ],
)
def test_errors_over_openai_s_client_are_the_same(client, server, arguments, shown):
    create = client.openai.chat.completions.create
    with pytest.raises(InvalidRequestError, match=shown) as caught:
        create(messages=HELLO, model="auto", **arguments)
    assert isinstance(caught.value, openai.BadRequestError)
    assert server.requests == {}


def test_the_refusal_of_an_argument_names_it_over_openai_s_client(client):
    with pytest.raises(InvalidRequestError) as caught:
        client.openai.chat.completions.create(messages=HELLO, model="auto", extra_query={"a": "1"})
    assert caught.value.param == "extra_query"


def test_arguments_arrive_over_openai_s_client(client, server):
    client.openai.chat.completions.create(
        messages=HELLO,
        model="sim-tiny",
        extra_headers={"x-title": "Mine"},
        extra_body={"top_k": 5, "optllm": {"policy": "match_best"}},
        timeout=20,
        max_tokens=2,
    )
    assert server.requests == {"sim-tiny": 1}


def test_what_is_not_served_says_so(client):
    with pytest.raises(InvalidRequestError, match=r"/v1/images/generations is not served"):
        client.openai.images.generate(prompt="A cat")
    with pytest.raises(InvalidRequestError, match=r"GET .* is not served"):
        client.responses.retrieve("resp_1")


def test_a_provider_s_fault_keeps_its_class_over_openai_s_client(client, server):
    server.faults = Faults(script=("cut",))
    with pytest.raises(ProviderConnectionError) as caught:
        client.responses.create(input="Hi", model="sim-tiny")
    assert isinstance(caught.value, openai.APIConnectionError)
    assert caught.value.maybe_billed


# Responses


def test_a_response(client):
    response = client.responses.create(
        input="What is 12 + 30?", model="sim-tiny", instructions="Be brief."
    )
    assert response.id == response.optllm.decision_id
    assert response.output_text
    client.feedback.create(response.id, score=1.0)
    assert response.usage.total_tokens > 0
    assert_books_are_closed(client)


def test_a_response_as_it_is_made(client):
    found = list(client.responses.create(input="What is 12 + 30?", model="sim-tiny", stream=True))
    assert [event.sequence_number for event in found] == list(range(len(found)))
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    expected = TINY.reply("What is 12 + 30?")
    assert found[-1].type == "response.completed"
    assert "".join(deltas) == found[-1].response.output_text == expected.text
    assert found[-1].response.usage.output_tokens == expected.completion_tokens
    assert_books_are_closed(client)


def test_threads_share_openai_s_client(client):
    async def many():
        create = client.responses.create
        tasks = (asyncio.to_thread(create, input="Hi", model="sim-tiny") for _ in range(8))
        return await asyncio.gather(*tasks)

    client.responses.create(input="Hi", model="sim-tiny")
    assert len({response.id for response in asyncio.run(many())}) == 8
    assert_books_are_closed(client)


class Torn:
    """A provider that answers with half a surrogate pair, and what some readers take for a line."""

    def check(self, candidates) -> None:
        pass

    def send(self, candidate: Candidate, call: Call) -> Completion:
        message = {"role": "assistant", "content": TORN}
        body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return Completion(body, Usage(1, 1))

    def stream(self, candidate: Candidate, call: Call):
        delta = {"role": "assistant", "content": TORN}
        yield Chunk({"choices": [{"index": 0, "finish_reason": "stop", "delta": delta}]})
        yield Chunk({"choices": []}, Usage(1, 1))


TORN = "a\u2028b\ud83d"


def test_an_answer_that_is_no_utf_8_arrives(sqlite_url):
    candidate = Candidate("torn", "x/torn", Price(Decimal(1), Decimal(1), "test"), 100)
    with OptLLM([candidate], store=sqlite_url, transport=Torn()) as client:
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
        assert raw.parse().choices[0].message.content == TORN
        with client.chat.completions.with_streaming_response.create(
            model="auto", messages=HELLO, stream=True
        ) as response:
            data = response.read()
        assert data.isascii()
        assert json.loads(data.splitlines()[0][6:])["choices"][0]["delta"]["content"] == TORN
        assert client.responses.create(model="auto", input="Hi").output_text == TORN
        events = list(client.responses.create(model="auto", input="Hi", stream=True))
        assert events[-1].response.output_text == TORN
