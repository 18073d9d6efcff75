"""What a call may carry besides its messages. All else is refused.

litellm would pass other arguments on, or act on them itself: they could change who answers or
what is billed.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from optllm_router._errors import InvalidRequestError
from optllm_router._nearest import nearest, quoted

_MOST_CHOICES = 128
_MOST_CHARACTERS = 1000
_MOST_STOPS = 16
_MOST_BIASES = 2000
_LONGEST_TOKEN_ID = 20
_MOST_NOTES, _LONGEST_NOTE_NAME, _LONGEST_NOTE = 16, 64, 512
"""Of ``metadata``, as OpenAI has it."""
_MOST_TOOLS = 1000
_MOST_SWITCHES = 2000
"""Bounds on what is not a part of the prompt: to go through millions of them takes seconds."""
_HTTP_LIBRARIES = ("httpx", "httpx2")
"""openai's: the former before its version 3."""
_UNBOUNDED = ("cache_control", "audio")
"""Keys of messages and tools that change the price: cache writes, earlier answers as sound."""
_SWITCHES = frozenset(
    (
        *("top_k", "min_p", "top_a", "typical_p", "repetition_penalty", "length_penalty"),
        *("min_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens"),
        *("spaces_between_special_tokens", "include_stop_str_in_output"),
        *("enable_thinking", "chat_template_kwargs"),
    )
)
"""What ``extra_body`` may hold: sampling of open servers, which no price depends on."""
_BESIDE = _SWITCHES | {"optllm"}
_HEADERS = frozenset(
    (
        *("traceparent", "tracestate", "baggage", "user-agent", "http-referer", "x-title"),
        *("x-request-id", "x-client-request-id", "x-correlation-id"),
    )
)
"""What ``extra_headers`` may hold: tracing. Others may carry keys, or choose who answers."""


LEFT_OUT: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("audio", "moderation", "prediction", "web_search_options"),
            *("prompt_cache_options", "prompt_cache_retention"),
        ),
        (None,),
    ),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"], ("text",)),
    "extra_query": (None, {}),
}
"""OpenAI's arguments that are not taken, each with the values that ask for what is done anyway.

``audio`` and ``modalities`` are of sound, which has its own price; ``prediction`` is billed beyond
``max_tokens``; ``service_tier``, ``web_search_options``, ``prompt_cache_options`` and
``prompt_cache_retention`` are billed apart; ``moderation`` is a service of OpenAI's. What
``extra_query`` means is up to each provider: an API's version, a deployment, a key. It can be set
for a model, see ``_ELSEWHERE``.
"""
QUERY_ELSEWHERE = (
    "each provider reads its own URL in its own way, and it can name a key or a deployment; set it "
    "for a model, in its entry (litellm_params: extra_query, with transport httpx), or leave it out"
)
_ELSEWHERE = {
    "max_retries": "it is set with client.with_options(max_retries=...)",
    "extra_query": QUERY_ELSEWHERE,
}
"""What looks like an argument, and has another place."""


def given_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the caller gave: openai marks those that were left out."""
    return {
        name: list(value) if isinstance(value, Iterator) else value
        for name, value in arguments.items()
        if not _not_given(value)
    }


def given_or_none(value: Any) -> Any:
    """``None`` for openai's marks of what was left out."""
    return None if _not_given(value) else value


def arguments_of_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's JSON as arguments: what OpenAI does not know came from ``extra_body``."""
    arguments = {name: value for name, value in body.items() if name not in _BESIDE}
    further = {name: value for name, value in body.items() if name in _BESIDE}
    return {**arguments, "extra_body": further} if further else arguments


def drop_harmless(given: dict[str, Any]) -> None:
    """Remove what is left out, where it asks for what is done anyway."""
    for name in given.keys() & LEFT_OUT.keys():
        if given[name] in LEFT_OUT[name]:
            del given[name]


