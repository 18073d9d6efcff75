"""Settings of openai's client that have another place here: who brings one is told where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optllm_router._errors import ConfigurationError
from optllm_router.candidates import no_others

_KEYS = "keys belong in the model's entry (litellm_params: api_key) or in the environment"
_HEADERS = (
    "headers belong in the model's entry (litellm_params: extra_headers), those for tracing in a "
    "call's extra_headers"
)
_URL = "what a provider's URL needs belongs in the model's entry (litellm_params: api_base)"
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


def refuse_others(others: Mapping[str, Any], taken: Callable[..., Any], what: str) -> None:
    """Raise for what was given beside the parameters of a function.

    Args:
        others: what was given; its values may be secrets, and are not shown.
        taken: the function.
        what: its parameters are, like ``setting``.

    Raises:
        ConfigurationError: with the place where it is set, or the nearest name that is known.
    """
    for name in others:
        if name in _ELSEWHERE:
            raise ConfigurationError(f"{name} is not taken: {_ELSEWHERE[name]}")
    known = [name for name in inspect.signature(taken).parameters if name not in ("self", "others")]
    no_others(others, known, what)
