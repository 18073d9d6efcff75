"""What a call needs; which candidates cannot serve it, and why. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optllm_router._bounds import BYTES_PER_TOKEN, LEAST_ANSWER_TOKENS
from optllm_router._dispensable import is_dispensable
from optllm_router._errors import InvalidRequestError
from optllm_router._types import Call, Candidate, Messages

if TYPE_CHECKING:
    from optllm_router._types import Capability

_LACK: dict[Capability, str] = {
    "vision": "takes no images",
    "audio": "takes no audio",
    "tools": "calls no tools",
    "json_schema": "keeps to no JSON schema",
    "streaming": "does not stream",
}


def needs(
    messages: Messages, parameters: Mapping[str, Any], *, streamed: bool
) -> frozenset[Capability]:
    """What a candidate must be able to do to serve a call.

    Args:
        messages: the conversation, as OpenAI's API takes it.
        parameters: further arguments of the API.
        streamed: whether the answer is wanted as it is made.

    >>> picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    >>> sorted(needs([{"role": "user", "content": [picture]}], {"tools": [{}]}, streamed=False))
    ['tools', 'vision']
    """
    kinds = {kind for message in messages for kind in _part_kinds(message.get("content"))}
    schema = parameters.get("response_format")
    wanted: dict[Capability, bool] = {
        "vision": "image_url" in kinds,
        "audio": "input_audio" in kinds,
        "tools": bool(parameters.get("tools") or parameters.get("functions")),
        "json_schema": isinstance(schema, Mapping) and schema.get("type") == "json_schema",
        "streaming": streamed,
    }
    return frozenset(capability for capability, is_wanted in wanted.items() if is_wanted)


def _part_kinds(content: Any) -> set[str]:
    parts = content if isinstance(content, (list, tuple)) else ()
    return {str(part.get("type")) for part in parts if isinstance(part, Mapping)}


def left_out(candidates: Sequence[Candidate], call: Call) -> dict[str, str]:
    """The names of the candidates that cannot serve a call, each with the reason.

    A prompt is too long when a quarter of its bytes, plus the answer's bound where the caller
    set one, else a few words, is more than the context has tokens.

    >>> from decimal import Decimal
    >>> from optllm_router._types import Price
    >>> price = Price(Decimal(1), Decimal(1), "list")
    >>> blind = Candidate("blind", "x/blind", price, 100, unable=frozenset({"vision"}))
    >>> left_out([blind], Call([], needs=frozenset({"vision"})))
    {'blind': 'takes no images'}
    """
    reasons = ((candidate.name, _reason(candidate, call)) for candidate in candidates)
    return {name: reason for name, reason in reasons if reason}


def cannot_serve(
    message: str, candidates: Sequence[Candidate], call: Call, param: str | None = None
) -> InvalidRequestError:
    """The error for a call that none of these candidates can serve.

    Where one of them could if only the prompt were shorter, it has OpenAI's code for that:
    programs then shorten the conversation.
    """
    if len(left_out(candidates, replace(call, prompt_bytes=0))) < len(candidates):
        return InvalidRequestError(message, param="messages", code="context_length_exceeded")
    blamed = _blamed_argument(candidates, call)
    if blamed is None:
        return InvalidRequestError(message, param=param)
    told = (
        f"{message}; leave {blamed} out, or set drop_params: true in the litellm_params of a model"
    )
    return InvalidRequestError(told, param=blamed)


def _blamed_argument(candidates: Sequence[Candidate], call: Call) -> str | None:
    """An argument without which one of the candidates that are left out could serve a call."""
    for candidate in candidates:
        names = _refused(candidate, call)
        if names and not _reason(replace(candidate, refuses=frozenset()), call):
            return names[0]
    return None


def _refused(candidate: Candidate, call: Call) -> list[str]:
    """The arguments of a call that a candidate does not take, and that ask for something."""
    if candidate.refuses.isdisjoint(call.parameters):
        return []
    return [
        name
        for name, value in call.parameters.items()
        if name in candidate.refuses and not is_dispensable(name, value)
    ]


def _reason(candidate: Candidate, call: Call) -> str:
    if candidate.operation != call.operation:
        return f"is for {candidate.operation}, not for {call.operation}"
    if lacking := call.needs & candidate.unable:
        return " and ".join(_LACK[capability] for capability in sorted(lacking))
    if missing := call.required_tags - candidate.tags:
        return f"is not tagged {' or '.join(map(repr, sorted(missing)))}"
    if unwanted := call.forbidden_tags & candidate.tags:
        return f"is tagged {' and '.join(map(repr, sorted(unwanted)))}"
    if refused := _refused(candidate, call):
        return f"does not support {' and '.join(map(repr, refused))}"
    answer, longest = call.max_output_tokens, candidate.longest_answer_tokens
    if answer is not None and longest is not None and answer > longest:
        return f"answers with {longest} tokens at most, and max_tokens is {answer}"
    if candidate.context_tokens is None or call.operation == "embedding":
        return ""
    prompt = call.prompt_bytes // BYTES_PER_TOKEN
    if prompt + (answer or LEAST_ANSWER_TOKENS) <= candidate.context_tokens:
        return ""
    room = f", with {answer} for the answer," if answer else ""
    return (
        f"has room for {candidate.context_tokens} tokens, and the prompt has about {prompt}{room}"
    )