def check_names(given: Mapping[str, Any]) -> None:
    """Raise for an argument that is not in the table."""
    for name in given:
        if name not in ARGUMENTS:
            if name in _ELSEWHERE:
                raise InvalidRequestError(
                    f"argument {name!r} is not taken: {_ELSEWHERE[name]}", param=name
                )
            near = nearest(name, ARGUMENTS, most=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; leave it out"
            raise InvalidRequestError(
                f"argument {quoted(name)} is not taken: only those are that cannot change who "
                f"answers or what is billed{hint}",
                param=name,
            )


def check_values(given: Mapping[str, Any]) -> None:
    """Raise for a value that is not what its argument takes."""
    for name, value in given.items():
        form, fits = ARGUMENTS[name]
        if value is None:
            continue
        if not fits(value):
            raise InvalidRequestError(f"{name} {_shown(value)} must be {form}", param=name)
        check_json(name, value)
    if isinstance(given.get("tools"), (list, tuple)):
        for position, tool in enumerate(given["tools"]):
            refuse_unbounded(f"tools[{position}]", tool[tool["type"]])
    _check_allowed(given.get("tool_choice"), given.get("tools"))


def take_bound(given: dict[str, Any]) -> int | None:
    """Remove both names of the bound on an answer; the newer one wins."""
    names = ("max_completion_tokens", "max_tokens")
    newer, older = (_checked_bound(name, given.pop(name, None)) for name in names)
    return older if newer is None else newer


def _checked_bound(name: str, bound: Any) -> int | None:
    if bound is None:
        return None
    if isinstance(bound, bool) or not isinstance(bound, int):
        raise InvalidRequestError(f"{name} {quoted(bound)} must be a whole number", param=name)
    if bound < 1:
        raise InvalidRequestError(f"{name} {quoted(bound)} must be 1 or more", param=name)
    return bound


def checked_choices(n: Any) -> int:
    """How many answers are asked for."""
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST_CHOICES:
        raise InvalidRequestError(
            f"n {quoted(n)} must be a whole number from 1 to {_MOST_CHOICES}", param="n"
        )
    return n


def checked_seconds(timeout: Any) -> float | None:
    """A time limit; of an ``openai.Timeout`` the one on reading. ``None`` where there is none."""
    timeout = _reading_limit(timeout)
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise InvalidRequestError(
            f"timeout {quoted(timeout)} must be a finite number of seconds over 0", param="timeout"
        )
    return float(timeout)


def _reading_limit(timeout: Any) -> Any:
    for name in _HTTP_LIBRARIES:
        if name in sys.modules:  # who has made one has imported it; we need not
            library = importlib.import_module(name)  # waits where another thread is still at it
            if isinstance(timeout, library.Timeout):
                return timeout.read
    return timeout


def take_switches(given: dict[str, Any]) -> Any:
    """Leave of ``extra_body`` what goes to the provider; return what is under ``optllm``."""
    body = given.pop("extra_body", None)
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequestError(
            f"extra_body must be a mapping, not {type(body).__name__}", param="extra_body"
        )
    theirs = {key: value for key, value in body.items() if key != "optllm"}
    for name, value in theirs.items():
        if name in ARGUMENTS:
            raise InvalidRequestError(
                f"extra_body sets {name}; pass {name}= where it is checked", param=name
            )
        if name not in _SWITCHES:
            raise InvalidRequestError(
                f"extra_body sets {quoted(name)}, which may change who answers or what the call "
                "costs; leave it out (sampling of the model's own server belongs in its "
                "litellm_params)",
                param=str(name),
            )
        if not _is_switch(value):
            raise InvalidRequestError(
                f"extra_body[{name!r}] may hold numbers and booleans only, at most "
                f"{_MOST_SWITCHES}",
                param=name,
            )
    if theirs:
        given["extra_body"] = theirs
    return body.get("optllm")


def checked_headers(headers: Any) -> Any:
    """``extra_headers`` as they may go to a provider."""
    form, fits = ARGUMENTS["extra_headers"]
    if headers is not None and not fits(headers):
        raise InvalidRequestError(
            f"extra_headers {_shown(headers)} must be {form}", param="extra_headers"
        )
    return headers


def refuse_unbounded(where: str, holder: Mapping[str, Any]) -> None:
    """Raise for keys that change the price."""
    for key in _UNBOUNDED:
        if holder.get(key) is not None:
            raise InvalidRequestError(
                f"{where} sets {key}, whose cost cannot be bounded yet; leave it out",
                param=f"{where}.{key}",
            )


def check_json(where: str, value: Any) -> None:
    """Raise where ``value`` cannot be sent: it would be charged, because it fails on the way."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{where} holds half a surrogate pair, which UTF-8 cannot carry; remove it", param=where
        ) from None
    except RecursionError:
        raise InvalidRequestError(
            f"{where} is nested too deeply to be sent as JSON", param=where
        ) from None
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{where} cannot be sent as JSON: {error}", param=where) from None


def _shown(value: Any) -> str:
    """A value that is wrong, cut short; of a mapping its keys only: values may be secrets."""
    if isinstance(value, Mapping):
        return quoted(list(value))
    return quoted(value) if isinstance(value, (str, int, float)) else type(value).__name__


def _not_given(value: Any) -> bool:
    """Whether this is one of openai's marks for an argument that was left out."""
    kind = type(value)
    from_openai = kind.__module__.partition(".")[0] == "openai"
    return from_openai and kind.__name__ in ("NotGiven", "Omit")


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_short(value: Any, most: int = _MOST_CHARACTERS) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_false(value: Any) -> bool:
    return value is False


def is_list(value: Any) -> bool:
    """Whether this is a list or a tuple."""
    return isinstance(value, (list, tuple))


def _is_stop(value: Any) -> bool:
    many = value if is_list(value) else [value]
    return len(many) <= _MOST_STOPS and all(map(_is_short, many))


def _is_stream_options(value: Any) -> bool:
    known = ("include_usage", "include_obfuscation")
    return isinstance(value, Mapping) and all(
        name in known and _is_flag(flag) for name, flag in value.items()
    )


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= _MOST_BIASES
        and all(len(str(token)) <= _LONGEST_TOKEN_ID for token in value)
        and all(map(_is_number, value.values()))
    )


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= _MOST_NOTES
        and all(_is_short(name, _LONGEST_NOTE_NAME) for name in value)
        and all(_is_short(note, _LONGEST_NOTE) for note in value.values())
    )


