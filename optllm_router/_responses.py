"""OpenAI's Responses API in terms of chat completions, and back. JSON values in and out, no I/O.

What the chat API cannot carry is refused by name: tools that OpenAI runs and bills apart, and
whatever needs answers to be kept (``previous_response_id``, ``conversation``, ``background``).
Reasoning items of earlier answers are left out: another model could not read them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from optllm_router._errors import InvalidRequestError
from optllm_router._nearest import quoted

SAME = frozenset(
    (
        *("model", "temperature", "top_p", "metadata", "user", "safety_identifier", "stream"),
        *("prompt_cache_key", "parallel_tool_calls", "top_logprobs", "max_output_tokens"),
        *("extra_body", "extra_headers", "timeout"),
    )
)
TRANSLATED = frozenset(
    ("input", "instructions", "text", "reasoning", "tools", "tool_choice", "include")
)
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "store": (False,),
    "background": (False,),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
}
"""Values that ask for what is done anyway."""
_WHY_NOT = {
    "store": "answers are not kept; leave it out",
    "background": "answers are not kept; leave it out, or use a plan",
    "previous_response_id": "answers are not kept; send the whole conversation as input",
    "conversation": "conversations are not kept here; send the whole of it as input",
    "prompt": "templates of OpenAI's are not known here; send their text",
    "max_tool_calls": "no tool is run here; leave it out",
    "truncation": "nothing is cut out of a conversation; leave it out",
    "service_tier": "it changes the price; leave it out",
    "reasoning.summary": "the chat API has no summaries of reasoning; leave it out",
    "reasoning.generate_summary": "the chat API has no summaries of reasoning; leave it out",
}
_WHY_NO_OTHER = "it may change who answers or what is billed; leave it out"
REASONING = frozenset(("effort",))
TEXT = frozenset(("format", "verbosity"))
FORMATS: Mapping[str, frozenset[str]] = {
    "text": frozenset(("type",)),
    "json_object": frozenset(("type",)),
    "json_schema": frozenset(("type", "name", "description", "schema", "strict")),
}
TOOLS: Mapping[str, frozenset[str]] = {
    "function": frozenset(("type", "name", "description", "parameters", "strict")),
    "custom": frozenset(("type", "name", "description", "format")),
}
ALLOWED = frozenset(("type", "mode", "tools"))
"""What is taken of the objects within a request, by their type."""
_CALLED = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_output_tokens"),
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""What chat completions call otherwise."""
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
_LONGEST_NAME = 100
_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def chat_arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``chat.completions.create`` that ask for the same.

    Raises:
        InvalidRequestError: names what cannot be asked for, and why.
    """
    given = {name: value for name, value in request.items() if value is not None}
    for name, value in given.items():
        known = name in SAME or name in TRANSLATED or value in _HARMLESS.get(name, ())
        if not known:
            raise _not_taken(name)
    arguments = {name: value for name, value in given.items() if name in SAME}
    if "max_output_tokens" in arguments:
        arguments["max_completion_tokens"] = arguments.pop("max_output_tokens")
    arguments["messages"] = [*_instructions(given), *_messages(given.get("input"))]
    arguments.update(_text_settings(given.get("text", {})))
    if effort := _object("reasoning", given.get("reasoning", {}), REASONING).get("effort"):
        arguments["reasoning_effort"] = effort
    if "tools" in given:
        tools = enumerate(_list("tools", given["tools"]))
        arguments["tools"] = [_tool(f"tools[{position}]", tool) for position, tool in tools]
    if "tool_choice" in given:
        arguments["tool_choice"] = _tool_choice(given["tool_choice"])
    if _wants_logprobs(given):
        arguments["logprobs"] = True
    if arguments.get("stream"):
        arguments["stream_options"] = {"include_usage": True}
    return arguments


def response_param(param: str | None) -> str | None:
    """What an argument of a chat completion was called in the response's request."""
    name = None if param is None else re.split(r"[.\[]", param, maxsplit=1)[0]
    return param if name is None else _CALLED.get(name, param)


