"""Programs written for OpenAI run unmodified: its SDK, instructor, langchain-openai, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import httpx
import instructor
import openai
import pytest
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


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(router):
    def curl(path: str, body: dict) -> str:
        command = ["curl", "--silent", "--no-buffer", "--fail", f"{router.url}{path}"]
        command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    body = {"model": "auto", "messages": QUESTION}
    answer = json.loads(curl("/v1/chat/completions", body))
    assert answer["choices"][0]["message"]["content"]
    events = curl("/v1/chat/completions", {**body, "stream": True}).split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    kept = curl("/v1/feedback", {"id": answer["id"], "score": 0.5})
    assert json.loads(kept)["score"] == 0.5
