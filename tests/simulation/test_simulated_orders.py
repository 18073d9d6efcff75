"""What simulated models do when told: tools, schemas, several choices, logprobs, embeddings."""

from __future__ import annotations

import base64
import json
import math
import struct

import httpx
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._types import Usage
from optllm_router.simulation import EMBEDDING_MODEL, SIMULATED_MODELS, Faults, Reply
from optllm_router.simulation.schemas import SchemaError, instance
from optllm_router.simulation.server import SimulationServer

MODEL = SIMULATED_MODELS[0]
PROMPT = "What is 12 + 30?"
REPLY = MODEL.reply(PROMPT)


@pytest.fixture(scope="module")
def shared():
    with SimulationServer() as server:
        yield server


def ask(server, prompt: str = PROMPT, **changes) -> dict:
    messages = [{"role": "user", "content": prompt}]
    content = {"model": MODEL.name, "messages": messages, **changes}
    response = httpx.post(f"{server.base_url}/chat/completions", json=content, trust_env=False)
    return response.json()


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"})
CLOCK = tool("get_time", zone={"enum": ["UTC", "CET"]})


def called(answer: dict) -> list[str]:
    calls = answer["choices"][0]["message"].get("tool_calls") or []
    return [call["function"]["name"] for call in calls]


# Tools


@pytest.mark.parametrize(
    ("prompt", "changes", "expected"),
    [
        ("How is the weather in Oslo?", {}, ["get_weather"]),
        ("How is the weather, and what time is it?", {}, ["get_weather", "get_time"]),
        ("Weather? Time?", {"parallel_tool_calls": False}, ["get_weather"]),
        ("Weather?", {"tool_choice": "none"}, []),
        ("Hello", {}, []),
        ("Hello", {"tool_choice": "required"}, ["get_weather"]),
        (
            "Hello",
            {"tool_choice": {"type": "function", "function": {"name": "get_time"}}},
            ["get_time"],
        ),
    ],
)
def test_which_tools_are_called(shared, prompt, changes, expected):
    answer = ask(shared, prompt, tools=[WEATHER, CLOCK], **changes)
    assert called(answer) == expected
    reason = answer["choices"][0]["finish_reason"]
    assert reason == ("tool_calls" if expected else "stop")


def test_arguments_fit_the_parameters(shared):
    answer = ask(shared, "Weather? Time?", tools=[WEATHER, CLOCK])
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        {"city": "city"},
        {"zone": "UTC"},
    ]
    assert len({call["id"] for call in calls}) == 2
    assert answer["choices"][0]["message"]["content"] is None


def test_what_a_tool_returned_is_answered_in_words(shared):
    first = ask(shared, "Weather?", tools=[WEATHER])["choices"][0]["message"]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": first["tool_calls"]},
        {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "rain"},
    ]
    answer = ask(shared, messages=messages, tools=[WEATHER])
    assert called(answer) == []
    assert answer["choices"][0]["message"]["content"]


def test_tools_cost_tokens_and_are_cut_off_like_words(shared):
    with_tools = ask(shared, tools=[WEATHER])["usage"]["prompt_tokens"]
    assert with_tools > ask(shared)["usage"]["prompt_tokens"]
    answer = ask(shared, "Weather?", tools=[WEATHER], max_tokens=3)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize(
    "tools",
    ["all", [5], [{"type": "function"}], [{"function": {"name": "f", "parameters": 3}}]],
)
def test_tools_of_another_form_are_refused(shared, tools):
    assert ask(shared, tools=tools)["error"]["param"] == "tools"


def test_arguments_that_cannot_be_made_are_refused(shared):
    impossible = tool("get_weather", city={"type": "string", "pattern": "^x$"})
    assert "pattern" in ask(shared, "Weather?", tools=[impossible])["error"]["message"]


# Schemas


class Step(pydantic.BaseModel):
    explanation: str = pydantic.Field(min_length=20)
    number: int = pydantic.Field(ge=3, lt=5)
    next: Step | None


class Solution(pydantic.BaseModel):
    answer: str
    steps: list[Step] = pydantic.Field(min_length=2)
    share: float = pydantic.Field(gt=0, lt=0.25)


def test_an_answer_fits_the_schema_and_says_the_right_thing(shared):
    schema = {"name": "solution", "schema": Solution.model_json_schema(), "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    answer = ask(shared, response_format=wanted)
    solution = Solution.model_validate_json(answer["choices"][0]["message"]["content"])
    assert solution.answer == "42"
    assert len(solution.steps) == 2


def test_the_openai_client_parses_what_comes(shared):
    with openai.OpenAI(base_url=shared.base_url, api_key="any", max_retries=0) as client:
        answer = client.chat.completions.parse(
            model=MODEL.name,
            messages=[{"role": "user", "content": PROMPT}],
            response_format=Solution,
        )
    assert answer.choices[0].message.parsed.answer == "42"


def test_an_object_of_no_schema(shared):
    answer = ask(shared, response_format={"type": "json_object"})
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"answer": "42"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, "text"),
        ({"const": 5}, 5),
        ({"type": ["integer", "null"]}, 1),
        ({"type": "integer", "maximum": -7}, -7),
        ({"type": "integer", "multipleOf": 5, "exclusiveMinimum": 10}, 15),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2024-05-17"),
        ({"type": "array", "maxItems": 0}, []),
        ({"prefixItems": [{"type": "null"}], "type": "array"}, [None]),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, True),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["a"]}]}, {"a": 1}),
        ({"$defs": {"x/y": {"const": 1}}, "$ref": "#/$defs/x~1y"}, 1),
        ({"required": ["b"], "type": "object"}, {"b": "b"}),
    ],
)
def test_instances(schema, expected):
    assert instance(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema"},
        {"type": "unheard-of"},
        {"type": "string", "pattern": "x"},
        {"type": "integer", "minimum": 1.2, "maximum": 1.8},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": 5}},
        {"anyOf": [5]},
    ],
)
def test_a_schema_without_an_instance_is_refused_by_name(shared, schema):
    with pytest.raises(SchemaError):
        instance(schema)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert ask(shared, response_format=wanted)["error"]["param"] == "response_format"


