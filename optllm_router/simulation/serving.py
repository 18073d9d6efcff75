"""uvicorn in a thread: ready when the constructor returns, gone when ``stop`` returns."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from optllm_router.simulation.delivery import ConnectionCut

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 2048
# Calls in flight are let go at once when stopping; this bounds the wait for a client that
# does not read its answer.
_SHUTDOWN_SECONDS = 1


class ServerThread:
    """A web server in a daemon thread, on 127.0.0.1.

    Args:
        app: what answers.
        port: where to listen; 0 lets the system choose.
        before_stop: called in the server's event loop when it is about to stop.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, app: ASGIApp, port: int, before_stop: Callable[[], None]) -> None:
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        self._before_stop = before_stop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        logging.getLogger("uvicorn.error").addFilter(_is_no_wanted_cut)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            date_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="optllm-simulation", daemon=True)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Close every connection and wait for the thread to end."""
        self._server.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._before_stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._socket.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The socket listens already: whoever connects from now on waits in its backlog.
        self._loop.call_soon(self._ready.set)
        await self._server.serve(sockets=[self._socket])


def _listen(port: int) -> socket.socket:
    # asyncio turns off Nagle's algorithm only where the protocol is named: without it, every
    # response waits 40 ms for the client to acknowledge its headers.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _is_no_wanted_cut(record: logging.LogRecord) -> bool:
    """Keep uvicorn from reporting connections that are cut on purpose; all else is logged."""
    return record.exc_info is None or not isinstance(record.exc_info[1], ConnectionCut)