def response_body(request: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    """A response's body from that of the chat completion that answered it."""
    choice = completion["choices"][0]
    body = response_frame(request, completion)
    body["output"] = list(_output(str(completion["id"]), choice))
    return finished(body, choice.get("finish_reason"), completion.get("usage"))


def response_frame(request: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    """A response as it begins, from the chat completion, or its first chunk."""
    echoed = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
    return {
        "id": str(completion["id"]),
        "object": "response",
        "created_at": completion.get("created", 0),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": completion.get("model", ""),
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": request.get("reasoning") or {"effort": None, "summary": None},
        "store": False,
        "text": request.get("text") or {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": [_with_strictness(tool) for tool in request.get("tools") or ()],
        "truncation": "disabled",
        "usage": None,
        **{name: request.get(name) for name in echoed},
    }


def finished(
    frame: Mapping[str, Any], finish_reason: Any, usage: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A response at its end."""
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason)
    return {
        **frame,
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "usage": None if usage is None else _usage(usage),
    }


def function_call(id: str, call: Mapping[str, Any], status: str = "completed") -> dict[str, Any]:
    """An output item from a tool call of the chat API."""
    if call.get("type") == "custom":
        made = call.get("custom") or {}
        item = {"type": "custom_tool_call", "name": made.get("name"), "input": made.get("input")}
    else:
        made = call.get("function") or {}
        item = {
            "type": "function_call",
            "name": made.get("name"),
            "arguments": made.get("arguments") or "",
            "status": status,
        }
    return {"id": id, "call_id": call.get("id") or id, **item}


def text_part(text: str, logprobs: Any = None) -> dict[str, Any]:
    """Written text, as a part of an output message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def message_item(id: str, content: Sequence[Any], status: str = "completed") -> dict[str, Any]:
    """An output message."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(content),
    }


def _output(id: str, choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    message = choice["message"]
    content: list[dict[str, Any]] = []
    if message.get("content"):
        logprobs = (choice.get("logprobs") or {}).get("content")
        content.append(text_part(message["content"], logprobs))
    if message.get("refusal"):
        content.append({"type": "refusal", "refusal": message["refusal"]})
    if content:
        yield message_item(f"msg_{id}", content)
    for position, call in enumerate(message.get("tool_calls") or ()):
        yield function_call(f"fc_{id}_{position}", call)


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    prompt = usage.get("prompt_tokens_details") or {}
    completion = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens") or 0,
            "cache_write_tokens": prompt.get("cache_write_tokens") or 0,
        },
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0),
    }


def _instructions(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "instructions" not in given:
        return []
    return [{"role": "system", "content": given["instructions"]}]


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for position, item in enumerate(_list("input", given)):
        _add(messages, f"input[{position}]", _mapping(f"input[{position}]", item))
    return messages


def _add(messages: list[dict[str, Any]], where: str, item: Mapping[str, Any]) -> None:
    """Append an item of the input; text and tool calls of one answer become one message."""
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        role, content = item.get("role"), _content(where, item.get("content"))
        if role == "assistant" and last is not None and last["content"] is None:
            last["content"] = content
        else:
            messages.append({"role": role, "content": content})
    elif kind in ("function_call", "custom_tool_call"):
        if last is None:
            last = {"role": "assistant", "content": None}
            messages.append(last)
        last.setdefault("tool_calls", []).append(_tool_call(item))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = _content(where, item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind != "reasoning":
        raise InvalidRequestError(
            f"{where} is of type {quoted(kind)}, which only OpenAI's own tools and store know; "
            "send messages, function calls and their outputs",
            param=where,
        )


def _tool_call(item: Mapping[str, Any]) -> dict[str, Any]:
    kind, argument = "function", "arguments"
    if item["type"] == "custom_tool_call":
        kind, argument = "custom", "input"
    made = {"name": item.get("name"), argument: item.get(argument)}
    return {"id": item.get("call_id"), "type": kind, kind: made}


def _content(where: str, content: Any) -> Any:
    if not isinstance(content, (list, tuple)):
        return content
    return [_part(where, _mapping(where, part)) for part in content]


def _part(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _PARTS:
        return {"type": _PARTS[kind], _PARTS[kind]: part.get(_PARTS[kind])}
    if kind == "input_image" and part.get("image_url") is not None:
        image = {name: part[name] for name in ("detail",) if part.get(name) is not None}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **image}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise InvalidRequestError(
        f"{where} has a part of type {quoted(kind)} whose cost cannot be bounded; use input_text, "
        "input_image with an image_url, or input_audio",
        param=f"{where}.content",
    )


def _text_settings(text: Any) -> dict[str, Any]:
    settings = _object("text", text, TEXT)
    found: dict[str, Any] = {}
    if settings.get("verbosity") is not None:
        found["verbosity"] = settings["verbosity"]
    form = _mapping("text.format", settings.get("format") or {"type": "text"})
    kind = form.get("type")
    if not (isinstance(kind, str) and kind in FORMATS):
        raise InvalidRequestError(
            f"text.format has type {quoted(kind)}; use {', '.join(FORMATS)}", param="text.format"
        )
    form = _object("text.format", form, FORMATS[kind])
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        found["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        found["response_format"] = {"type": kind}
    return found


def _tool(where: str, tool: Any) -> dict[str, Any]:
    kind = _mapping(where, tool).get("type")
    if not (isinstance(kind, str) and kind in TOOLS):
        raise InvalidRequestError(
            f"{where} is of type {quoted(kind)}, which its provider runs and bills apart; only "
            "function and custom tools are taken",
            param=where,
        )
    made = _object(where, _with_strictness(tool), TOOLS[kind])
    if isinstance(grammar := made.get("format"), Mapping) and grammar.get("type") == "grammar":
        parts = {name: value for name, value in grammar.items() if name != "type"}
        made["format"] = {"type": "grammar", "grammar": parts}
    elif "format" in made:
        made["format"] = dict(_mapping(f"{where}.format", grammar))
    del made["type"]
    return {"type": kind, kind: made}


def _with_strictness(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function that says whether it is strict: the two APIs differ in what it is by default.

    In the Responses API it is, where its schema can be kept to.
    """
    if tool.get("type") != "function" or tool.get("strict") is not None:
        return tool
    return {**tool, "strict": _can_be_strict(tool.get("parameters"))}


def _can_be_strict(schema: Any) -> bool:
    """Whether each object in a schema has all its properties, and no others."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return False
    unseen: list[Any] = [schema]
    while unseen:
        part = unseen.pop()
        if isinstance(part, Mapping):
            unseen.extend(part.values())
            if part.get("type") == "object" and not _is_closed(part):
                return False
        elif isinstance(part, (list, tuple)):
            unseen.extend(part)
    return True


def _is_closed(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    return (
        schema.get("additionalProperties") is False
        and isinstance(properties, Mapping)
        and isinstance(required, (list, tuple))
        and all(name in required for name in properties)
    )


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        given = _object("tool_choice", choice, ALLOWED)
        tools = enumerate(_list("tool_choice.tools", given.get("tools")))
        named = [_named(_mapping(f"tool_choice.tools[{i}]", tool)) for i, tool in tools]
        return {"type": given["type"], given["type"]: {"mode": given.get("mode"), "tools": named}}
    return _named(choice)


def _named(tool: Any) -> Any:
    """A tool of the caller's by its name, as the chat API writes it; others as they are."""
    if isinstance(tool, Mapping) and tool.get("type") in ("function", "custom"):
        return {"type": tool["type"], tool["type"]: {"name": tool.get("name")}}
    return tool


def _wants_logprobs(given: Mapping[str, Any]) -> bool:
    wanted = _list("include", given.get("include", ()))
    for name in wanted:
        if name not in _INCLUDED:
            raise InvalidRequestError(
                f"include has {quoted(name)}; only {' and '.join(_INCLUDED)} are taken",
                param="include",
            )
    return _INCLUDED[0] in wanted or "top_logprobs" in given


def _object(where: str, value: Any, known: Collection[str]) -> dict[str, Any]:
    """What is set in an object; raises for what is not taken."""
    given = {name: one for name, one in _mapping(where, value).items() if one is not None}
    for name in given:
        if name not in known:
            raise _not_taken(f"{where}.{name}")
    return given


def _not_taken(name: str) -> InvalidRequestError:
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return InvalidRequestError(
        f"{shown} is not taken: {_WHY_NOT.get(name, _WHY_NO_OTHER)}", param=name
    )


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"{where} must be an object, not {type(value).__name__}", param=where
        )
    return value


def _list(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidRequestError(
            f"{where} must be a list, not {type(value).__name__}", param=where
        )
    return value
