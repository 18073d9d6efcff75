"""Scopes: what a budget pays for, and what a call belongs to.

``everything`` is every call. ``tenant:acme``, ``user:ann``, ``tag:nightly`` and ``job:42`` are
those calls that carry the scope. A template, ``tenant:*``, gives each tenant a budget of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from optllm_router._errors import ConfigurationError

EVERYTHING = "everything"
KINDS = ("tenant", "user", "tag", "job")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, which terminals obey, line ends, and halves of characters."""
_MOST_CHARACTERS = 200
_MOST_PER_CALL = 32


def checked_name(name: object, what: str) -> str:
    """A name that any database and any terminal can hold: 1 to 200 characters, all of them text.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= _MOST_CHARACTERS:
        raise ConfigurationError(
            f"{what} {str(name)[:50]!r} must have between 1 and {_MOST_CHARACTERS} characters"
        )
    if _NO_TEXT.search(name):
        raise ConfigurationError(f"{what} {name[:50]!r} has characters that are no text")
    return name


def checked_scope(scope: object) -> str:
    """A scope or template of a budget, as it was given.

    Raises:
        ConfigurationError: it is neither.
    """
    kind, _, name = scope.partition(":") if isinstance(scope, str) else ("", "", "")
    if scope == EVERYTHING:
        return EVERYTHING
    if kind not in KINDS:
        raise ConfigurationError(
            f"scope {str(scope)[:50]!r} is unknown; use everything, tenant:NAME, user:NAME, "
            "tag:NAME or job:NAME, with * as NAME for a budget each"
        )
    checked_name(name, f"the name in scope {str(scope)[:50]!r}")
    return str(scope)


def scopes_of_call(scopes: Iterable[str]) -> tuple[str, ...]:
    """What a call belongs to: checked, sorted, each once, without ``everything``.

    Raises:
        ConfigurationError: a scope is none, or a template, or there are more than 32.
    """
    found = sorted({checked_scope(scope) for scope in scopes} - {EVERYTHING})
    if len(found) > _MOST_PER_CALL:
        raise ConfigurationError(f"a call has {len(found)} scopes; at most {_MOST_PER_CALL} count")
    for scope in found:
        if is_template(scope):
            raise ConfigurationError(f"scope {scope!r} of a call must name one {kind_of(scope)}")
    return tuple(found)


def kind_of(scope: str) -> str:
    """``tenant`` of ``tenant:acme``."""
    return scope.partition(":")[0]


def is_template(scope: str) -> bool:
    """Whether it stands for every scope of its kind."""
    return scope.endswith(":*") and scope.count(":") == 1


def template_of(scope: str) -> str:
    """``tenant:*`` of ``tenant:acme``."""
    return f"{kind_of(scope)}:*"
