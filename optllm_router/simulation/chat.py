"""The OpenAI chat-completion protocol, as far as the simulation speaks it: bytes in, bytes out."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optllm_router.simulation.replies import Reply

# Parameters that would change the answer and that no model here honours, with the values that
# ask for nothing. Others (temperature, seed, user, ...) do not matter to models like these.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False,),
    "stop": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# Characters in one event of a stream.
_PIECE = 24


class ChatError(Exception):
    """A request that is answered with an OpenAI error body.

    Attributes:
        status: HTTP status.
        body: the encoded JSON object to send.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = _encode({"error": error})


@dataclass(frozen=True)
class ChatRequest:
    """What the simulation reads of a request.

    Attributes:
        model: who is asked.
        prompt: text of the last user turn.
        context: text of all other messages.
        max_tokens: bound on the answer, >= 1, or None.
        stream: whether events are wanted.
        include_usage: whether the stream ends with a usage block.
    """

    model: str
    prompt: str
    context: str
    max_tokens: int | None
    stream: bool
    include_usage: bool


def parse_request(body: bytes) -> ChatRequest:
    """Read a request body.

    Raises:
        ChatError: 400, naming what is wrong or not supported.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError(400, "The body of the request is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise ChatError(400, "The body of the request must be a JSON object.")
    for name, harmless in _UNSUPPORTED.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            message = (
                f"The simulated models do not support {name}={json.dumps(value)}; leave it out."
            )
            raise ChatError(400, message, param=name, code="unsupported_parameter")
    model = fields.get("model")
    if not isinstance(model, str):
        raise ChatError(400, f"'model' must be a string, not {json.dumps(model)}.", param="model")
    prompt, context = _split_messages(fields.get("messages"))
    options = fields.get("stream_options")
    return ChatRequest(
        model=model,
        prompt=prompt,
        context=context,
        max_tokens=_max_tokens(fields),
        stream=bool(fields.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def completion(request: ChatRequest, reply: Reply, finish_reason: str) -> bytes:
    """Encode a whole answer."""
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    envelope = _envelope(request, "chat.completion")
    return _encode({**envelope, "choices": [choice], "usage": _usage(reply)})


def events(request: ChatRequest, reply: Reply, finish_reason: str) -> Iterator[bytes]:
    """Encode an answer as server-sent events, the last being ``[DONE]``."""
    envelope = _envelope(request, "chat.completion.chunk")
    if request.include_usage:
        envelope["usage"] = None
    text = reply.text
    pieces = [{"content": text[start : start + _PIECE]} for start in range(0, len(text), _PIECE)]
    for delta in ({"role": "assistant", "content": ""}, *pieces):
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield _event({**envelope, "choices": [choice]})
    choice = {"index": 0, "delta": {}, "finish_reason": finish_reason}
    yield _event({**envelope, "choices": [choice]})
    if request.include_usage:
        yield _event({**envelope, "choices": [], "usage": _usage(reply)})
    yield b"data: [DONE]\n\n"


def _split_messages(messages: Any) -> tuple[str, str]:
    if not isinstance(messages, list) or not messages:
        raise ChatError(
            400, "'messages' must be a list with at least one message.", param="messages"
        )
    texts = [_text(message) for message in messages]
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise ChatError(400, "'messages' has no message with role 'user'.", param="messages")
    prompt = texts.pop(users[-1])
    return prompt, "\n".join(texts)


def _text(message: Any) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ChatError(400, "Every message must be an object with a 'role'.", param="messages")
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ChatError(400, "The simulated models only read text content.", param="messages")
    return "".join(map(str, texts))


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            message = f"'{name}' must be an integer of at least 1, not {json.dumps(value)}."
            raise ChatError(400, message, param=name)
        return value
    return None


def _envelope(request: ChatRequest, kind: str) -> dict[str, Any]:
    identifier = f"chatcmpl-sim-{uuid.uuid4().hex}"
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": request.model}


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _encode(content: Mapping[str, Any]) -> bytes:
    # Escaped to ASCII, because a prompt may hold half a surrogate pair that UTF-8 cannot carry.
    return json.dumps(content, separators=(",", ":")).encode()


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + _encode(content) + b"\n\n"
