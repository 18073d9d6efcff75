"""Tools, choices, log probabilities and schemas: what comes back is what OpenAI would send."""

from __future__ import annotations

import json

import pydantic
import pytest
from openai import pydantic_function_tool
from sqlalchemy import create_engine, select

from optllm_router import InvalidRequestError, OptLLM
from optllm_router.store.schema import decisions

WEATHER = [{"role": "user", "content": "What is the weather in Oslo, and the local time?"}]


def tool(name: str) -> dict:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("get_weather"), tool("get_local_time"), tool("send_mail")]


@pytest.fixture
def client(models, sqlite_url):
    with OptLLM(models, budget="1 USD", store=sqlite_url, seed=0, max_retries=0) as client:
        yield client


def test_tools_are_called_and_answered(client):
    create = client.chat.completions.create
    asked = create(messages=WEATHER, model="sim-tiny", tools=TOOLS)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["get_weather", "get_local_time"]
    assert all("city" in json.loads(call.function.arguments) for call in message.tool_calls)
    outputs = [
        {"role": "tool", "tool_call_id": call.id, "content": "Fine."} for call in message.tool_calls
    ]
    answered = create(messages=[*WEATHER, message, *outputs], model="sim-tiny", tools=TOOLS)
    assert answered.choices[0].message.content
    assert answered.choices[0].message.tool_calls is None
    assert client.verify() == []


def test_one_tool_at_a_time(client):
    answer = client.chat.completions.create(
        messages=WEATHER, model="sim-tiny", tools=TOOLS, parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls) == 1


def test_tool_calls_are_streamed(client):
    with client.chat.completions.stream(messages=WEATHER, model="sim-tiny", tools=TOOLS) as events:
        final = events.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_local_time"]
    assert all("city" in json.loads(call.function.arguments) for call in calls)


def test_tools_in_responses(client):
    flat = [{"type": "function", **one["function"]} for one in TOOLS]
    asked = client.responses.create(
        input=WEATHER[0]["content"], model="sim-tiny", tools=flat, store=False
    )
    calls = [item for item in asked.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather", "get_local_time"]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Fine."}
        for call in calls
    ]
    answered = client.responses.create(
        input=[*WEATHER, *(call.to_dict() for call in calls), *outputs],
        model="sim-tiny",
        tools=flat,
    )
    assert answered.output_text
    with client.responses.stream(input=WEATHER, model="sim-tiny", tools=flat) as events:
        final = events.get_final_response()
    assert [item.name for item in final.output if item.type == "function_call"] == [
        "get_weather",
        "get_local_time",
    ]


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}], ids=["text", "tools"])
def test_a_streamed_answer_is_remembered_by_what_it_said(client, tools):
    stream = client.chat.completions.stream(messages=WEATHER, model="sim-tiny", **tools)
    with stream as events:
        message = events.get_final_completion().choices[0].message
    said = message.to_dict(exclude_none=True)
    turn = [*WEATHER, said, {"role": "user", "content": "Go on."}]
    partner = client._runtime._conversations.partner(turn)
    assert partner.candidate == "sim-tiny"
    assert client._runtime._conversations.partner([*WEATHER, {**said, "content": "No"}]) is None


def test_of_the_tools_given_those_that_are_allowed_are_called(client):
    functions = [{"name": name, "parameters": {"type": "object"}} for name in ("weather", "tides")]
    asked = {"model": "sim-tiny", "messages": WEATHER}
    only = {"mode": "required", "tools": [{"type": "function", "function": {"name": "tides"}}]}
    answer = client.chat.completions.create(
        **asked,
        tools=[{"type": "function", "function": function} for function in functions],
        tool_choice={"type": "allowed_tools", "allowed_tools": only},
    )
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["tides"]
    response = client.responses.create(
        model="sim-tiny",
        input=WEATHER[0]["content"],
        tools=[{"type": "function", **function} for function in functions],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "tides"}],
        },
    )
    assert [item.name for item in response.output] == ["tides"]


