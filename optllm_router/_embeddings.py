"""Between OpenAI's embeddings API and ours: arguments in, a list of vectors out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from optllm_router._arguments import (
    check_json,
    checked_headers,
    given_arguments,
    take_switches,
)
from optllm_router._chat import Prepared
from optllm_router._errors import InvalidRequestError, UnknownModelError
from optllm_router._nearest import quoted
from optllm_router._options import Options, narrowed_by_call
from optllm_router._query import Query
from optllm_router._steps import Answer
from optllm_router._types import Call, Candidate
from optllm_router.candidates import unknown_model
from optllm_router.config import Settings
from optllm_router.pricing import most_prompt_tokens, size_in_bytes

_MOST_TEXTS = 2048
_MOST_BYTES = 20_000_000
_ARGUMENTS = (
    *("input", "model", "dimensions", "encoding_format", "user"),
    *("extra_headers", "extra_body", "timeout"),
)
ENCODINGS = ("float", "base64")


def prepare_embedding(
    arguments: Mapping[str, Any],
    candidates: Sequence[Candidate],
    options: Options,
    settings: Settings,
) -> Prepared:
    """Check the arguments of ``embeddings.create``, and find the model.

    Args:
        arguments: all of them.
        candidates: those for embeddings; vectors of two models cannot be compared, so the
            model ``auto`` stands for the only one.
        options: those of the client; the call's own narrow them.
        settings: of the client: its time limit, and its named policies.

    Raises:
        InvalidRequestError: names the argument, its value and the remedy.
        UnknownModelError: no candidate for embeddings has that name.
    """
    given = given_arguments(arguments)
    for name in given:
        if name not in _ARGUMENTS:
            raise InvalidRequestError(
                f"argument {quoted(name)} is not taken; leave it out", param=name
            )
    candidate = _candidate(given.pop("model", "auto"), candidates)
    ours, timeout = take_switches(given), given.pop("timeout", None)
    options = narrowed_by_call(options, ours, timeout, settings.policies)
    if given.get("encoding_format", ENCODINGS[0]) not in ENCODINGS:
        raise InvalidRequestError(
            f"encoding_format {quoted(given['encoding_format'])} must be {' or '.join(ENCODINGS)}",
            param="encoding_format",
        )
    inputs = _inputs(given.get("input"))
    call = Call(
        messages=[{"role": "user", "content": text} for text in inputs],
        parameters=_parameters(given),
        timeout_seconds=options.timeout_seconds or settings.timeout_seconds,
        prompt_bytes=sum(map(_size, inputs)),
        most_prompt_tokens=_most_tokens(inputs),
        operation="embedding",
        required_tags=frozenset(options.require_tags),
        forbidden_tags=frozenset(options.forbid_tags),
        max_retries=options.max_retries,
        scopes=options.scopes,
    )
    if call.prompt_bytes > _MOST_BYTES:
        raise InvalidRequestError(
            f"input has {call.prompt_bytes} bytes; at most {_MOST_BYTES} are taken", param="input"
        )
    if missing := call.required_tags - candidate.tags:
        raise InvalidRequestError(
            f"model {candidate.name!r} has no tag {min(missing)!r}, which the call requires",
            param="model",
        )
    if unwanted := call.forbidden_tags & candidate.tags:
        raise InvalidRequestError(
            f"model {candidate.name!r} has the tag {min(unwanted)!r}, which the call forbids",
            param="model",
        )
    return Prepared(Query("", call, scopes=options.scopes), candidate.name, options)


def embedding_body(answer: Answer, encoding: str) -> dict[str, Any]:
    """The answer as JSON values, with its vectors as floats or in base64."""
    encode = _as_base64 if encoding == "base64" else _as_floats
    body = answer.completion.body
    data = [
        {"object": "embedding", "index": index, "embedding": encode(one["embedding"])}
        for index, one in enumerate(body["data"])
    ]
    tokens = answer.usage.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": body.get("model") or answer.candidate.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _candidate(model: Any, candidates: Sequence[Candidate]) -> Candidate:
    if not candidates:
        raise UnknownModelError(
            "no model for embeddings is configured; add one, like 'openai/text-embedding-3-small'"
        )
    if model == "auto" and len(candidates) == 1:
        return candidates[0]
    names = [candidate.name for candidate in candidates]
    if model == "auto":
        raise InvalidRequestError(
            f"model 'auto' could be any of {', '.join(map(repr, names))}, whose vectors cannot be "
            "compared; name one",
            param="model",
        )
    if model not in names:
        raise unknown_model(str(model), names)
    return candidates[names.index(model)]


def _inputs(given: Any) -> Sequence[str | Sequence[int]]:
    """The texts, or their tokens, that are to have a vector each."""
    many = [given] if isinstance(given, str) or _is_tokens(given) else given
    if not isinstance(many, (list, tuple)) or not 1 <= len(many) <= _MOST_TEXTS:
        shown = f"has {len(many)} entries" if isinstance(many, (list, tuple)) else "is no list"
        raise InvalidRequestError(
            f"input {shown}; pass text, or a list of 1 to {_MOST_TEXTS} texts or lists of tokens",
            param="input",
        )
    for position, one in enumerate(many):
        if not (isinstance(one, str) and one) and not _is_tokens(one):
            raise InvalidRequestError(
                f"input[{position}] must be text or a list of tokens, and not be empty",
                param=f"input[{position}]",
            )
        check_json(f"input[{position}]", one)
    return many


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)
    )


def _size(one: str | Sequence[int]) -> int:
    return len(one.encode()) if isinstance(one, str) else len(one)


def _most_tokens(inputs: Sequence[str | Sequence[int]]) -> int:
    messages = [{"role": "user", "content": one} for one in inputs if isinstance(one, str)]
    tokens = sum(len(one) for one in inputs if not isinstance(one, str))
    return tokens + most_prompt_tokens(messages, size_in_bytes(messages), tools=False)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    dimensions, user = given.get("dimensions"), given.get("user")
    whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (whole and dimensions >= 1):
        raise InvalidRequestError(
            f"dimensions {quoted(dimensions)} must be a whole number, 1 or more", param="dimensions"
        )
    if user is not None and not isinstance(user, str):
        raise InvalidRequestError(f"user must be text, not {type(user).__name__}", param="user")
    check_json("user", user)
    found = {"dimensions": dimensions, "user": user, "extra_body": given.get("extra_body")}
    found["extra_headers"] = checked_headers(given.get("extra_headers"))
    return {name: value for name, value in found.items() if value is not None}


def _as_base64(vector: str | Sequence[float]) -> str:
    if isinstance(vector, str):
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _as_floats(vector: str | Sequence[float]) -> list[float]:
    if not isinstance(vector, str):
        return list(vector)
    raw = base64.b64decode(vector)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))
