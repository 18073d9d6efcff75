"""Programs written for OpenAI run unmodified: its SDK, instructor, langchain-openai, curl."""

from __future__ import annotations

import asyncio
import functools
import json
import operator
import shutil
import subprocess

import httpx
import instructor
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from optllm_router.simulation import Faults

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int


@pytest.fixture(scope="module")
def client(router):
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", timeout=60) as made:
        yield made


def test_chat(client):
    answer = client.chat.completions.create(model="auto", messages=QUESTION)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens > 0


def test_how_an_answer_was_made_is_in_its_headers(client):
    raw = client.chat.completions.with_raw_response.create(
        model="sim-small", messages=QUESTION, extra_headers={"x-request-id": "mine"}
    )
    answer = raw.parse()
    assert raw.headers["x-optllm-decision-id"] == answer.id
    assert raw.headers["x-optllm-candidate"] == "sim-small"
    assert int(raw.headers["x-optllm-cost-nano"]) > 0
    assert raw.headers["x-request-id"] == answer._request_id == "mine"


def test_streaming_says_the_same_as_a_whole_answer(client):
    whole = client.chat.completions.create(model="sim-small", messages=QUESTION)
    stream = client.chat.completions.create(
        model="sim-small",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streaming_without_usage_has_none(client):
    chunks = list(client.chat.completions.create(model="auto", messages=QUESTION, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_async_streaming(router):
    async def read() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="unused") as client:
            stream = await client.chat.completions.create(
                model="auto", messages=QUESTION, stream=True
            )
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(asyncio.run(read()))


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, stream):
    if stream:
        with client.chat.completions.stream(
            model="auto", messages=QUESTION, tools=[TOOL], tool_choice="required"
        ) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(
            model="auto", messages=QUESTION, tools=[TOOL], tool_choice="required"
        )
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    said = {"role": "assistant", "tool_calls": [call.to_dict()]}
    again = client.chat.completions.create(
        model="auto", messages=[*QUESTION, said, result], tools=[TOOL]
    )
    assert again.choices


def test_structured_output(client):
    answer = client.chat.completions.parse(model="auto", messages=QUESTION, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


def test_several_choices(client):
    answer = client.chat.completions.create(model="auto", messages=QUESTION, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_responses(client):
    answer = client.responses.create(model="auto", instructions="Be brief.", input="Hello")
    assert answer.output_text
    with client.responses.stream(model="sim-small", input="Hello") as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds


@pytest.fixture
def cut(provider):
    """Every answer breaks off after its first tokens."""
    before, provider.faults = provider.faults, Faults(rates={"cut": 1.0})
    yield
    provider.faults = before


def test_a_response_that_breaks_off_ends_in_the_error_event(client, router, cut):
    body = {"model": "sim-small", "input": "Hello", "stream": True}
    raw = httpx.post(f"{router.url}/v1/responses", json=body, timeout=60)
    *_, last = raw.text.strip().split("\n\n")
    name, _, data = last.partition("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["type"] == "error"
    with pytest.raises(openai.APIError, match="sim-small"):
        list(client.responses.create(**body))


def test_a_chat_completion_that_breaks_off_ends_in_an_error(client, router, cut):
    body = {"model": "sim-small", "messages": QUESTION, "stream": True}
    raw = httpx.post(f"{router.url}/v1/chat/completions", json=body, timeout=60)
    *_, last = raw.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: ")).keys() == {"error"}
    with pytest.raises(openai.APIError, match="sim-small"):
        list(client.chat.completions.create(**body))


def test_embeddings(client):
    answer = client.embeddings.create(model="auto", input=["one", "two"])
    vectors = [one.embedding for one in answer.data]
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]
    assert all(isinstance(value, float) for value in vectors[0])


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names[0] == "auto"
    assert client.models.retrieve("sim-tiny").id == "sim-tiny"


@pytest.mark.parametrize(
    ("arguments", "kind", "part"),
    [
        ({"model": "sim-tinny"}, openai.NotFoundError, "sim-tiny"),
        ({"messages": []}, openai.BadRequestError, "messages has 0"),
        ({"service_tier": "flex"}, openai.BadRequestError, "service_tier"),
        ({"extra_body": {"optllm": {"policy": "best"}}}, openai.BadRequestError, "policy"),
    ],
)
def test_errors_are_openai_s(client, arguments, kind, part):
    with pytest.raises(kind, match=part) as raised:
        client.chat.completions.create(**{"model": "auto", "messages": QUESTION, **arguments})
    assert raised.value.request_id
    assert raised.value.body["message"]


def test_the_policy_of_a_call(client):
    answer = client.chat.completions.create(
        model="auto:match_best", messages=QUESTION, extra_body={"optllm": {"conversation": "c1"}}
    )
    assert answer.choices


def test_instructor(client):
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(client, mode=mode)
        city = patched.chat.completions.create(
            model="auto", messages=QUESTION, response_model=City, max_retries=0
        )
        assert isinstance(city, City), mode


def test_instructor_streams_what_it_has_so_far(client):
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    so_far = list(
        patched.chat.completions.create_partial(
            model="auto", messages=QUESTION, response_model=City, max_retries=0
        )
    )
    assert so_far[-1].name is not None
    assert isinstance(so_far[-1].inhabitants, int)


def test_instructor_takes_several_objects(client):
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    cities = patched.chat.completions.create(
        model="auto", messages=QUESTION, response_model=list[City], max_retries=0
    )
    assert all(isinstance(city, City) for city in cities)


@pytest.mark.parametrize(
    ("arguments", "kind", "part"),
    [
        ({"model": "sim-tinny"}, openai.NotFoundError, "sim-tiny"),
        ({"service_tier": "flex"}, openai.BadRequestError, "service_tier"),
    ],
)
def test_instructor_s_users_see_openai_s_errors(client, arguments, kind, part):
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    asked = {"model": "auto", "messages": QUESTION, **arguments}
    with pytest.raises(Exception, match=part) as raised:
        patched.chat.completions.create(response_model=City, max_retries=0, **asked)
    assert kind in {type(error) for error in causes(raised.value)}


def causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it: instructor wraps what it gives up on."""
    found = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        found.append(error)
    return found


def test_langchain(router):
    with httpx.Client() as http:
        settings = {"base_url": f"{router.url}/v1", "api_key": "unused", "http_client": http}
        chat = ChatOpenAI(model="auto", **settings)
        assert chat.invoke("Hello").content
        assert "".join(chunk.content for chunk in chat.stream("Hello"))
        bound = chat.bind_tools([TOOL], tool_choice="weather")
        (call,) = bound.invoke("How is the weather?").tool_calls
        assert call["name"] == "weather"
        assert isinstance(chat.with_structured_output(City).invoke("A city."), City)
        embeddings = OpenAIEmbeddings(
            model="sim-embedding", check_embedding_ctx_length=False, **settings
        )
        assert len(embeddings.embed_documents(["one", "two"])) == 2
        assert embeddings.embed_query("one") == embeddings.embed_documents(["one"])[0]


def test_langchain_streams_tools_and_counts_tokens(router):
    with httpx.Client() as http:
        settings = {"base_url": f"{router.url}/v1", "api_key": "unused", "http_client": http}
        chat = ChatOpenAI(model="auto", stream_usage=True, **settings)
        bound = chat.bind_tools([TOOL], tool_choice="weather")
        whole = functools.reduce(operator.add, bound.stream("How is the weather?"))
        (call,) = whole.tool_calls
        assert call["name"] == "weather"
        assert set(call["args"]) == {"city"}
        assert whole.usage_metadata["total_tokens"] > 0
        result = ToolMessage("Sunny.", tool_call_id=call["id"])
        said = AIMessage("", tool_calls=whole.tool_calls)
        question = HumanMessage("How is the weather?")
        assert chat.bind_tools([TOOL]).invoke([question, said, result])


def test_langchain_s_users_see_openai_s_errors(router):
    with httpx.Client() as http:
        settings = {"base_url": f"{router.url}/v1", "api_key": "unused", "http_client": http}
        with pytest.raises(openai.NotFoundError, match="sim-tiny"):
            ChatOpenAI(model="sim-tinny", max_retries=0, **settings).invoke("Hello")
        with pytest.raises(openai.NotFoundError, match="sim-tiny"):
            list(ChatOpenAI(model="sim-tinny", max_retries=0, **settings).stream("Hello"))
        embeddings = OpenAIEmbeddings(
            model="sim-tiny", check_embedding_ctx_length=False, max_retries=0, **settings
        )
        with pytest.raises(openai.BadRequestError, match="is for chat, not for embedding"):
            embeddings.embed_query("one")


def test_langchain_without_blocking(router):
    async def ask() -> tuple[str, int]:
        chat = ChatOpenAI(model="auto", base_url=f"{router.url}/v1", api_key="unused")
        answer = await chat.ainvoke("Hello")
        return answer.content, len([chunk async for chunk in chat.astream("Hello")])

    content, chunks = asyncio.run(ask())
    assert content
    assert chunks > 3


def curl(url: str, body: object, *options: str) -> str:
    """What curl writes to standard output."""
    command = ["curl", "--silent", "--no-buffer", url, *options]
    command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


has_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@has_curl
def test_curl(router):
    url = f"{router.url}/v1/chat/completions"
    body = {"model": "auto", "messages": QUESTION}
    answer = json.loads(curl(url, body, "--fail"))
    assert answer["choices"][0]["message"]["content"]
    events = curl(url, {**body, "stream": True}, "--fail").split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    kept = curl(f"{router.url}/v1/feedback", {"id": answer["id"], "score": 0.5}, "--fail")
    assert json.loads(kept)["score"] == 0.5


@has_curl
def test_curl_calls_tools_and_takes_structured_output(router):
    url = f"{router.url}/v1/chat/completions"
    body = {"model": "auto", "messages": QUESTION}
    answer = json.loads(curl(url, {**body, "tools": [TOOL], "tool_choice": "required"}))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    schema = {"name": "city", "strict": True, "schema": City.model_json_schema()}
    form = {"type": "json_schema", "json_schema": schema}
    answer = json.loads(curl(url, {**body, "response_format": form}))
    City.model_validate_json(answer["choices"][0]["message"]["content"])


@has_curl
def test_curl_embeds_and_responds(router):
    answer = json.loads(
        curl(f"{router.url}/v1/embeddings", {"model": "auto", "input": ["one", "two"]})
    )
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert all(isinstance(value, float) for value in answer["data"][0]["embedding"])
    answer = json.loads(curl(f"{router.url}/v1/responses", {"model": "auto", "input": "Hello"}))
    assert answer["output"][0]["content"][0]["text"]


@has_curl
def test_curl_sees_openai_s_errors(router):
    url = f"{router.url}/v1/chat/completions"
    for body, status, code in (
        ({"model": "sim-tinny", "messages": QUESTION}, "404", "model_not_found"),
        ({"model": "auto", "messages": []}, "400", "invalid_request"),
        ([], "400", "invalid_json"),
    ):
        told, _, said = curl(url, body, "--write-out", "\n%{http_code}").rpartition("\n")
        assert (said, json.loads(told)["error"]["code"]) == (status, code)
