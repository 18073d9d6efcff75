"""The OpenAPI document: what the server accepts, no more and no less than it does.

It is written by hand: OpenAI's own document allows much that is refused here, because nobody
could say beforehand what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from optllm_router import __version__

if TYPE_CHECKING:
    from optllm_router.server.options import Limits

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_SHORT: Schema = {"type": "string", "maxLength": 1000}
_WHOLE: Schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_NUMBER: Schema = {"type": "number"}
_OBJECT: Schema = {"type": "object"}
_NAMED: Schema = {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _object(properties: dict[str, Schema], required: tuple[str, ...] = (), **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _mapping(values: Schema, *, most: int, longest_name: int) -> Schema:
    names = {"type": "string", "maxLength": longest_name}
    return {
        "type": "object",
        "additionalProperties": values,
        "maxProperties": most,
        "propertyNames": names,
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _tagged(kind: str, value: Schema, **more: Any) -> Schema:
    """An object with ``type``, and under that name what it is."""
    properties = {"type": {"const": kind}, kind: value}
    return _object(properties, ("type", kind), **more)


def _allowed(tool: Schema, **more: Schema) -> Schema:
    """The tools that may be called, of those given."""
    properties = {**more, "mode": {"enum": ["auto", "required"]}, "tools": _list(tool)}
    return _object(properties, tuple(properties), additionalProperties=False)


_IMAGE = _object(
    {
        "url": {
            "type": "string",
            "pattern": "^(data:image/|https?://)",
            "description": "of an image, not of a document or a video",
        },
        "detail": {"enum": ["auto", "low", "high"]},
    },
    ("url",),
    additionalProperties=False,
)
_SOUND = _object(
    {
        "data": {
            "type": "string",
            "pattern": "^[A-Za-z0-9+/]{4,}={0,2}$",
            "description": "base64 of WAV with plain samples, or of MP3",
        },
        "format": {"enum": ["wav", "mp3"]},
    },
    ("data", "format"),
    additionalProperties=False,
)
_PART = {
    "oneOf": [
        _tagged("text", _TEXT),
        _tagged("image_url", _IMAGE, additionalProperties=False),
        _tagged("input_audio", _SOUND, additionalProperties=False),
    ]
}
_TOOL_CALL = {
    "oneOf": [
        _tagged("function", _object({"name": _TEXT, "arguments": _TEXT}, ("name", "arguments"))),
        _tagged("custom", _object({"name": _TEXT, "input": _TEXT}, ("name", "input"))),
    ]
}
_CONTENT: Schema = {"anyOf": [_TEXT, _list(_ref("Part"), minItems=1)]}
_SAID: Schema = {
    "anyOf": [_TEXT, _list({"anyOf": [_ref("Part"), _tagged("refusal", _TEXT)]}, minItems=1)]
}


def _message(*roles: str, content: Schema = _CONTENT, **more: Schema) -> Schema:
    """A message of these roles; ``more`` are properties, all but ``tool_calls`` required."""
    properties = {"role": {"enum": list(roles)}, "content": content, "name": _TEXT, **more}
    needed = [name for name in more if name != "tool_calls"]
    return _object(properties, ("role", "content", *needed))


_MESSAGE = {
    "anyOf": [
        _message("system", "developer", "user"),
        _message("assistant", content=_or_null(_SAID), tool_calls=_list(_ref("ToolCall"))),
        _message("tool", tool_call_id=_TEXT),
        _message("function", content=_or_null(_TEXT), name=_TEXT),
    ]
}
_TOOL = {
    "oneOf": [
        _tagged("function", _NAMED, additionalProperties=False),
        _tagged("custom", _NAMED, additionalProperties=False),
    ]
}
_FORMAT = {
    "oneOf": [
        _object({"type": {"const": "text"}}, ("type",)),
        _object({"type": {"const": "json_object"}}, ("type",)),
        _tagged("json_schema", _NAMED),
    ]
}
_NAME: Schema = {"type": "string", "pattern": "^[ -~]{1,200}$", "description": "printable text"}
_NAMES: Schema = {"anyOf": [_NAME, {"type": "array", "items": _NAME, "maxItems": 50}]}
_POLICIES = r"max_success|match_best|(min_cost|willingness_to_pay):0\.\d{1,6}"
_ROUTING = _object(
    {
        "policy": {"type": "string", "pattern": f"^({_POLICIES})$"},
        **dict.fromkeys(("tenant", "user", "job", "conversation"), _NAME),
        **dict.fromkeys(("tags", "require_tags", "forbid_tags"), _NAMES),
    },
    additionalProperties=False,
    description="How this call is decided and whose budgets pay; what OpenAI's clients send as "
    "extra_body. Only a key of scope 'everything' may name a tenant, user, job or tags.",
)
_SAMPLING: dict[str, Schema] = {
    name: {"type": ["number", "boolean", "null"]}
    for name in (
        *("top_k", "min_p", "top_a", "typical_p", "repetition_penalty", "length_penalty"),
        *("min_tokens", "ignore_eos", "skip_special_tokens", "enable_thinking"),
        *("spaces_between_special_tokens", "include_stop_str_in_output"),
    )
}
"""What open models' servers take beside OpenAI's own fields."""
_CHAT: dict[str, Schema] = {
    "messages": _list(_ref("Message"), minItems=1, maxItems=10_000),
    "model": {
        "type": "string",
        "description": "'auto' to choose, 'auto:POLICY' to choose by that policy, or the name of a "
        "model to pin it.",
        "examples": ["auto"],
    },
    **dict.fromkeys(
        ("temperature", "top_p", "frequency_penalty", "presence_penalty"), _or_null(_NUMBER)
    ),
    **dict.fromkeys(("seed", "top_logprobs"), _or_null(_WHOLE)),
    **dict.fromkeys(("logprobs", "parallel_tool_calls"), _or_null(_FLAG)),
    "store": {"enum": [False, None], "description": "Answers are not kept."},
    **dict.fromkeys(
        ("user", "safety_identifier", "prompt_cache_key", "reasoning_effort", "verbosity"),
        _or_null(_SHORT),
    ),
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens"), _or_null({"type": "integer", "minimum": 1})
    ),
    "n": _or_null({"type": "integer", "minimum": 1, "maximum": 128}),
    "stop": {"anyOf": [_SHORT, _list(_SHORT, maxItems=16), {"type": "null"}]},
    "logit_bias": _or_null(_mapping(_NUMBER, most=2000, longest_name=20)),
    "metadata": _or_null(_mapping({"type": "string", "maxLength": 512}, most=16, longest_name=64)),
    "tools": _or_null(_list(_ref("Tool"), maxItems=1000)),
    "tool_choice": {
        "anyOf": [
            _TEXT,
            _tagged("function", _NAMED),
            _tagged("custom", _NAMED),
            _tagged("allowed_tools", _allowed(_ref("Tool"))),
            {"type": "null"},
        ]
    },
    "functions": _or_null(_list(_NAMED, maxItems=1000)),
    "function_call": {"anyOf": [_TEXT, _NAMED, {"type": "null"}]},
    "response_format": _or_null(_FORMAT),
    "stream": _or_null(_FLAG),
    "stream_options": _or_null(
        _object({"include_usage": _FLAG, "include_obfuscation": _FLAG}, additionalProperties=False)
    ),
}
_INPUT_PART = {
    "anyOf": [
        _object({"type": {"enum": ["input_text", "output_text"]}, "text": _TEXT}, ("type", "text")),
        _object({"type": {"const": "input_image"}, "image_url": _TEXT}, ("type", "image_url")),
        _tagged("input_audio", _SOUND, additionalProperties=False),
    ]
}
_INPUT_ITEM = {
    "oneOf": [
        _object(
            {
                "type": {"const": "message"},
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {"anyOf": [_TEXT, _list(_ref("InputPart"))]},
            },
            ("role", "content"),
        ),
        _object(
            {
                "type": {"const": "function_call"},
                **dict.fromkeys(("call_id", "name", "arguments"), _TEXT),
            },
            ("type", "call_id", "name", "arguments"),
        ),
        _object(
            {"type": {"const": "function_call_output"}, "call_id": _TEXT, "output": _TEXT},
            ("type", "call_id", "output"),
        ),
    ]
}
_RESPONSE_TOOL = _object(
    {"type": {"enum": ["function", "custom"]}, "name": _TEXT, "parameters": _OBJECT},
    ("type", "name"),
)
_SHARED = ("model", "temperature", "top_p", "metadata", "user", "safety_identifier")
_RESPONSE: dict[str, Schema] = {
    **{name: _CHAT[name] for name in _SHARED},
    **{name: _CHAT[name] for name in ("prompt_cache_key", "parallel_tool_calls", "stream")},
    "top_logprobs": _CHAT["top_logprobs"],
    "input": {"anyOf": [_TEXT, _list(_ref("InputItem"), minItems=1)]},
    "instructions": _or_null(_TEXT),
    "max_output_tokens": _CHAT["max_tokens"],
    "text": _or_null(
        _object(
            {"verbosity": _or_null(_SHORT), "format": _or_null(_OBJECT)},
            additionalProperties=False,
        )
    ),
    "reasoning": _or_null(_object({"effort": _or_null(_SHORT)}, additionalProperties=False)),
    "tools": _or_null(_list(_RESPONSE_TOOL, maxItems=1000)),
    "tool_choice": {
        "anyOf": [
            _TEXT,
            _RESPONSE_TOOL,
            _allowed(_RESPONSE_TOOL, type={"const": "allowed_tools"}),
            {"type": "null"},
        ]
    },
    "include": _or_null(
        _list({"enum": ["message.output_text.logprobs", "reasoning.encrypted_content"]})
    ),
    "store": {"enum": [False, None], "description": "Answers are not kept."},
}
_TOKENS = _list({"type": "integer", "minimum": 0}, minItems=1)
_EMBEDDING: dict[str, Schema] = {
    "input": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            _TOKENS,
            _list(
                {"anyOf": [{"type": "string", "minLength": 1}, _TOKENS]},
                minItems=1,
                maxItems=2048,
            ),
        ]
    },
    "model": _CHAT["model"],
    "dimensions": _or_null({"type": "integer", "minimum": 1}),
    "encoding_format": {"enum": ["float", "base64"]},
    "user": _or_null(_TEXT),
}
_FEEDBACK: dict[str, Schema] = {
    "id": {"type": "string", "description": "of the answer"},
    "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "0 wrong, 1 right"},
}
FEEDBACK_FIELDS = frozenset(_FEEDBACK)

_USAGE = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _WHOLE))
_COMPLETION = _object(
    {
        "id": {"type": "string", "description": "what /v1/feedback takes"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": _list(_OBJECT),
        "usage": _USAGE,
    },
    ("id", "object", "model", "choices"),
)
_ANSWERED_RESPONSE = _object(
    {
        "id": {"type": "string", "description": "what /v1/feedback takes"},
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "model": _TEXT,
        "output": _list(_OBJECT),
    },
    ("id", "object", "status", "model", "output"),
)
_EMBEDDINGS = _object(
    {"object": {"const": "list"}, "data": _list(_OBJECT), "model": _TEXT, "usage": _OBJECT},
    ("object", "data", "model", "usage"),
)
_MODEL = _object(
    {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _TEXT,
    },
    ("id", "object", "created", "owned_by"),
)
_ERROR = _object(
    {
        "error": _object(
            {
                "message": _TEXT,
                "type": _TEXT,
                "param": _or_null(_TEXT),
                "code": _or_null(_TEXT),
            },
            ("message", "type", "param", "code"),
        )
    },
    ("error",),
)


def _request(properties: dict[str, Schema], asked: str) -> Schema:
    """A request for an answer to what stands under ``asked``."""
    everything = {**properties, "optllm": _ref("Routing")}
    return _object(everything, (asked, "model"), additionalProperties=False)


_SCHEMAS = {
    "Part": _PART,
    "ToolCall": _TOOL_CALL,
    "Message": _MESSAGE,
    "Tool": _TOOL,
    "Routing": _ROUTING,
    "ChatCompletionRequest": _request({**_CHAT, **_SAMPLING}, "messages"),
    "ChatCompletion": _COMPLETION,
    "InputItem": _INPUT_ITEM,
    "InputPart": _INPUT_PART,
    "ResponseRequest": _request({**_RESPONSE, **_SAMPLING}, "input"),
    "Response": _ANSWERED_RESPONSE,
    "EmbeddingRequest": _request(_EMBEDDING, "input"),
    "Embeddings": _EMBEDDINGS,
    "FeedbackRequest": _object(_FEEDBACK, ("id", "score"), additionalProperties=False),
    "Feedback": _object({"object": {"const": "feedback"}, **_FEEDBACK}),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Error": _ERROR,
}
_MEANINGS = {
    400: "The request is wrong; nothing was sent.",
    401: "No key, or none that works.",
    403: "The key's scope does not allow it.",
    404: "No such model, answer or path.",
    405: "Another method is meant.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body must be application/json.",
    429: "A budget (insufficient_quota) or the router's account with a provider "
    "(provider_quota_exceeded) is used up, or providers ask for fewer calls.",
    431: "The headers are too large.",
    500: "The server failed.",
    502: "A provider gave no usable answer.",
    503: "All candidates failed, or the server has too much to do.",
    504: "No answer in time.",
}
_OF_READING = (401, 405, 431)
_OF_WRITING = (400, 401, 405, 408, 413, 415, 431, 503)
_OF_SENDING = (*_OF_WRITING, 403, 404, 429, 500, 502, 504)


_ANSWERING: dict[str, tuple[str, str, str, bool]] = {
    "/v1/chat/completions": (
        *("createChatCompletion", "Answer a conversation.", "ChatCompletion"),
        True,
    ),
    "/v1/responses": (
        *("createResponse", "The same, in the form of OpenAI's newer API.", "Response"),
        True,
    ),
    "/v1/embeddings": ("createEmbeddings", "Texts as vectors.", "Embeddings", False),
}
ANSWERING_PATHS = tuple(_ANSWERING)
"""Where answers are made, and money is spent."""


def _routing(policies: Iterable[str]) -> Schema:
    """Our own field, where policies of these names are there, too."""
    names = (name.replace(".", r"\.") for name in policies)  # all that is special in a name
    pattern = "|".join((*names, _POLICIES))
    policy = {"type": "string", "pattern": f"^({pattern})$"}
    return {**_ROUTING, "properties": {**_ROUTING["properties"], "policy": policy}}


def document(limits: Limits, policies: Iterable[str] = ()) -> dict[str, Any]:
    """The document of a server with these limits, and policies of these names."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "optllm_router",
            "version": __version__,
            "description": "OpenAI's API, where model 'auto' lets the router choose. "
            f"Bodies have at most {limits.body_bytes} bytes.",
        },
        "paths": {
            **{path: {"post": _answering(*told)} for path, told in _ANSWERING.items()},
            "/v1/feedback": {
                "post": _operation(
                    "createFeedback",
                    "Tell how good an answer was; the next decision already knows.",
                    _ref("Feedback"),
                    (*_OF_WRITING, 403, 404),
                    body=_ref("FeedbackRequest"),
                )
            },
            "/v1/models": {
                "get": _operation("listModels", "What can be asked.", _ref("Models"), _OF_READING)
            },
            "/v1/models/{model}": {
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
                "get": _operation(
                    "retrieveModel", "One of them.", _ref("Model"), (*_OF_READING, 404)
                ),
            },
            "/metrics": {
                "get": _operation(
                    "metrics", "For Prometheus.", _TEXT, (*_OF_READING, 403), kind="text/plain"
                )
            },
            "/health/live": {
                "get": _operation("live", "The process answers.", _OBJECT, (405, 431), open=True)
            },
            "/health/ready": {
                "get": _operation("ready", "It can be used.", _OBJECT, (405, 431, 503), open=True)
            },
            "/openapi.json": {
                "get": _operation("openapi", "This document.", _OBJECT, (405, 431), open=True)
            },
        },
        "components": {
            "schemas": {**_SCHEMAS, "Routing": _routing(policies)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _answering(id: str, summary: str, answer: str, streams: bool) -> dict[str, Any]:
    asked = _ref(f"{answer.removesuffix('s')}Request")
    operation = _operation(id, summary, _ref(answer), _OF_SENDING, body=asked)
    whole = operation["responses"]["200"]
    whole["headers"]["x-optllm-candidate"] = {"schema": _TEXT, "description": "who answered"}
    whole["headers"]["x-optllm-cost-nano"] = {
        "schema": {"type": "integer"},
        "description": "what it cost, in billionths of a USD; not with streams",
    }
    if streams:
        whole["content"]["text/event-stream"] = {}  # events, which a schema does not describe
    return operation


def _operation(
    id: str,
    summary: str,
    answer: Schema,
    errors: tuple[int, ...],
    *,
    body: Schema | None = None,
    kind: str = "application/json",
    open: bool = False,
) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": _response("The answer.", answer, kind)}
    for status in sorted(errors):
        responses[str(status)] = _response(_MEANINGS[status], _ref("Error"), "application/json")
    operation: dict[str, Any] = {"operationId": id, "summary": summary, "responses": responses}
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    if open:
        operation["security"] = []
    return operation


def _response(meaning: str, schema: Schema, kind: str) -> dict[str, Any]:
    request_id = {"schema": _TEXT, "description": "of the request, also in the server's log"}
    return {
        "description": meaning,
        "headers": {"x-request-id": request_id},
        "content": {kind: {"schema": schema}},
    }
