"""``optllm serve``: one process or several that share a port, the books and what was learnt."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from optllm_router._errors import ConfigurationError, StoreError
from optllm_router.candidates import shared_limits
from optllm_router.client import AsyncOptLLM
from optllm_router.config import Settings, load_settings, read_settings
from optllm_router.server.access import check_binding, keep_to_loopback
from optllm_router.server.app import make_app
from optllm_router.server.log import log_event, log_to_stderr
from optllm_router.server.metrics import WORKERS_FOLDER
from optllm_router.server.options import ServerOptions
from optllm_router.server.protocol import BoundedProtocol
from optllm_router.store import AccessKeys, Database
from optllm_router.transports import all_transports, keys_in_sight

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from optllm_router.ledger import Crossing

_log = logging.getLogger("optllm_router.server")

_BACKLOG = 2048


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
    _check(options)
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
            Workers(config, [listener]).run()


class Workers(Multiprocess):
    """uvicorn's workers: those that end leave the metrics, those that cannot start are told of."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._counted: set[int] = set()

    def run(self) -> None:
        """Run until told to stop.

        Raises:
            ConfigurationError: a worker could not start.
        """
        super().run()
        if any(one.exitcode == STARTUP_FAILURE for one in self.processes):
            raise ConfigurationError("a worker could not start; the log above says why")

    def keep_subprocess_alive(self) -> None:
        """Replace workers that ended; what they were doing counts no more."""
        started = self._counted | self._running()
        super().keep_subprocess_alive()
        self._counted = self._running()
        for pid in started - self._counted:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def _running(self) -> set[int]:
        every = [one.process for one in self.processes]
        return {one.pid for one in every if one.pid is not None and one.exitcode is None}


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
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=max(1, round(options.grace_seconds)),
        h11_max_incomplete_event_size=limits.header_bytes,
    )


def _worker_app(options: ServerOptions) -> ASGIApp:
    """The application of one worker, with a client of its own."""
    log_to_stderr()
    try:
        client = AsyncOptLLM.from_settings(_settings(options))
    except (ConfigurationError, StoreError) as error:
        _log.error("a worker cannot start: %s", error)
        sys.exit(STARTUP_FAILURE)  # which ends them all
    log_event("worker started", pid=os.getpid())
    return make_app(client, options)


def _settings(options: ServerOptions) -> Settings:
    """What a worker is set up with; all of them together keep the models' rate limits."""
    if options.config is not None:
        settings = load_settings(options.config, **options.settings)
    else:
        settings = read_settings(options.models, **options.settings)
    candidates = shared_limits(settings.candidates, options.workers)
    told = settings.on_threshold or _log_threshold
    secret = settings.conversation_secret
    if secret is None and options.workers > 1:
        secret = options.conversation_secret
    return dataclasses.replace(
        settings, candidates=candidates, on_threshold=told, conversation_secret=secret
    )


def _log_threshold(crossing: Crossing) -> None:
    log_event("budget threshold", **dataclasses.asdict(crossing))


def _check(options: ServerOptions) -> None:
    """Find mistakes before there are workers, and before anybody reads that the server listens.

    A server that is refused leaves no store behind.
    """
    settings = _settings(options)
    transport = all_transports(settings.cache)
    # litellm takes seconds to load, and is only asked about keys that are not plainly there.
    unsure = [
        one for one in settings.candidates if one.transport != "litellm" or not keys_in_sight([one])
    ]
    transport.check(unsure)
    if _is_absent(settings.store):
        keep_to_loopback(options.host)
    database = Database(settings.store)
    try:
        check_binding(options.host, AccessKeys(database))
    finally:
        database.close()


def _is_absent(store: str) -> bool:
    """Whether a store is a file that is not there: to look for keys in it would make it."""
    try:
        url = make_url(store)
    except (ArgumentError, ValueError):
        return False  # opening it says what is wrong
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file()


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
