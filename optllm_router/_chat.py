"""Between OpenAI's chat API and ours: arguments in, ``ChatCompletion`` out."""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from optllm_router._errors import ConfigurationError, InvalidRequestError
from optllm_router._flow import Answer
from optllm_router._money import usd_from_nano
from optllm_router._types import Messages
from optllm_router.config import read_policy
from optllm_router.policy import Policy
from optllm_router.router import Query

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_MOST_MESSAGES = 10_000
_MOST_BYTES = 20_000_000
_MOST_CHOICES = 128
_PARTS = ("text", "image_url", "refusal")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
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
_HEADERS = frozenset(
    (
        *("traceparent", "tracestate", "baggage", "user-agent", "http-referer", "x-title"),
        *("x-request-id", "x-client-request-id", "x-correlation-id"),
    )
)
"""What ``extra_headers`` may hold: tracing. Others may carry keys, or choose who answers."""


@dataclass(frozen=True)
class Prepared:
    """A checked call: what to answer, by whom, under which policy."""

    query: Query
    model: str
    policy: Policy | None


@dataclass(frozen=True)
class RoutingInfo:
    """How an answer was made: ``answer.optllm``.

    Attributes:
        decision_id: what ``feedback.create`` takes; also the answer's ``id``.
        candidate: who answered.
        p: predicted probability that this candidate's answer is right, 0..1.
        std: uncertainty of ``p``.
        expected_cost_usd: what the call was expected to cost.
        cost_usd: what it cost.
        cost_nano: the same, exact, in nano-dollars.
        cost_estimated: True when the provider did not count tokens; the cost is then the most
            that the call can have cost.
        propensity: probability with which the policy chose the candidate.
        price: shadow price in successes per USD.
        reason: why this candidate, in one sentence.
        latency_seconds: from sending to the whole answer.
        provider_id: the provider's own id of the completion.
    """

    decision_id: str
    candidate: str
    p: float
    std: float
    expected_cost_usd: float
    cost_usd: float
    cost_nano: int
    cost_estimated: bool
    propensity: float
    price: float
    reason: str
    latency_seconds: float
    provider_id: str


def prepare(
    messages: Any, model: Any, arguments: Mapping[str, Any], default_timeout: float
) -> Prepared:
    """Check the arguments of ``chat.completions.create`` and take them apart.

    Raises:
        InvalidRequestError: names the argument, its value and the remedy.
    """
    given = {name: value for name, value in arguments.items() if not _not_given(value)}
    if given.pop("stream", None):
        raise InvalidRequestError("stream=True is not supported yet; leave it out")
    _check_names(given)
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(f"model {model!r} must be 'auto' or a configured model's name")
    checked = _checked_messages(messages)
    bound = _bound(given)
    timeout = given.pop("timeout", None)
    policy = _own_settings(given)
    choices = _choices(given.get("n"))
    _check_values(given)
    query = Query.from_messages(
        checked,
        parameters=given,
        max_output_tokens=bound,
        choices=choices,
        timeout_seconds=_seconds(timeout, default_timeout),
    )
    size = query.call.prompt_bytes
    if size > _MOST_BYTES:
        raise InvalidRequestError(
            f"the messages have {size} bytes; at most {_MOST_BYTES} are taken"
        )
    return Prepared(query, model, policy)


def chat_completion(answer: Answer) -> ChatCompletion:
    """The answer as OpenAI's type, with ``id`` the decision's and ``optllm`` how it was made."""
    from openai.types.chat import ChatCompletion

    body = {key: value for key, value in answer.completion.body.items() if value is not None}
    provider_id = str(body.get("id", ""))
    decision = answer.decision
    body.update(id=decision.id, object="chat.completion")
    body.setdefault("model", answer.candidate.model)
    completion = ChatCompletion.model_construct(**body)
    info = RoutingInfo(
        decision_id=decision.id,
        candidate=answer.candidate.name,
        p=decision.p,
        std=decision.std,
        expected_cost_usd=usd_from_nano(decision.expected_cost_nano),
        cost_usd=usd_from_nano(answer.cost_nano),
        cost_nano=answer.cost_nano,
        cost_estimated=answer.usage.estimated,
        propensity=decision.propensity,
        price=decision.price,
        reason=decision.reason,
        latency_seconds=answer.latency_seconds,
        provider_id=provider_id,
    )
    completion.optllm = info  # type: ignore[attr-defined]
    return completion


def _not_given(value: Any) -> bool:
    """Whether this is one of openai's marks for an argument that was left out."""
    kind = type(value)
    from_openai = kind.__module__.partition(".")[0] == "openai"
    return from_openai and kind.__name__ in ("NotGiven", "Omit")


def _checked_messages(messages: Any) -> Messages:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequestError(
            f"messages is {type(messages).__name__}; pass a list, like "
            "[{'role': 'user', 'content': 'Hello'}]"
        )
    if not 1 <= len(messages) <= _MOST_MESSAGES:
        raise InvalidRequestError(
            f"messages has {len(messages)} entries; between 1 and {_MOST_MESSAGES} are taken"
        )
    plain = tuple(map(_as_mapping, messages))
    for position, message in enumerate(plain):
        _check_message(f"messages[{position}]", message)
    return plain


