"""Settings that LiteLLM's notation leaves to the environment."""

from __future__ import annotations

import os
from typing import Any

from optllm_router._errors import ConfigurationError

_NOTATION = "os.environ/"


def from_environment(value: Any, whose: str) -> Any:
    """A setting, from the environment where it says so.

    Args:
        value: of the setting, like ``os.environ/OPENAI_API_KEY``.
        whose: who wants it, for the error.

    Raises:
        ConfigurationError: the variable is not set.
    """
    if not isinstance(value, str) or not value.startswith(_NOTATION):
        return value
    variable = value.removeprefix(_NOTATION)
    if variable not in os.environ:
        raise ConfigurationError(
            f"{whose} wants the environment variable {variable}, which is not set"
        )
    return os.environ[variable]