def _is_headers(value: Any) -> bool:
    texts = isinstance(value, Mapping) and all(map(_is_text, (*value, *value.values())))
    return texts and all(
        name.lower() in _HEADERS and text.isascii() and text.isprintable()
        for name, text in value.items()
    )


def _is_switch(value: Any) -> bool:
    """Whether this is no text: that could make the prompt longer than was measured."""
    unseen, seen = [value], 0
    while unseen:
        one, seen = unseen.pop(), seen + 1
        if isinstance(one, Mapping) and all(map(_is_short, one)):
            unseen.extend(one.values())
        elif is_list(one):
            unseen.extend(one)
        elif not (one is None or _is_flag(one) or _is_number(one)):
            return False
        if seen + len(unseen) > _MOST_SWITCHES:
            return False
    return True


def _is_named(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and _is_text(value.get("name"))


def _are_functions(value: Any) -> bool:
    return is_list(value) and len(value) <= _MOST_TOOLS and all(map(_is_named, value))


def _is_tool(value: Any) -> bool:
    """Whether the caller runs this tool: those that providers run are billed apart."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    return (
        kind in ("function", "custom") and set(value) == {"type", kind} and _is_named(value[kind])
    )


def _are_tools(value: Any) -> bool:
    return is_list(value) and len(value) <= _MOST_TOOLS and all(map(_is_tool, value))


def is_tool_call(value: Any) -> bool:
    """Whether this is the call of a tool, as an earlier answer made it."""
    if not isinstance(value, Mapping):
        return False
    custom = value.get("type") == "custom"
    made = value.get("custom" if custom else "function")
    return _is_named(made) and _is_text(made.get("input" if custom else "arguments"))


def _is_choice_of_tool(value: Any) -> bool:
    if isinstance(value, Mapping) and value.get("type") == "allowed_tools":
        return set(value) == {"type", "allowed_tools"} and _are_allowed(value["allowed_tools"])
    return _is_text(value) or (
        isinstance(value, Mapping)
        and value.get("type") in ("function", "custom")
        and _is_named(value.get(value["type"]))
    )


def _are_allowed(value: Any) -> bool:
    """Whether these are tools by their names alone: what more is said of one is not measured."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"mode", "tools"}
        and value["mode"] in ("auto", "required")
        and _are_tools(value["tools"])
        and all(set(tool[tool["type"]]) == {"name"} for tool in value["tools"])
    )