def _as_mapping(message: Any) -> Any:
    """An earlier answer's message, which OpenAI's users append as it came, as plain values."""
    if not hasattr(message, "model_dump"):
        return message
    fields = message.model_dump(exclude_none=True)
    fields.pop("provider_specific_fields", None)
    return fields


def _check_message(where: str, message: Any) -> None:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in _ROLES:
        raise InvalidRequestError(f"{where} has role {role!r}; use one of {', '.join(_ROLES)}")
    content = message.get("content")
    if not isinstance(content, (str, list, tuple, type(None))):
        raise InvalidRequestError(
            f"{where}.content must be text or a list of parts, not {type(content).__name__}"
        )
    for part in content if isinstance(content, (list, tuple)) else ():
        _check_part(where, part)
    needed = {"tool": "tool_call_id", "function": "name"}.get(role)
    for key in ("name", "tool_call_id"):
        value = message.get(key)
        if not isinstance(value, str) and (value is not None or key == needed):
            raise InvalidRequestError(f"{where}.{key} must be text, not {type(value).__name__}")
    calls = message.get("tool_calls")
    if calls is not None and not (_is_list(calls) and all(map(_is_tool_call, calls))):
        raise InvalidRequestError(
            f"{where}.tool_calls must be a list like [{{'id': ..., 'type': 'function', "
            "'function': {'name': ..., 'arguments': '{}'}}]"
        )
    made = message.get("function_call")
    if made is not None and not _is_tool_call({"function": made}):
        raise InvalidRequestError(
            f"{where}.function_call must be like {{'name': ..., 'arguments': '{{}}'}}"
        )
    _refuse_unbounded(where, message)
    _check_json(where, message)


def _check_part(where: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise InvalidRequestError(
            f"{where} has a part of type {kind!r}, whose cost cannot be bounded yet; use "
            f"{', '.join(_PARTS)}"
        )
    value = part.get(kind)
    url = value.get("url") if kind == "image_url" and isinstance(value, Mapping) else value
    if not isinstance(url, str):
        form = {"image_url": "{'url': 'https://...'}"}.get(kind, "text")
        raise InvalidRequestError(f"{where} has a part whose {kind} is not {form}")
    _refuse_unbounded(where, part)


def _refuse_unbounded(where: str, holder: Mapping[str, Any]) -> None:
    for key in _UNBOUNDED:
        if holder.get(key) is not None:
            raise InvalidRequestError(
                f"{where} sets {key}, whose cost cannot be bounded yet; leave it out"
            )


def _check_json(where: str, value: Any) -> None:
    """Raise where ``value`` cannot be sent: it would be charged, because it fails on the way."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{where} holds half a surrogate pair, which UTF-8 cannot carry; remove it"
        ) from None
    except RecursionError:
        raise InvalidRequestError(f"{where} is nested too deeply to be sent as JSON") from None
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{where} cannot be sent as JSON: {error}") from None


def _bound(given: dict[str, Any]) -> int | None:
    bounds: list[int | None] = [
        given.pop(name, None) for name in ("max_completion_tokens", "max_tokens")
    ]
    for bound in bounds:
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise InvalidRequestError(f"max_tokens {bound!r} must be a whole number")
        if bound is not None and bound < 1:
            raise InvalidRequestError(f"max_tokens {bound!r} must be 1 or more")
    return bounds[0] if bounds[0] is not None else bounds[1]


def _own_settings(given: dict[str, Any]) -> Policy | None:
    body = given.pop("extra_body", None)
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequestError(f"extra_body must be a mapping, not {type(body).__name__}")
    theirs = {key: value for key, value in body.items() if key != "optllm"}
    for name, value in theirs.items():
        if name in _ARGUMENTS:
            raise InvalidRequestError(f"extra_body sets {name}; pass {name}= where it is checked")
        if name not in _SWITCHES:
            raise InvalidRequestError(
                f"extra_body sets {name!r}, which may change who answers or what the call costs; "
                "leave it out (sampling of the model's own server belongs in its litellm_params)"
            )
        if not _is_switch(value):
            raise InvalidRequestError(f"extra_body[{name!r}] may hold numbers and booleans only")
    if theirs:
        given["extra_body"] = theirs
    ours = body.get("optllm", {})
    if not isinstance(ours, Mapping) or set(ours) - {"policy"}:
        raise InvalidRequestError(f"extra_body['optllm'] is {ours!r}; it takes {{'policy': ...}}")
    try:
        return read_policy(ours["policy"]) if "policy" in ours else None
    except ConfigurationError as error:
        raise InvalidRequestError(str(error)) from None


def _choices(n: Any) -> int:
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST_CHOICES:
        raise InvalidRequestError(f"n {n!r} must be a whole number from 1 to {_MOST_CHOICES}")
    return n


def _seconds(timeout: Any, default: float) -> float:
    if timeout is None:
        return default
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise InvalidRequestError(f"timeout {timeout!r} must be a finite number of seconds over 0")
    return float(timeout)


# What a call may carry. All else is refused: litellm would pass it on, or act on it itself.


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in _ARGUMENTS:
            near = difflib.get_close_matches(name, _ARGUMENTS, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; leave it out"
            raise InvalidRequestError(
                f"argument {name!r} is not taken: only those are that cannot change who answers "
                f"or what is billed{hint}"
            )


def _check_values(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        form, fits = _ARGUMENTS[name]
        if value is None:
            continue
        if not fits(value):
            plain = isinstance(value, (str, int, float))
            shown = reprlib.repr(value) if plain else type(value).__name__
            raise InvalidRequestError(f"{name} {shown} must be {form}")
        _check_json(name, value)
    if isinstance(given.get("tools"), (list, tuple)):
        for position, tool in enumerate(given["tools"]):
            _refuse_unbounded(f"tools[{position}]", tool[tool["type"]])


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_stop(value: Any) -> bool:
    return _is_text(value) or (_is_list(value) and all(map(_is_text, value)))


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_number, value.values()))


def _is_metadata(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, (*value, *value.values())))


def _is_headers(value: Any) -> bool:
    return _is_metadata(value) and all(
        name.lower() in _HEADERS and text.isascii() and text.isprintable()
        for name, text in value.items()
    )


def _is_switch(value: Any) -> bool:
    """Whether this is no text: that could make the prompt longer than was measured."""
    if isinstance(value, Mapping):
        return all(map(_is_text, value)) and all(map(_is_switch, value.values()))
    if _is_list(value):
        return all(map(_is_switch, value))
    return value is None or _is_flag(value) or _is_number(value)


def _is_named(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and _is_text(value.get("name"))


def _are_functions(value: Any) -> bool:
    return _is_list(value) and all(map(_is_named, value))


def _is_tool(value: Any) -> bool:
    """Whether the caller runs this tool: those that providers run are billed apart."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    return (
        kind in ("function", "custom") and set(value) == {"type", kind} and _is_named(value[kind])
    )


