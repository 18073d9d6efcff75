"""One response on its way to the client: as it should arrive, or broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.types import Receive, Send

from optllm_router.simulation.faults import Fault
from optllm_router.simulation.wire import Event

if TYPE_CHECKING:
    from typing_extensions import Self

_BROKEN_EVENT = b'data: {"id":"chatcmpl-sim-broken","choices":[{"ind\n\n'
_DRIP_SECONDS = 0.01
_MOST_ENDLESS_TOKENS = 10**6


class ConnectionCut(Exception):
    """Raised once a response has started, to make the web server drop the connection."""


class Delivery:
    """The way to one client; an async context manager, which watches for its going.

    Args:
        receive: ASGI's.
        send: ASGI's.
        closing: set when the server stops.
    """

    def __init__(self, receive: Receive, send: Send, closing: asyncio.Event) -> None:
        self._receive = receive
        self._send = send
        self._closing = closing
        self._ends: tuple[asyncio.Future[object], ...] = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for end in self._ends:
            end.cancel()

    async def ended(self, seconds: float | None = None) -> bool:
        """Wait, and tell whether the client has gone or the server stops.

        Args:
            seconds: the longest wait; None waits for that end.
        """
        if not self._ends:
            self._ends = (
                asyncio.ensure_future(self._client_goes()),
                asyncio.ensure_future(self._closing.wait()),
            )
        await asyncio.wait(self._ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return any(end.done() for end in self._ends)

    async def whole(
        self,
        body: bytes,
        *,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
        fault: Fault | None = None,
    ) -> None:
        """Send a body in one piece, or fail to."""
        if fault == "malformed":
            body = body[: len(body) // 2]
        kind = b"text/html" if fault == "wrong_type" else b"application/json"
        length = [] if fault == "endless" else [(b"content-length", b"%d" % len(body))]
        await self._start(status, [(b"content-type", kind), *length, *headers])
        if fault == "endless":
            while not await self.ended(_DRIP_SECONDS):
                await self._piece(b" ")
        if fault in ("cut", "stall"):
            await self._piece(body[: len(body) // 2])
        if fault == "stall":
            await self.ended()
        if fault in ("cut", "cut_early", "stall", "endless"):
            raise ConnectionCut
        await self._send({"type": "http.response.body", "body": body})

    async def events(
        self,
        events: Sequence[Event],
        generated: Callable[[int], None],
        *,
        seconds: float,
        fault: Fault | None = None,
    ) -> None:
        """Send server-sent events, or fail to, until the client has gone.

        Args:
            events: what to send.
            generated: told the tokens that the model has made, before each event is sent.
            seconds: between two events.
            fault: what goes wrong.
        """
        kind = b"text/html" if fault == "wrong_type" else b"text/event-stream"
        await self._start(200, [(b"content-type", kind), (b"cache-control", b"no-cache")])
        half = len(events) // 2
        if fault in ("cut", "stall", "endless"):
            sent = events[:half]
        else:
            sent = () if fault == "cut_early" else events
        for number, event in enumerate(sent):
            generated(event.tokens)
            await self._piece(
                _BROKEN_EVENT if (fault, number) == ("malformed", half) else event.data
            )
            # Also without a wait, others get their turn: this is where a going client is noticed.
            if await self.ended(seconds):
                raise ConnectionCut
        if fault == "endless":
            await self._repeat(events[half - 1], generated, seconds)
        if fault == "stall":
            await self.ended()
        if fault in ("cut", "cut_early", "stall", "endless"):
            raise ConnectionCut
        await self._send({"type": "http.response.body", "body": b""})

    async def _repeat(self, event: Event, generated: Callable[[int], None], seconds: float) -> None:
        tokens = event.tokens
        while tokens < _MOST_ENDLESS_TOKENS and not await self.ended(seconds or _DRIP_SECONDS):
            tokens += 1
            generated(tokens)
            await self._piece(event.data)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _piece(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _client_goes(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
