"""What a call needs; which candidates cannot serve it, and why. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
_BYTES_PER_TOKEN = 4
"""English has a little over four bytes per token, everything else fewer: what is too long by this
count is too long. What is too long only by the provider's is refused there, and falls back."""


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
    set one, is more than the context has tokens.

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
    return InvalidRequestError(message, param=param)


def _reason(candidate: Candidate, call: Call) -> str:
    if candidate.operation != call.operation:
        return f"is for {candidate.operation}, not for {call.operation}"
    if lacking := call.needs & candidate.unable:
        return " and ".join(_LACK[capability] for capability in sorted(lacking))
    if missing := call.required_tags - candidate.tags:
        return f"is not tagged {' or '.join(map(repr, sorted(missing)))}"
    if unwanted := call.forbidden_tags & candidate.tags:
        return f"is tagged {' and '.join(map(repr, sorted(unwanted)))}"
    if candidate.context_tokens is None:
        return ""
    prompt, answer = call.prompt_bytes // _BYTES_PER_TOKEN, call.max_output_tokens or 0
    if prompt + answer <= candidate.context_tokens:
        return ""
    room = f", with {answer} for the answer," if answer else ""
    return (
        f"has room for {candidate.context_tokens} tokens, and the prompt has about {prompt}{room}"
    )
