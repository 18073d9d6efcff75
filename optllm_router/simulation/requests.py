"""What the simulation reads of OpenAI's requests, and how it refuses them: bytes in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optllm_router.simulation.schemas import SchemaError, instance
from optllm_router.simulation.tools import Tool, called, read_tools

# Parameters that would change the answer and that no model here honours, with the values that
# ask for nothing. Others (temperature, seed, user, ...) do not matter to models like these.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "audio": ({},),
    "modalities": (["text"],),
}
_MOST_CHOICES = 128
_MOST_TOP_LOGPROBS = 20
_MOST_INPUTS = 2048
_MOST_DIMENSIONS = 3072
_DIMENSIONS = 64


class ChatError(Exception):
    """A request that is answered with an OpenAI error body.

    Attributes:
        status: HTTP status.
        body: the encoded JSON object to send.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = encode({"error": error})


@dataclass(frozen=True)
class ChatRequest:
    """What the simulation reads of a request for a chat completion.

    Attributes:
        model: who is asked.
        prompt: text of the last user turn.
        context: text of all other messages, tools and schemas: it costs tokens.
        images: how many; nobody here looks at them, but they cost tokens.
        sounds: as ``images``.
        max_tokens: bound on each answer, >= 1, or None.
        stream: whether events are wanted.
        include_usage: whether the stream ends with a usage block.
        choices: how many answers are wanted.
        top_logprobs: how many alternatives to each token are wanted; None for no logprobs.
        stop: what ends an answer before it is said.
        calls: the tools to call instead of an answer in words.
        schema: what the answer must be an instance of, or None.
    """

    model: str
    prompt: str
    context: str
    images: int = 0
    sounds: int = 0
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    top_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    calls: tuple[Tool, ...] = ()
    schema: Mapping[str, Any] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing but text."""
        return not self.calls and self.schema is None


@dataclass(frozen=True)
class EmbeddingRequest:
    """What the simulation reads of a request for embeddings.

    Attributes:
        model: who is asked.
        texts: what to embed; token ids are taken for words.
        dimensions: length of each vector.
        base64: whether vectors are wanted as base64 of little-endian 32-bit floats.
    """

    model: str
    texts: tuple[str, ...]
    dimensions: int
    base64: bool


def parse_chat(body: bytes) -> ChatRequest:
    """Read the body of a request for a chat completion.

    Raises:
        ChatError: 400, naming what is wrong or not supported.
    """
    fields = _fields(body)
    for name, harmless in _UNSUPPORTED.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise _unsupported(name, value)
    prompt, context, attached, is_asked = _conversation(fields.get("messages"))
    schema = _schema(fields.get("response_format"))
    tools = read_tools(fields.get("tools"), fields.get("tool_choice"))
    if tools is None:
        raise _wrong("tools", "a list of functions, with a 'tool_choice' among them")
    rules = [json.dumps(tool.definition) for tool in tools.offered]
    if schema is not None:
        rules.append(json.dumps(schema))
    options = fields.get("stream_options")
    parallel = fields.get("parallel_tool_calls") is not False
    return ChatRequest(
        model=_model(fields),
        prompt=prompt,
        context="\n".join([context, *rules]),
        images=attached["image_url"],
        sounds=attached["input_audio"],
        max_tokens=_max_tokens(fields),
        stream=bool(fields.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        choices=_whole(fields, "n", 1, _MOST_CHOICES) or 1,
        top_logprobs=_top_logprobs(fields),
        stop=_stop(fields.get("stop")),
        calls=called(tools, prompt, is_asked=is_asked, parallel=parallel),
        schema=schema,
    )


def parse_embedding(body: bytes) -> EmbeddingRequest:
    """Read the body of a request for embeddings.

    Raises:
        ChatError: 400, naming what is wrong or not supported.
    """
    fields = _fields(body)
    given = fields.get("input")
    items: list[Any] = given if isinstance(given, list) and not _are_tokens(given) else [given]
    texts = [" ".join(map(str, i)) if _are_tokens(i) else i for i in items]
    if not 0 < len(texts) <= _MOST_INPUTS or not all(isinstance(t, str) and t for t in texts):
        raise _wrong("input", f"text, tokens, or a list of at most {_MOST_INPUTS} of them")
    encoding = fields.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", "'float' or 'base64'")
    dimensions = _whole(fields, "dimensions", 1, _MOST_DIMENSIONS) or _DIMENSIONS
    return EmbeddingRequest(
        _model(fields), tuple(map(str, texts)), dimensions, encoding == "base64"
    )


def encode(content: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, because a prompt may hold half a surrogate pair that UTF-8 cannot carry."""
    return json.dumps(content, separators=(",", ":")).encode()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError(400, "The body of the request is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise ChatError(400, "The body of the request must be a JSON object.")
    return fields


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str):
        raise ChatError(400, f"'model' must be a string, not {json.dumps(model)}.", param="model")
    return model


