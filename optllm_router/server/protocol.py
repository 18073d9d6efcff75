"""HTTP/1.1 on a socket: uvicorn's protocol, which knows no deadline before a request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from optllm_router.server.errors import Refused, refusal_body
from optllm_router.server.options import Limits


class BoundedProtocol(H11Protocol):
    """A connection that cannot be held open for nothing.

    It ends when headers, or the rest of a body that was answered already, do not come in time,
    when an answer stays unread, and at once when there are too many others.

    Args:
        limits: the bounds.
        **uvicorn: what uvicorn makes its protocol with.
    """

    def __init__(self, *, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._until_sent: asyncio.TimerHandle | None = None
        self._until_read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, for as long as headers may take."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
        else:
            self._until_sent = self._abort_in(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._forget_sent()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that has begun must have its headers soon."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if self._until_sent is None and not self.transport.is_closing():
                self._until_sent = self._abort_in(self._limits.header_seconds)
        elif not self._is_only_drained():
            self._forget_sent()

    def on_response_complete(self) -> None:
        """The rest of a body that nobody waits for is read and dropped, for a while."""
        super().on_response_complete()
        if self._is_only_drained() and self._until_sent is None:
            self._until_sent = self._abort_in(self._limits.body_seconds)

    def send_400_response(self, msg: str) -> None:
        """Say as OpenAI's API would what is no HTTP; uvicorn says it in plain text."""
        told = refusal_body(Refused(400, f"{msg} Send HTTP/1.1", code="invalid_http"))
        body = json.dumps(told).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read: it has a while to go on."""
        super().pause_writing()
        self._until_read = self._abort_in(self._limits.send_seconds)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if self._until_read is not None:
            self._until_read.cancel()
            self._until_read = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also when its client never read the last answer."""
        self.transport.abort()

    def _abort_in(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)

    def _is_only_drained(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _forget_sent(self) -> None:
        if self._until_sent is not None:
            self._until_sent.cancel()
            self._until_sent = None
