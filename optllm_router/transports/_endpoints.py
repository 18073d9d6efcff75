"""Where an OpenAI-compatible endpoint is, and what is sent there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from optllm_router._errors import ConfigurationError
from optllm_router._types import Call, Candidate
from optllm_router.transports._secrets import first_line

_OPENAI = "https://api.openai.com/v1"
_PREFIXES = frozenset(
    (
        *("openai", "openai_like", "custom_openai", "litellm_proxy", "hosted_vllm", "vllm"),
        *("ollama", "ollama_chat", "lm_studio", "llamafile"),
    )
)
"""litellm's providers that speak OpenAI's protocol; their name is no part of the model's."""
_OLLAMA = ("ollama", "ollama_chat")
_PATHS = {"chat": "/chat/completions", "embedding": "/embeddings"}
_PORTS = {"http": 80, "https": 443}
_BODY = frozenset(
    (
        *("frequency_penalty", "logit_bias", "logprobs", "metadata", "n", "parallel_tool_calls"),
        *("presence_penalty", "prompt_cache_key", "reasoning_effort", "response_format"),
        *("safety_identifier", "seed", "service_tier", "stop", "store", "stream_options"),
        *("temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity"),
        *("functions", "function_call", "dimensions", "encoding_format"),
    )
)
"""What goes into the body under its own name."""
_PLACE = frozenset(
    ("api_base", "base_url", "organization", "extra_headers", "extra_query", "extra_body")
)
"""What says where to send a call, and what else with it."""
_IGNORED = frozenset(
    (
        *("custom_llm_provider", "drop_params", "max_retries", "num_retries"),
        *("rpm", "tpm", "max_parallel_requests", "weight", "base_model", "mode"),
    )
)
"""litellm's own, which mean nothing here."""


def endpoint(candidate: Candidate) -> str:
    """The URL to send to, with what its entry sets under ``extra_query``.

    Raises:
        ConfigurationError: it is not known, or not one.
    """
    base = _base(candidate)
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"api_base {first_line(repr(base), candidate)} of model {candidate.name!r} is no URL; "
            "write it like http://localhost:8000/v1"
        )
    path, further = _PATHS[candidate.operation], candidate.parameters.get("extra_query")
    if not parts.path.endswith(path):
        parts = parts._replace(path=parts.path.rstrip("/") + path)
    if further:
        query = "&".join(filter(None, (parts.query, urlencode(further))))
        parts = parts._replace(query=query)
    return parts.geturl()


def server_of(candidate: Candidate) -> tuple[str, int] | None:
    """The host and port that a candidate is asked at; ``None`` where only litellm knows them."""
    known = candidate.parameters.get("api_base") or candidate.parameters.get("base_url")
    if candidate.transport == "httpx" and candidate.model.partition("/")[0] == "openai":
        known = _base(candidate)
    try:
        parts = urlsplit(str(known or ""))
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):  # a port that is none; another scheme, or no URL
        return None
    return (parts.hostname, port) if parts.hostname else None


def check(candidate: Candidate) -> None:
    """Raise ``ConfigurationError`` when a candidate cannot be called over plain HTTP."""
    _check_query(candidate)
    endpoint(candidate)
    for name in candidate.parameters:
        if name not in _BODY | _PLACE | _IGNORED:
            raise ConfigurationError(
                f"model {candidate.name!r} sets {name!r}, which transport httpx does not know; "
                "put what its server knows under extra_body, or use transport litellm"
            )
    if _is_openai(candidate) and _key(candidate) is None:
        raise ConfigurationError(
            f"no key for model {candidate.name!r}: set the environment variable OPENAI_API_KEY, "
            "or api_key in its litellm_params"
        )


def _check_query(candidate: Candidate) -> None:
    """Raise for an ``extra_query`` that is none; its values may be secrets, and are not shown."""
    query = candidate.parameters.get("extra_query")
    if query is None:
        return
    texts = isinstance(query, Mapping) and all(
        isinstance(one, str) for pair in query.items() for one in pair
    )
    if not texts:
        raise ConfigurationError(
            f"extra_query of model {candidate.name!r} must be a mapping of texts to texts, like "
            '{api-version: "2025-01-01"}'
        )


def headers(candidate: Candidate, call: Call) -> dict[str, str]:
    """What is sent beside the body; what the configuration sets wins, as it may hold the key."""
    found = {"content-type": "application/json", "accept-encoding": "identity"}
    key = _key(candidate)
    if key is not None:
        found["authorization"] = f"Bearer {key}"
    if candidate.parameters.get("organization"):
        found["openai-organization"] = str(candidate.parameters["organization"])
    for source in (call.parameters, candidate.parameters):
        for name, value in (source.get("extra_headers") or {}).items():
            found[name.lower()] = str(value)
    return found


def body(candidate: Candidate, call: Call, *, streamed: bool = False) -> dict[str, Any]:
    """What is asked for, as OpenAI's API takes it."""
    asked: dict[str, Any] = {}
    for source in (candidate.parameters, call.parameters):
        asked.update(
            (name, value) for name, value in source.items() if name in _BODY and value is not None
        )
    for source in (call.parameters, candidate.parameters):
        asked.update(source.get("extra_body") or {})
    asked["model"] = _model(candidate)
    if call.operation == "embedding":
        asked["input"] = [message["content"] for message in call.messages]
        return asked
    asked["messages"] = list(call.messages)
    if call.max_output_tokens is not None:
        # OpenAI's newer models take the new name only, most other servers the old one.
        name = "max_completion_tokens" if _is_openai(candidate) else "max_tokens"
        asked[name] = call.max_output_tokens
    asked.pop("stream_options", None)
    if streamed:
        options = call.parameters.get("stream_options") or {}
        asked.update(stream=True, stream_options={**options, "include_usage": True})
    return asked


def _base(candidate: Candidate) -> str:
    given = candidate.parameters.get("api_base") or candidate.parameters.get("base_url")
    if given:
        return _with_path(str(given), candidate)
    if candidate.model.partition("/")[0] != "openai":
        raise ConfigurationError(
            f"model {candidate.name!r} has no api_base, which transport httpx needs; "
            "write it like http://localhost:8000/v1"
        )
    return os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE") or _OPENAI


def _with_path(base: str, candidate: Candidate) -> str:
    """Ollama's address, as LiteLLM takes it, is without the path of OpenAI's protocol."""
    parts = urlsplit(base)
    if candidate.model.partition("/")[0] not in _OLLAMA or parts.path.strip("/"):
        return base
    return parts._replace(path="/v1").geturl()


def _key(candidate: Candidate) -> str | None:
    """The key; that of the environment goes to OpenAI and nobody else."""
    if candidate.api_key is not None or not _is_openai(candidate):
        return candidate.api_key
    return os.environ.get("OPENAI_API_KEY")


def _is_openai(candidate: Candidate) -> bool:
    return urlsplit(_base(candidate)).hostname == "api.openai.com"


def _model(candidate: Candidate) -> str:
    provider, slash, name = candidate.model.partition("/")
    return name if slash and provider in _PREFIXES else candidate.model
