"""Answers in OpenAI's formats: bytes out."""

from __future__ import annotations

import base64
import itertools
import math
import struct
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optllm_router._types import Usage
from optllm_router.simulation.answers import Answer, logprobs
from optllm_router.simulation.replies import count_tokens
from optllm_router.simulation.requests import ChatRequest, EmbeddingRequest, encode
from optllm_router.simulation.stable_hash import stable_integer

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Event:
    """A server-sent event.

    Attributes:
        data: what goes over the wire.
        tokens: completion tokens generated, once it is sent.
    """

    data: bytes
    tokens: int


def completion(request: ChatRequest, answers: Sequence[Answer], usage: Usage) -> bytes:
    """Encode whole answers."""
    choices = []
    for index, answer in enumerate(answers):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": _logprobs(request, answer.text),
                "finish_reason": answer.finish_reason,
            }
        )
    envelope = _envelope(request.model, "chat.completion")
    return encode({**envelope, "choices": choices, "usage": _usage(usage)})


def events(
    request: ChatRequest, answers: Sequence[Answer], usage: Usage, chunk_tokens: int
) -> Iterator[Event]:
    """Encode answers as server-sent events, the choices in turn, the last being ``[DONE]``."""
    envelope = _envelope(request.model, "chat.completion.chunk")
    if request.include_usage:
        envelope["usage"] = None
    generated = [0] * len(answers)
    streams = (_deltas(request, answer, chunk_tokens) for answer in answers)
    for turn in itertools.zip_longest(*streams):
        for index, step in enumerate(turn):
            if step is not None:
                choice, generated[index] = {"index": index, **step[0]}, step[1]
                yield Event(event({**envelope, "choices": [choice]}), sum(generated))
    if request.include_usage:
        counted = event({**envelope, "choices": [], "usage": _usage(usage)})
        yield Event(counted, usage.completion_tokens)
    yield Event(DONE, usage.completion_tokens)


def event(content: Mapping[str, Any]) -> bytes:
    """Encode one server-sent event."""
    return b"data: " + encode(content) + b"\n\n"


def embeddings(request: EmbeddingRequest, usage: Usage) -> bytes:
    """Encode one vector for each text."""
    vectors = [_vector(text, request.dimensions) for text in request.texts]
    data = [
        {"object": "embedding", "index": i, "embedding": _packed(v) if request.base64 else v}
        for i, v in enumerate(vectors)
    ]
    counted = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return encode({"object": "list", "data": data, "model": request.model, "usage": counted})


def _deltas(
    request: ChatRequest, answer: Answer, chunk_tokens: int
) -> Iterator[tuple[dict[str, Any], int]]:
    for delta, tokens in answer.pieces(chunk_tokens):
        choice = {"delta": delta, "finish_reason": None}
        if request.top_logprobs is not None:
            choice["logprobs"] = _logprobs(request, delta.get("content"))
        yield choice, tokens
    yield {"delta": {}, "finish_reason": answer.finish_reason}, answer.tokens


def _logprobs(request: ChatRequest, text: str | None) -> dict[str, Any] | None:
    return (
        None if not text or request.top_logprobs is None else logprobs(text, request.top_logprobs)
    )


def _vector(text: str, dimensions: int) -> list[float]:
    """A bag of hashed words, of length 1: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in text.lower().split():
        number = stable_integer("embedding", word)
        vector[number % dimensions] += 1.0 if number >> 63 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:
        return [1.0, *vector[1:]]
    return [value / length for value in vector]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _envelope(model: str, kind: str) -> dict[str, Any]:
    identifier = f"chatcmpl-sim-{uuid.uuid4().hex}"
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": model}


def _usage(usage: Usage) -> dict[str, Any]:
    block: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.audio_tokens:
        block["prompt_tokens_details"] = {"audio_tokens": usage.audio_tokens}
    return block


def embedding_usage(request: EmbeddingRequest) -> Usage:
    """What is billed for the texts."""
    return Usage(sum(map(count_tokens, request.texts)), 0)
