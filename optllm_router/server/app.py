"""The application: a client, its endpoints, and the layers around them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.routing import Router

from optllm_router._errors import StoreError
from optllm_router._telemetry import export_what_waits
from optllm_router.ledger import Ledger
from optllm_router.server.access import Access, Authenticated, check_binding
from optllm_router.server.body import Body
from optllm_router.server.endpoints import Endpoints
from optllm_router.server.gate import Gate
from optllm_router.server.metrics import Metrics
from optllm_router.store import AccessKeys, Database

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from optllm_router.client import AsyncOptLLM
    from optllm_router.server.options import ServerOptions


_log = logging.getLogger("optllm_router.server")

_FOLLOW_SECONDS = 2.0
"""How often a worker looks for the scores that others were told of."""


def make_app(client: AsyncOptLLM, options: ServerOptions) -> ASGIApp:
    """The server as an ASGI application; it closes the client when it is shut down.

    Raises:
        ConfigurationError: it would be open to others without a key.
        StoreError: the store cannot be used.
    """
    database = Database(client.settings.store)
    try:
        keys = AccessKeys(database)
        access = Access(keys, required=check_binding(options.host, keys))
    except BaseException:
        database.close()
        raise
    metrics = Metrics(Ledger(database).balances)
    endpoints = Endpoints(client, database, metrics, options.limits, options.log_prompts)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(client))
        try:
            await client.check()
            _spare_what_is_there()
            yield
        finally:
            following.cancel()
            await client.close()
            database.close()
            await asyncio.to_thread(export_what_waits)  # one of several workers is just ended
            gc.unfreeze()

    routes = endpoints.routes()
    metrics.tell_apart(route.path for route in routes)
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # then the router raises 404 and 405 instead of answering them
        await router(scope, receive, send)

    limits = options.limits
    gate = Gate(Authenticated(Body(routed, limits), access), limits, metrics)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (router if scope["type"] == "lifespan" else gate)(scope, receive, send)

    return app


async def _follow(client: AsyncOptLLM) -> None:
    while True:
        await asyncio.sleep(_FOLLOW_SECONDS)
        try:
            await client.catch_up()
        except StoreError as error:
            _log.warning("scores of other processes cannot be read now: %s", error)


def _spare_what_is_there() -> None:
    """Let the garbage collector pass over what was loaded before the first request.

    With litellm that is half a million objects, and to look at all of them, as the collector does
    every few hundred calls, holds up every request and stream for 0.2 s.
    """
    gc.collect()
    gc.freeze()
