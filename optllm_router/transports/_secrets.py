"""Keys are in no message: a provider may quote them in a refusal, and errors are logged."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from optllm_router._types import Candidate

_MOST_ERROR_CHARACTERS = 300
_SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET")
_SHORTEST_SECRET = 8
"""Shorter values are words that messages need, and no keys."""
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|gsk|xai|AIza)[-_]?[A-Za-z0-9_\-*]{12,}")


def first_line(text: str, candidate: Candidate) -> str:
    """What a provider says, with every secret masked before it is cut: half a key is one, too."""
    line = text.strip().partition("\n")[0]
    for secret in sorted(_secrets(candidate), key=len, reverse=True):
        line = line.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", line)[:_MOST_ERROR_CHARACTERS]


def _secrets(candidate: Candidate) -> set[str]:
    """The keys that this process knows: a provider may quote any of them."""
    headers, query = (
        candidate.parameters.get(name) or {} for name in ("extra_headers", "extra_query")
    )
    values = [value for name, value in os.environ.items() if name.endswith(_SECRET_NAMES)]
    values += [
        value
        for name, value in candidate.parameters.items()
        if isinstance(value, str) and name.upper().endswith(_SECRET_NAMES)
    ]
    values += map(str, query.values() if isinstance(query, Mapping) else ())
    values += [word for value in headers.values() for word in str(value).split()]
    long = {value for value in values if len(value) >= _SHORTEST_SECRET}
    return long | ({candidate.api_key} if candidate.api_key else set())
