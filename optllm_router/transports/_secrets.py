"""Keys are in no message: a provider may quote them in a refusal, and errors are logged."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from optllm_router._types import Candidate

_MOST_ERROR_CHARACTERS = 300
_SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET")
_BASES = ("api_base", "base_url")
_BASES_OF_OPENAI = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
_SHORTEST_SECRET = 8
"""Shorter values are words that messages need, and no keys."""
_SHORTEST_PASSWORD = 4
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|gsk|xai|AIza)[-_]?[A-Za-z0-9_\-*]{12,}")


def first_line(text: str, candidate: Candidate) -> str:
    """What a provider says, with every secret masked before it is cut: half a key is one, too."""
    line = text.strip().partition("\n")[0]
    for secret in sorted(_secrets(candidate), key=len, reverse=True):
        line = line.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", line)[:_MOST_ERROR_CHARACTERS]


def _secrets(candidate: Candidate) -> set[str]:
    """The keys that this process knows: a provider may quote any of them."""
    headers = candidate.parameters.get("extra_headers") or {}
    values = [value for name, value in os.environ.items() if name.endswith(_SECRET_NAMES)]
    values += [
        value
        for name, value in candidate.parameters.items()
        if isinstance(value, str) and name.upper().endswith(_SECRET_NAMES)
    ]
    values += [word for value in headers.values() for word in str(value).split()]
    long = {value for value in values if len(value) >= _SHORTEST_SECRET}
    long.update(_of_the_url(candidate))
    return long | ({candidate.api_key} if candidate.api_key else set())


def _of_the_url(candidate: Candidate) -> Iterator[str]:
    """What the URL holds besides the place, as it is set and as it is sent.

    An API's version is no secret, and messages need it.
    """
    given = candidate.parameters.get("extra_query")
    pairs = list(given.items()) if isinstance(given, Mapping) else []
    bases = [candidate.parameters.get(name) for name in _BASES]
    bases += [os.environ.get(name) for name in _BASES_OF_OPENAI]
    for base in bases:
        written = str(base or "").partition("#")[0].partition("?")[2]
        for name, _, value in (pair.partition("=") for pair in written.split("&")):
            pairs += [(name, value), (name, unquote(value)), (name, unquote_plus(value))]
        yield from _login(str(base or ""))
    for name, value in pairs:
        text = str(value)
        if len(text) >= _SHORTEST_SECRET and "version" not in str(name).lower():
            yield from (text, quote(text), quote(text, safe=""), quote_plus(text))


def _login(base: str) -> Iterator[str]:
    """The name and password in a URL, as they are set and as they are sent."""
    login, is_there, _ = base.partition("://")[2].partition("/")[0].rpartition("@")
    if is_there:
        name, _, password = login.partition(":")
        plain = unquote(name), unquote(password)
        yield base64.b64encode(":".join(plain).encode()).decode()
        yield f"{login}@"
        yield from (one for one in (password, plain[1]) if len(one) >= _SHORTEST_PASSWORD)
