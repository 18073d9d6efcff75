"""A TCP proxy in front of a PostgreSQL server that can cut a connection around a COMMIT."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Literal

Moment = Literal["before", "after"]


class PostgresqlProxy:
    """Forwards to ``server``; use it as a context manager."""

    def __init__(self, server: tuple[str, int] = ("127.0.0.1", 5432)) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._cut: Moment | None = None
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next_commit(self, moment: Moment) -> None:
        """Break the connection that sends the next COMMIT: ``before`` the server receives it, or
        ``after`` the server has carried it out, so that only the reply is lost."""
        self._cut = moment

    def __enter__(self) -> PostgresqlProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, contextlib.suppress(OSError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client and self._cut is not None and b"COMMIT" in data:
                        moment, self._cut = self._cut, None
                        self.cuts += 1
                        if moment == "after":
                            server.sendall(data)
                            server.recv(1 << 16)
                        return
                    (server if ready is client else client).sendall(data)
