"""``optllm serve``: one process or several that share a port, the books and what was learnt."""

from __future__ import annotations

import functools
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from optllm_router._errors import ConfigurationError
from optllm_router.client import AsyncOptLLM
from optllm_router.config import Settings, load_settings, read_settings
from optllm_router.server.access import check_binding
from optllm_router.server.app import make_app
from optllm_router.server.log import log_event, log_to_stderr
from optllm_router.server.metrics import WORKERS_FOLDER
from optllm_router.server.options import ServerOptions
from optllm_router.server.protocol import BoundedProtocol
from optllm_router.store import AccessKeys, Database
from optllm_router.transports import all_transports, keys_in_sight

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


def serve(options: ServerOptions, *, listening: Callable[[str], None]) -> None:
    """Answer until the process is told to stop (SIGTERM, SIGINT).

    Args:
        options: how.
        listening: called with the server's address once it is bound.

    Raises:
        ConfigurationError: a setting is wrong, the address cannot be bound, or the server would
            be open to others without a key.
        StoreError: the store cannot be used.
    """
    settings = _settings(options)
    database = Database(settings.store)
    try:
        check_binding(options.host, AccessKeys(database))
    finally:
        database.close()
    with _bound(options) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        listening(f"http://{shown}:{port}")
        config = uvicorn_config(options)
        if options.workers == 1:
            # uvicorn stops in good order, then sends itself the signal once more.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            uvicorn.Server(config).run(sockets=[listener])
            return
        with tempfile.TemporaryDirectory(prefix="optllm-metrics-") as folder:
            os.environ[WORKERS_FOLDER] = folder  # workers are spawned with it
            Multiprocess(config, sockets=[listener]).run()


def uvicorn_config(options: ServerOptions) -> uvicorn.Config:
    """How uvicorn runs a worker; it can be sent to another process."""
    limits = options.limits
    return uvicorn.Config(
        functools.partial(_worker_app, options),
        factory=True,
        # A class would do; this is one with its bounds.
        http=functools.partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        workers=options.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.grace_seconds)),
        h11_max_incomplete_event_size=limits.header_bytes,
    )


def _worker_app(options: ServerOptions) -> ASGIApp:
    """The application of one worker, with a client of its own."""
    log_to_stderr()
    if options.config is not None:
        client = AsyncOptLLM.from_config(options.config, **options.settings)
    else:
        client = AsyncOptLLM(options.models, **options.settings)
    log_event("worker started", pid=os.getpid())
    return make_app(client, options)


def _settings(options: ServerOptions) -> Settings:
    """What the workers will be set up with: mistakes are found before there are any.

    So is a missing key: it leaves no store behind, and nobody reads that the server listens.
    """
    if options.config is not None:
        settings = load_settings(options.config, **options.settings)
    else:
        settings = read_settings(options.models, **options.settings)
    if not keys_in_sight(settings.candidates):
        all_transports(settings.cache).check(settings.candidates)
    return settings


def _bound(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(_BACKLOG)
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; "
            "choose another --host or --port"
        ) from None
    return listener
