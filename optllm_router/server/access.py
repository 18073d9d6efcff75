"""Who may call, and what they may see.

Keys are asked for when the server is bound to more than this machine, and as soon as one was
ever made in its store. A key is looked up for every request, so that one is refused as soon as it
is revoked; that there is none at all is believed for :data:`CACHE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from optllm_router._errors import ConfigurationError
from optllm_router.server.errors import Refused
from optllm_router.store import AccessKeys

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

CACHE_SECONDS = 1.0
"""For how long the store is believed that it has no key."""
EVERYTHING = "everything"
"""The scope of a key that sees, and may name, all others."""
OPEN_PATHS = frozenset(("/health/live", "/health/ready", "/openapi.json"))
"""What needs no key: it tells nothing but that the server is there, and how to call it."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        key: id of the access key; empty where none is asked for.
        scope: what the calls are counted under.
    """

    key: str = ""
    scope: str = EVERYTHING

    @property
    def sees_everything(self) -> bool:
        """Whether no scope is closed to this caller."""
        return self.scope == EVERYTHING


class Access:
    """Finds out who calls.

    Args:
        keys: of the store.
        required: whether to ask for a key from the start; see :func:`check_binding`.
        clock: seconds, monotonic and since the epoch.
    """

    def __init__(
        self,
        keys: AccessKeys,
        *,
        required: bool,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._required = required
        self._clock = clock
        self._wall_clock = wall_clock
        self._looked_for_any = -math.inf
        self._looking: asyncio.Task[bool] | None = None

    async def caller(self, authorization: str, host: str) -> Caller:
        """Who sends these ``Authorization`` and ``Host`` headers.

        Raises:
            Refused: 401, a key is needed and this is none that works; 403, no key is needed, but
                the server is called by a name that is not this machine's own.
        """
        if not await self._is_required():
            _check_host(host)
            return Caller()
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise _unauthorised("no API key was sent; send 'Authorization: Bearer sk-optllm-...'")
        key = await self._keys.afind(text.strip())
        if key is None or not key.works_at(self._wall_clock()):
            raise _unauthorised(
                "this API key is unknown, expired or revoked; `optllm keys create` makes one"
            )
        return Caller(key.id, key.scope)

    async def _is_required(self) -> bool:
        if self._required or self._clock() - self._looked_for_any < CACHE_SECONDS:
            return self._required
        # Whoever comes meanwhile waits for the same look, and hears the same of it.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_any())
        return await asyncio.shield(self._looking)

    async def _look_for_any(self) -> bool:
        now = self._clock()
        self._required = await asyncio.to_thread(self._keys.exist)
        self._looked_for_any = now  # only now: a look that failed says nothing
        return self._required


class Authenticated:
    """Calls an application with ``state["caller"]`` set; raises :class:`Refused` otherwise."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who calls, then hand on."""
        if scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            scope["state"]["caller"] = await self._access.caller(
                headers.get("authorization", ""), headers.get("host", "")
            )
        await self._app(scope, receive, send)


def check_binding(host: str, keys: AccessKeys) -> bool:
    """Whether keys are asked for from the start: always beyond this machine, here if there are any.

    Raises:
        ConfigurationError: the server would be open to others, and nobody has a key.
    """
    exist = keys.exist()
    if not exist:
        keep_to_loopback(host)
    return exist


def keep_to_loopback(host: str) -> None:
    """Raise ``ConfigurationError`` for any other address: nobody has a key."""
    if not is_loopback(host):
        raise ConfigurationError(
            f"host {host!r} lets others in, and there is no access key yet; make one with "
            "`optllm keys create --scope everything` (with the same --store or --config), or "
            "bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_host(given: str) -> None:
    """Keep web pages out that had their own name lead to this machine (DNS rebinding)."""
    name = given.partition("]")[0].lstrip("[") if given.startswith("[") else given.partition(":")[0]
    if not is_loopback(name) and not name.endswith(".localhost"):
        raise Refused(
            403,
            f"without access keys this server answers to localhost only, not to {given[:100]!r}; "
            "make a key with `optllm keys create`",
            code="host_not_allowed",
        )


def _unauthorised(message: str) -> Refused:
    return Refused(
        401,
        message,
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