def _check_allowed(choice: Any, tools: Any) -> None:
    """Raise where a tool is allowed that is not among those given."""
    if not isinstance(choice, Mapping) or choice["type"] != "allowed_tools":
        return
    known = {(tool["type"], tool[tool["type"]]["name"]) for tool in tools or ()}
    for tool in choice["allowed_tools"]["tools"]:
        kind = tool["type"]
        if (kind, tool[kind]["name"]) not in known:
            raise InvalidRequestError(
                f"tool_choice allows the {kind} tool {quoted(tool[kind]['name'])}, which is not "
                "among the tools given",
                param="tool_choice",
            )


def _is_choice_of_function(value: Any) -> bool:
    return _is_text(value) or _is_named(value)


def _is_format(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind in ("text", "json_object") or (
        kind == "json_schema" and _is_named(value.get("json_schema"))
    )


def _is_anything(_: Any) -> bool:
    return True


_Argument = tuple[str, Callable[[Any], bool]]
_TOOL_FORM = (
    f"a list of at most {_MOST_TOOLS} {{'type': 'function', 'function': {{'name': ...}}}}; others "
    "are billed apart"
)
_CHOICE_FORM = (
    "text, {'type': 'function', 'function': {'name': ...}} or {'type': 'allowed_tools', "
    "'allowed_tools': {'mode': 'auto' or 'required', 'tools': [...]}} with such tools"
)
_FORMAT_FORM = (
    "{'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', 'json_schema': {'name': "
    "..., 'schema': ...}} (classes belong to parse())"
)
_HEADER_FORM = f"a mapping of {', '.join(sorted(_HEADERS))} to printable ASCII text"
_CHECKED_ELSEWHERE: _Argument = ("", _is_anything)
ARGUMENTS: Mapping[str, _Argument] = {
    **dict.fromkeys(
        ("temperature", "top_p", "frequency_penalty", "presence_penalty"),
        ("a finite number", _is_number),
    ),
    **dict.fromkeys(("seed", "top_logprobs"), ("a whole number", _is_whole)),
    **dict.fromkeys(("logprobs", "parallel_tool_calls"), ("True or False", _is_flag)),
    **dict.fromkeys(
        ("user", "safety_identifier", "prompt_cache_key", "reasoning_effort", "verbosity"),
        (f"text of at most {_MOST_CHARACTERS} characters", _is_short),
    ),
    "store": ("False: answers are not kept, here or at a provider", _is_false),
    "stream": ("True or False", _is_flag),
    "stream_options": ("a mapping of include_usage to True or False", _is_stream_options),
    "stop": (
        f"text or a list of at most {_MOST_STOPS} texts, of at most {_MOST_CHARACTERS} characters",
        _is_stop,
    ),
    "logit_bias": (
        f"a mapping of token ids to finite numbers, of at most {_MOST_BIASES}",
        _is_bias,
    ),
    "metadata": (
        f"a mapping of at most {_MOST_NOTES} names, of {_LONGEST_NOTE_NAME} characters, to texts "
        f"of {_LONGEST_NOTE} characters",
        _is_metadata,
    ),
    "tools": (_TOOL_FORM, _are_tools),
    "tool_choice": (_CHOICE_FORM, _is_choice_of_tool),
    "functions": (f"a list of at most {_MOST_TOOLS} {{'name': ...}}", _are_functions),
    "function_call": ("text or {'name': ...}", _is_choice_of_function),
    "response_format": (_FORMAT_FORM, _is_format),
    "extra_headers": (_HEADER_FORM, _is_headers),
    **dict.fromkeys(
        ("n", "max_tokens", "max_completion_tokens", "timeout", "extra_body"), _CHECKED_ELSEWHERE
    ),
}
"""The arguments that change neither the price nor who answers: what each must be, and a test."""