def _are_tools(value: Any) -> bool:
    return _is_list(value) and all(map(_is_tool, value))


def _is_tool_call(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    custom = value.get("type") == "custom"
    made = value.get("custom" if custom else "function")
    return _is_named(made) and _is_text(made.get("input" if custom else "arguments"))


def _is_choice_of_tool(value: Any) -> bool:
    return _is_text(value) or (
        isinstance(value, Mapping)
        and value.get("type") in ("function", "custom")
        and _is_named(value.get(value["type"]))
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
_TOOL_FORM = "a list of {'type': 'function', 'function': {'name': ...}}; others are billed apart"
_FORMAT_FORM = (
    "{'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', 'json_schema': {'name': "
    "..., 'schema': ...}} (classes, as for parse(), are not supported yet)"
)
_HEADER_FORM = f"a mapping of {', '.join(sorted(_HEADERS))} to printable ASCII text"
_CHECKED_ELSEWHERE: _Argument = ("", _is_anything)
_ARGUMENTS: Mapping[str, _Argument] = {
    **dict.fromkeys(
        ("temperature", "top_p", "frequency_penalty", "presence_penalty"),
        ("a finite number", _is_number),
    ),
    **dict.fromkeys(("seed", "top_logprobs"), ("a whole number", _is_whole)),
    **dict.fromkeys(("logprobs", "store", "parallel_tool_calls"), ("True or False", _is_flag)),
    **dict.fromkeys(
        ("user", "safety_identifier", "prompt_cache_key", "reasoning_effort", "verbosity"),
        ("text", _is_text),
    ),
    "stop": ("text or a list of texts", _is_stop),
    "logit_bias": ("a mapping of token ids to finite numbers", _is_bias),
    "metadata": ("a mapping of text to text", _is_metadata),
    "tools": (_TOOL_FORM, _are_tools),
    "tool_choice": ("text or {'type': 'function', 'function': {'name': ...}}", _is_choice_of_tool),
    "functions": ("a list of {'name': ...}", _are_functions),
    "function_call": ("text or {'name': ...}", _is_choice_of_function),
    "response_format": (_FORMAT_FORM, _is_format),
    "extra_headers": (_HEADER_FORM, _is_headers),
    **dict.fromkeys(
        ("n", "max_tokens", "max_completion_tokens", "timeout", "extra_body"), _CHECKED_ELSEWHERE
    ),
}
"""The arguments that change neither the price nor who answers: what each must be, and a test.

Not among those of OpenAI: ``audio`` and ``modalities`` (sound has its own price), ``prediction``
(billed beyond ``max_tokens``), ``service_tier``, ``web_search_options``, ``prompt_cache_options``
and ``prompt_cache_retention`` (billed apart), ``moderation``, ``stream`` and ``stream_options``.
"""