def _conversation(messages: Any) -> tuple[str, str, Counter[str], bool]:
    """The prompt, all other text, what is attached by kind, and whether the user spoke last."""
    if not isinstance(messages, list) or not messages:
        raise ChatError(
            400, "'messages' must be a list with at least one message.", param="messages"
        )
    texts: list[str] = []
    attached: Counter[str] = Counter()
    for message in messages:
        text, kinds = _content(message)
        texts.append(text)
        attached.update(kinds)
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise ChatError(400, "'messages' has no message with role 'user'.", param="messages")
    prompt = texts.pop(users[-1])
    return prompt, "\n".join(texts), attached, users[-1] == len(messages) - 1


def _content(message: Any) -> tuple[str, list[str]]:
    """The text of a message, and the kind of each thing attached to it."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ChatError(400, "Every message must be an object with a 'role'.", param="messages")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return json.dumps(message["tool_calls"]), []
    if isinstance(content, str):
        return content, []
    parts = content if isinstance(content, list) else [content]
    kinds = [_attachment(part) for part in parts]
    texts = [
        part.get("text") if isinstance(part, dict) else None
        for part, kind in zip(parts, kinds, strict=True)
        if kind is None
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ChatError(
            400, "Content must be text, images or sounds in their usual form.", param="messages"
        )
    return "".join(map(str, texts)), [kind for kind in kinds if kind is not None]


def _attachment(part: Any) -> str | None:
    """``image_url`` or ``input_audio``; ``None`` for what is not attached."""
    kind = part.get("type") if isinstance(part, dict) else None
    is_known = kind in ("image_url", "input_audio") and isinstance(part.get(kind), dict)
    return kind if is_known else None


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    bounds = [_whole(fields, name, 1) for name in ("max_completion_tokens", "max_tokens")]
    return next((bound for bound in bounds if bound is not None), None)


def _top_logprobs(fields: Mapping[str, Any]) -> int | None:
    top = _whole(fields, "top_logprobs", 0, _MOST_TOP_LOGPROBS)
    if not fields.get("logprobs"):
        if top:
            raise _wrong("top_logprobs", "left out, or used with logprobs")
        return None
    return top or 0


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", "text, or a list of texts")
    return tuple(stops)


def _schema(given: Any) -> Mapping[str, Any] | None:
    kind = given.get("type") if isinstance(given, dict) else given
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    wanted = given.get("json_schema") if kind == "json_schema" else None
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    if not isinstance(schema, dict):
        raise _wrong("response_format", "text, json_object, or json_schema with its schema")
    try:
        instance(schema)
    except SchemaError as error:
        message = f"No instance of the schema in response_format can be made here: {error}."
        raise ChatError(400, message, param="response_format") from None
    return schema


def _whole(fields: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise _wrong(name, f"an integer {span}, not {json.dumps(value)}")
    return int(value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(type(item) is int for item in value)


def _wrong(name: str, what: str) -> ChatError:
    return ChatError(400, f"'{name}' must be {what}.", param=name)


def _unsupported(name: str, value: Any) -> ChatError:
    message = f"The simulated models do not support {name}={json.dumps(value)}; leave it out."
    return ChatError(400, message, param=name, code="unsupported_parameter")
