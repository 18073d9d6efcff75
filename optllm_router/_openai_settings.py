"""Settings of openai's client: its key goes to OpenAI's models, others have another place here.

Taken as they are: ``timeout`` and ``max_retries``. What is ``None`` or openai's mark for "left out"
sets nothing, and is no mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optllm_router._arguments import given_or_none
from optllm_router._errors import ConfigurationError
from optllm_router._types import Candidate
from optllm_router.candidates import no_others

_KEYS = "keys belong in the model's entry (litellm_params: api_key) or in the environment"
_HEADERS = (
    "headers belong in the model's entry (litellm_params: extra_headers), those for tracing in a "
    "call's extra_headers"
)
_URL = (
    "what a provider's URL needs belongs in the model's entry (litellm_params: api_base, and "
    "extra_query with transport httpx)"
)
_OTHER = "a provider's settings belong in the model's entry (litellm_params)"
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("api_key", "admin_api_key", "workload_identity"), _KEYS),
    **dict.fromkeys(("default_headers", "set_default_headers"), _HEADERS),
    **dict.fromkeys(("base_url", "websocket_base_url", "data_residency"), _URL),
    **dict.fromkeys(("default_query", "set_default_query"), _URL),
    **dict.fromkeys(("organization", "project", "provider", "webhook_secret"), _OTHER),
    **dict.fromkeys(
        ("_enforce_credentials", "_extra_kwargs", "_strict_response_validation"), _OTHER
    ),
    "http_client": "what sends calls belongs in transport= of the client",
}
_SET_NOTHING: Mapping[str, Any] = {
    "default_headers": {},
    "default_query": {},
    "_enforce_credentials": True,
    "_strict_response_validation": False,
}
"""Values that ask for what is done anyway."""
_OPENAI = "openai"
_PLACES = ("api_base", "base_url")


def with_openai_key(candidates: Sequence[Candidate], key: Any) -> tuple[Candidate, ...]:
    """The candidates, with a key for those that are OpenAI's and have none of their own.

    A key goes to no other provider, and neither does it to an ``api_base`` that a model's entry
    names: who else may be there is not known.

    Args:
        candidates: all of them.
        key: ``api_key`` of openai's client; it is in no message.

    Raises:
        ConfigurationError: it is no key, or nobody's.
    """
    if not isinstance(key, str):
        raise ConfigurationError(
            f"api_key must be text, not {type(key).__name__}; a key that changes belongs in a "
            "transport of your own"
        )
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "api_key is empty, or holds what no key does, like the end of a line; give OpenAI's "
            "key, or leave it out to use the environment"
        )
    if not any(map(_may_have_key, candidates)):
        raise ConfigurationError(
            "api_key is OpenAI's, and no model is one of OpenAI's without a key or an api_base of "
            f"its own; {_KEYS}"
        )
    return tuple(replace(one, api_key=key) if _may_have_key(one) else one for one in candidates)


def _may_have_key(candidate: Candidate) -> bool:
    elsewhere = any(candidate.parameters.get(place) for place in _PLACES)
    return candidate.owner == _OPENAI and candidate.api_key is None and not elsewhere


def refuse_others(others: Mapping[str, Any], taken: Callable[..., Any], what: str) -> None:
    """Raise for what was given beside the parameters of a function, and sets something.

    Args:
        others: what was given; its values may be secrets, and are not shown.
        taken: the function.
        what: its parameters are, like ``setting``.

    Raises:
        ConfigurationError: with the place where it is set, or the nearest name that is known.
    """
    for name, value in others.items():
        sets = given_or_none(value) is not None and value != _SET_NOTHING.get(name)
        if name in _ELSEWHERE and sets:
            raise ConfigurationError(f"{name} is not taken: {_ELSEWHERE[name]}")
    known = [name for name in inspect.signature(taken).parameters if name not in ("self", "others")]
    no_others([name for name in others if name not in _ELSEWHERE], known, what)