def test_several_choices_are_paid_for(client):
    one = client.chat.completions.create(messages=WEATHER, model="sim-tiny")
    two = client.chat.completions.create(messages=WEATHER, model="sim-tiny", n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.usage.completion_tokens == 2 * one.usage.completion_tokens
    assert two.optllm.cost_nano > one.optllm.cost_nano


def test_log_probabilities(client):
    answer = client.chat.completions.create(
        messages=WEATHER, model="sim-tiny", logprobs=True, top_logprobs=2
    )
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


class Forecast(pydantic.BaseModel):
    city: str
    degrees: int


def test_classes_are_parsed_everywhere(client):
    parsed = client.chat.completions.parse(
        messages=WEATHER, model="sim-tiny", response_format=Forecast
    )
    assert isinstance(parsed.choices[0].message.parsed, Forecast)
    assert parsed.optllm.candidate == "sim-tiny"
    response = client.responses.parse(
        input=WEATHER[0]["content"], model="sim-tiny", text_format=Forecast
    )
    assert isinstance(response.output_parsed, Forecast)
    called = client.chat.completions.parse(
        messages=[{"role": "user", "content": "Call forecast now"}],
        model="sim-tiny",
        tools=[pydantic_function_tool(Forecast)],
    )
    (call,) = called.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Forecast)


def test_a_class_is_no_response_format_of_create(client):
    with pytest.raises(InvalidRequestError, match=r"classes belong to parse\(\)"):
        client.chat.completions.create(messages=WEATHER, response_format=Forecast)


def test_who_cannot_is_left_out_and_the_answer_says_so(models, sqlite_url):
    for entry in models[:-1]:
        entry["router"] = {"unable": ["tools"]}
    with OptLLM(models, store=sqlite_url) as client:
        answer = client.chat.completions.create(messages=WEATHER, tools=TOOLS)
        assert answer.optllm.candidate == models[-1]["model_name"]
        others = {entry["model_name"] for entry in models[:-1]}
        assert answer.optllm.left_out.keys() == others
        raw = client.chat.completions.with_raw_response.create(
            messages=WEATHER, model="auto", tools=TOOLS
        )
        assert all(name in raw.headers["x-optllm-left-out"] for name in others)
        with pytest.raises(InvalidRequestError, match="calls no tools"):
            client.chat.completions.create(
                messages=WEATHER, tools=TOOLS, model=models[0]["model_name"]
            )


def test_a_call_can_require_tags(models, sqlite_url):
    models[1]["router"] = {"tags": ["region:eu"]}
    with OptLLM(models, store=sqlite_url) as client:
        for_europe = client.with_options(require_tags=["region:eu"])
        answer = for_europe.chat.completions.create(messages=WEATHER)
        assert answer.optllm.candidate == models[1]["model_name"]
        with pytest.raises(InvalidRequestError, match="'region:us'"):
            for_europe.chat.completions.create(
                messages=WEATHER, extra_body={"optllm": {"require_tags": "region:us"}}
            )


def test_a_call_can_forbid_tags(models, sqlite_url):
    for entry in models[1:]:
        entry["router"] = {"tags": ["region:us"]}
    first, others = models[0]["model_name"], {entry["model_name"] for entry in models[1:]}
    with OptLLM(models, store=sqlite_url) as client:
        abroad = client.with_options(forbid_tags=["region:us"])
        answer = abroad.chat.completions.create(messages=WEATHER)
        assert answer.optllm.candidate == first
        assert answer.optllm.left_out == dict.fromkeys(others, "is tagged 'region:us'")
        with pytest.raises(InvalidRequestError, match="is tagged 'region:us'; name another"):
            client.chat.completions.create(
                messages=WEATHER,
                model=min(others),
                extra_body={"optllm": {"forbid_tags": "region:us"}},
            )
        client.chat.completions.create(messages=WEATHER)
    with create_engine(sqlite_url).connect() as connection:
        rows = connection.execute(select(decisions.c.id, decisions.c.left_out)).all()
    kept = {row.id: row.left_out for row in rows}
    assert json.loads(kept.pop(answer.id)) == answer.optllm.left_out
    assert list(kept.values()) == [None]
