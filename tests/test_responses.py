"""The Responses API in terms of chat completions: pure translations, checked by openai's types."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response, ResponseErrorEvent

from optllm_router._errors import InvalidRequestError
from optllm_router._response_events import ResponseEvents
from optllm_router._responses import chat_arguments, response_body

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": "{}"}}
CUSTOM = {"type": "custom", "id": "call_2", "custom": {"name": "g", "input": "Hi"}}


def completion(message: dict, finish_reason: str = "stop", **further) -> dict:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"id": "optllm-1", "created": 5, "model": "m", "choices": [choice], **further}


# Requests


def test_allowed_tools_are_nested_in_the_chat_api():
    tools = [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": tools}
    nested = [
        {"type": "function", "function": {"name": "f"}},
        {"type": "custom", "custom": {"name": "g"}},
    ]
    assert chat_arguments({"input": "Hi", "tool_choice": choice})["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": nested},
    }
    with pytest.raises(InvalidRequestError, match=r"tool_choice\.names is not taken"):
        chat_arguments({"input": "Hi", "tool_choice": {**choice, "names": ["f"]}})


def test_text_becomes_a_message():
    assert chat_arguments({"input": "Hi", "model": "auto"}) == {
        "model": "auto",
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_settings_have_their_names_in_the_chat_api():
    asked = {
        "input": "Hi",
        "instructions": "Be brief.",
        "max_output_tokens": 7,
        "text": {
            "verbosity": "low",
            "format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True},
        },
        "reasoning": {"effort": "low", "summary": None},
        "temperature": 0.5,
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "include": ["message.output_text.logprobs"],
        "stream": True,
        "store": False,
        "truncation": "disabled",
        "previous_response_id": None,
    }
    assert chat_arguments(asked) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "max_completion_tokens": 7,
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": SCHEMA, "strict": True},
        },
        "reasoning_effort": "low",
        "temperature": 0.5,
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_conversation_with_pictures_and_tools():
    asked = [
        {"role": "developer", "content": "Look."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "https://x/a.png", "detail": "low"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "I ask.", "annotations": []},
                {"type": "refusal", "refusal": "No."},
            ],
        },
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "Hi"},
        {"type": "function_call_output", "call_id": "call_1", "output": "42"},
        {
            "type": "custom_tool_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "43"}],
        },
        {"type": "function_call", "call_id": "call_3", "name": "f", "arguments": "{}"},
    ]
    image = {"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}}
    assert chat_arguments({"input": asked})["messages"] == [
        {"role": "developer", "content": "Look."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "I ask."}, {"type": "refusal", "refusal": "No."}],
            "tool_calls": [CALL, CUSTOM],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "43"}]},
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "call_3"}]},
    ]


FITTING = {**SCHEMA, "required": ["a"], "additionalProperties": False}
NESTED = {**FITTING, "properties": {"a": {"type": "array", "items": SCHEMA}}}


@pytest.mark.parametrize(
    ("tool", "strict"),
    [
        ({"parameters": FITTING}, True),
        ({"parameters": FITTING, "strict": None}, True),
        ({"parameters": FITTING, "strict": False}, False),
        ({"parameters": SCHEMA, "strict": True}, True),
        ({"parameters": {**FITTING, "additionalProperties": True}}, False),
        ({"parameters": {**FITTING, "required": []}}, False),
        ({"parameters": {**FITTING, "required": 5}}, False),
        ({"parameters": NESTED}, False),
        ({"parameters": {}}, False),
        ({}, False),
    ],
)
def test_functions_are_strict_unless_the_caller_or_the_schema_says_otherwise(tool, strict):
    asked = {"type": "function", "name": "f", **tool}
    (sent,) = chat_arguments({"input": "Hi", "tools": [asked]})["tools"]
    assert sent["function"].get("parameters") == tool.get("parameters")
    assert sent["function"]["strict"] is strict
    (told,) = response_body({"tools": [asked]}, completion({"content": "Hello"}))["tools"]
    assert told == {**asked, "strict": strict}


def test_a_grammar_stands_elsewhere_in_the_chat_api():
    grammar = {"syntax": "lark", "definition": 'start: "a"'}
    asked = {"type": "custom", "name": "g", "description": "d", "format": {"type": "text"}}
    sent = chat_arguments(
        {"input": "Hi", "tools": [asked, {**asked, "format": {"type": "grammar", **grammar}}]}
    )
    assert sent["tools"] == [
        {
            "type": "custom",
            "custom": {"name": "g", "description": "d", "format": {"type": "text"}},
        },
        {
            "type": "custom",
            "custom": {
                "name": "g",
                "description": "d",
                "format": {"type": "grammar", "grammar": grammar},
            },
        },
    ]


def test_a_tool_call_and_the_text_after_it_are_one_answer():
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    text = {"type": "message", "role": "assistant", "content": "I asked."}
    done = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
    assert chat_arguments({"input": [call, text, done, text]})["messages"] == [
        {"role": "assistant", "content": "I asked.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "I asked."},
    ]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not taken: answers are not"),
        ({"conversation": "conv_1"}, "conversation is not taken"),
        ({"background": True}, "background is not taken"),
        ({"store": True}, "store is not taken"),
        ({"truncation": "auto"}, "truncation is not taken"),
        ({"service_tier": "priority"}, "service_tier is not taken: it changes the price"),
        ({"prompt": {"id": "p"}}, "prompt is not taken"),
        ({"max_tool_calls": 3}, "max_tool_calls is not taken"),
        ({"something_new": 3}, "something_new is not taken: it may change"),
        ({"tools": [{"type": "web_search"}]}, "'web_search'.*bills apart"),
        ({"tools": [5]}, r"tools\[0\] must be an object, not int"),
        ({"tools": {"type": "function"}}, "tools must be a list, not dict"),
        ({"include": ["file_search_call.results"]}, "include has 'file_search_call.results'"),
        ({"input": 5}, "input must be a list, not int"),
        ({"input": None}, "input must be a list, not NoneType"),
        ({"input": ["Hi"]}, r"input\[0\] must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\].*'item_reference'"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "only OpenAI's own tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "'input_file'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ({"input": [{"role": "user", "content": [{"type": ["text"]}]}]}, r"type \['text'\]"),
        ({"text": 5}, "text must be an object"),
        ({"reasoning": "low"}, "reasoning must be an object"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary is not taken: the chat API"),
        ({"reasoning": {"effort": "low", "bogus": 1}}, "reasoning.bogus is not taken"),
        ({"text": {"bogus": 2}}, "text.bogus is not taken"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema is not taken"),
        ({"text": {"format": {"type": "xml"}}}, "text.format has type 'xml'; use text"),
        ({"text": {"format": {"type": ["text"]}}}, "text.format has type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "s", "schema": {}, "bogus": 1}}},
            "text.format.bogus is not taken",
        ),
        (
            {"tools": [{"type": "function", "name": "f", "defer_loading": True}]},
            r"tools\[0\].defer_loading is not taken",
        ),
        (
            {"tools": [{"type": "custom", "name": "f", "bogus": True}]},
            r"tools\[0\].bogus is not taken",
        ),
        ({"tools": [{"type": "custom", "name": "f", "format": 5}]}, r"tools\[0\].format must be"),
        ({"x" * 1000: 1}, "^.{0,300}$"),
    ],
)
def test_what_the_chat_api_cannot_carry_is_refused_by_name(asked, shown):
    with pytest.raises(InvalidRequestError, match=shown):
        chat_arguments({"input": "Hi", **asked})


# Answers


def test_an_answer_is_a_response():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    asked = {"input": "Hi", "model": "auto", "temperature": 0.5, "metadata": {"a": "b"}}
    body = response_body(asked, completion({"content": "Hello"}, usage=usage))
    response = Response.model_validate(body)
    assert (response.id, response.output_text, response.status) == (
        "optllm-1",
        "Hello",
        "completed",
    )
    assert (response.temperature, response.metadata) == (0.5, {"a": "b"})
    assert (response.usage.input_tokens, response.usage.output_tokens) == (10, 5)
    assert response.usage.total_tokens == 15
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2


def test_tool_calls_and_refusals_are_items():
    message = {"content": "So:", "refusal": "No.", "tool_calls": [CALL, CUSTOM]}
    response = Response.model_validate(response_body({}, completion(message, "tool_calls")))
    written, function, custom = response.output
    assert [part.type for part in written.content] == ["output_text", "refusal"]
    assert (function.type, function.call_id, function.name, function.arguments) == (
        *("function_call", "call_1", "f", "{}"),
    )
    assert (custom.type, custom.call_id, custom.input) == ("custom_tool_call", "call_2", "Hi")
    assert len({item.id for item in response.output}) == 3


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_an_answer_that_was_cut_short_is_incomplete(finish_reason, reason):
    body = response_body({}, completion({"content": "Hel"}, finish_reason))
    response = Response.model_validate(body)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == reason


def test_what_a_response_says_can_be_sent_back():
    message = {"content": "So:", "tool_calls": [CALL, CUSTOM]}
    output = response_body({}, completion(message))["output"]
    (sent,) = chat_arguments({"input": output})["messages"]
    assert sent["content"] == [{"type": "text", "text": "So:"}]
    assert sent["tool_calls"] == [CALL, CUSTOM]


# Streams


def chunk(delta: dict, finish_reason: str | None = None, **further) -> dict:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "optllm-1", "created": 5, "model": "m", "choices": [choice], **further}


def events(*chunks: dict) -> list[dict]:
    machine = ResponseEvents({"input": "Hi"})
    found = [event for one in (*chunks, {}) for event in machine(one)]
    return [json.loads(event.decode().partition("data: ")[2]) for event in found]


def test_a_stream_ends_in_the_response_that_the_whole_answer_is():
    message = {"content": "Hello", "refusal": "No.", "tool_calls": [CALL, CUSTOM]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    found = events(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({"refusal": "No."}),
        chunk({"tool_calls": [{"index": 0, **CALL, "function": {"name": "f", "arguments": "{"}}]}),
        chunk({"tool_calls": [{"index": 1, **CUSTOM}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        chunk({}, "tool_calls"),
        {"id": "optllm-1", "choices": [], "usage": usage},
    )
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == "response.completed"
    whole = response_body({"input": "Hi"}, completion(message, "tool_calls", usage=usage))
    assert found[-1]["response"] == whole
    added = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == whole["output"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    texts = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [event["delta"] for event in texts] == ["Hel", "lo"]
    (text,) = [event for event in found if event["type"] == "response.output_text.done"]
    assert (text["text"], text["content_index"], text["output_index"]) == ("Hello", 0, 0)
    (refusal,) = [event for event in found if event["type"] == "response.refusal.done"]
    assert (refusal["refusal"], refusal["content_index"]) == ("No.", 1)
    (made,) = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert (made["arguments"], made["name"], made["output_index"]) == ("{}", "f", 1)
    (made,) = [e for e in found if e["type"] == "response.custom_tool_call_input.done"]
    assert (made["input"], made["output_index"]) == ("Hi", 2)


def test_a_stream_that_was_cut_short_is_incomplete():
    found = events(chunk({"content": "Hel"}), chunk({}, "length"))
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_fault_is_the_api_s_error_event():
    machine = ResponseEvents({"input": "Hi"})
    before = list(machine(chunk({"content": "Hel"})))
    error = {"message": "it broke", "type": "server_error", "param": None, "code": "cut"}
    (sent,) = machine.fault(error)
    name, _, data = sent.decode().partition("\n")
    assert name == "event: error"
    told = json.loads(data.removeprefix("data: "))
    event = ResponseErrorEvent.model_validate(told)
    assert (event.type, event.code, event.message, event.param) == (
        "error",
        "cut",
        "it broke",
        None,
    )
    assert event.sequence_number == len(before)
    assert told["error"] == error, "what openai's clients raise"


def test_a_stream_without_a_chunk_has_no_events():
    assert events() == []