@given(st.integers(-50, 50), st.integers(0, 20), st.integers(1, 9))
def test_numbers_keep_their_bounds(low, span, step):
    schema = {"type": "integer", "minimum": low, "maximum": low + span, "multipleOf": step}
    fitting = [n for n in range(low, low + span + 1) if n % step == 0]
    if fitting:
        assert instance(schema) in fitting
    else:
        with pytest.raises(SchemaError):
            instance(schema)


# Choices, stops, logprobs, attachments


def test_every_choice_is_billed(shared):
    answer = ask(shared, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {REPLY.text}
    assert answer["usage"]["completion_tokens"] == 3 * REPLY.completion_tokens
    assert shared.served[MODEL.name][-1].completion_tokens == 3 * REPLY.completion_tokens


@pytest.mark.parametrize("stop", ["Answer", ["nowhere", "Answer"]])
def test_an_answer_ends_before_what_stops_it(shared, stop):
    answer = ask(shared, stop=stop)
    text = answer["choices"][0]["message"]["content"]
    assert text == REPLY.text.partition("Answer")[0]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert 0 < answer["usage"]["completion_tokens"] < REPLY.completion_tokens


@pytest.mark.parametrize("top", [0, 1, 5])
def test_logprobs_are_those_of_the_tokens(shared, top):
    answer = ask(shared, logprobs=True, top_logprobs=top)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == REPLY.text
    assert len(tokens) == REPLY.completion_tokens
    for token in tokens:
        assert -8 <= token["logprob"] <= 0
        scores = [other["logprob"] for other in token["top_logprobs"]]
        assert len(scores) == top
        assert scores == sorted(scores, reverse=True)
        assert scores[:1] in ([], [token["logprob"]])


def test_images_and_sounds_cost_tokens(shared):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    sound = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    content = [{"type": "text", "text": PROMPT}, image, sound]
    answer = ask(shared, messages=[{"role": "user", "content": content}])
    assert answer["choices"][0]["message"]["content"] == REPLY.text
    assert answer["usage"]["prompt_tokens"] > REPLY.prompt_tokens + 100


def test_recorded_replies_take_no_orders():
    with SimulationServer(replies={"Weather?": {"llama": Reply("rain", 5, 1)}}) as server:
        assert "error" in ask(server, "Weather?", model="llama", tools=[WEATHER])
        answer = ask(server, "Weather?", model="llama")
    assert answer["choices"][0]["message"]["content"] == "rain"


# Embeddings


def embed(server, given, **changes) -> httpx.Response:
    content = {"model": EMBEDDING_MODEL, "input": given, **changes}
    return httpx.post(f"{server.base_url}/embeddings", json=content, trust_env=False)


def vectors(response: httpx.Response) -> list[list[float]]:
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["embedding"] for item in data]


def product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_texts_that_share_words_are_near_each_other(shared):
    response = embed(shared, ["the cat sat", "the cat ran", "other words here"], dimensions=512)
    one, near, far = vectors(response)
    assert len(one) == 512
    assert math.isclose(product(one, one), 1.0)
    assert product(one, near) > 0.5 > product(one, far)
    assert vectors(embed(shared, "the cat sat", dimensions=512)) == [one]


def test_base64_holds_the_same_vector(shared):
    (packed,) = vectors(embed(shared, "the cat", encoding_format="base64"))
    (plain,) = vectors(embed(shared, "the cat"))
    unpacked = struct.unpack(f"<{len(plain)}f", base64.b64decode(packed))
    assert unpacked == pytest.approx(plain, abs=1e-6)


def test_embeddings_are_billed_by_the_prompt(shared):
    response = embed(shared, ["one two", "three"])
    assert response.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert shared.served[EMBEDDING_MODEL][-1] == Usage(3, 0)


def test_tokens_are_embedded_too(shared):
    assert len(vectors(embed(shared, [1, 2, 3]))) == 1
    assert len(vectors(embed(shared, [[1, 2], [3]]))) == 2


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": ["a"] * 3000}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": MODEL.name}, "model"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(shared, changes, param):
    response = embed(shared, **{"given": "a", **_as_given(changes)})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


def _as_given(changes: dict) -> dict:
    return {("given" if name == "input" else name): value for name, value in changes.items()}


def test_embeddings_fail_like_everything_else(server):
    server.faults = {EMBEDDING_MODEL: Faults(script=("rate_limit", "garbage", "malformed"))}
    assert embed(server, "a").status_code == 429
    for _ in range(2):
        with pytest.raises(json.JSONDecodeError):
            embed(server, "a").json()
    assert server.served == {EMBEDDING_MODEL: (Usage(1, 0),)}


def test_the_openai_client_embeds(shared):
    with openai.OpenAI(base_url=shared.base_url, api_key="any", max_retries=0) as client:
        answer = client.embeddings.create(model=EMBEDDING_MODEL, input=["the cat"])
    (plain,) = vectors(embed(shared, "the cat"))
    assert answer.data[0].embedding == pytest.approx(plain, abs=1e-6)
