"""The OpenAI-compatible web application: routes, faults and latency around a responder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from optllm_router._types import Usage
from optllm_router.simulation.chat import (
    ChatError,
    ChatRequest,
    completion,
    events,
    parse_request,
)
from optllm_router.simulation.faults import FaultPlayer, Faults
from optllm_router.simulation.replies import Reply, Responder
from optllm_router.simulation.tally import Tally

_GARBAGE = b"<html><body><h1>It works!</h1></body></html>"


class ConnectionCut(Exception):
    """Raised once a response has started, to make the web server drop the connection."""


class ChatCompletions:
    """The ASGI endpoint of ``/v1/chat/completions``.

    Plain ASGI rather than a function from request to response, because a broken connection and
    an answer that never comes are not responses.

    Args:
        responder: who answers.
        tally: where calls are counted.
        faults: which calls fail, see :meth:`play`.
        latency_seconds: by model, the time before the first byte.
    """

    def __init__(
        self,
        responder: Responder,
        tally: Tally,
        faults: Faults | Mapping[str, Faults],
        latency_seconds: Mapping[str, float],
    ) -> None:
        self._responder = responder
        self._names = frozenset(responder.names)
        self._tally = tally
        self._latency_seconds = latency_seconds
        self._closing = asyncio.Event()
        self.play(faults)

    def play(self, faults: Faults | Mapping[str, Faults]) -> None:
        """Follow other fault plans from the next call on, counting from 0; from any thread."""
        self._player = FaultPlayer(faults)

    def close(self) -> None:
        """Let go of calls that wait for their latency or forever; the loop's thread only."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await Request(scope, receive).body()
            await self._answer(parse_request(body), receive, send)
        except ChatError as error:
            await _send_whole(error.body, send, status=error.status)
        except ClientDisconnect:
            return

    async def _answer(self, request: ChatRequest, receive: Receive, send: Send) -> None:
        self._tally.received(request.model)
        if request.model not in self._names:
            message = f"The model '{request.model}' does not exist; there are: "
            raise ChatError(
                404, message + ", ".join(sorted(self._names)), param="model", code="model_not_found"
            )
        plan, fault = self._player.next(request.model)
        if fault == "timeout":
            await self._never_answer(receive)
        await self._wait(self._latency_seconds.get(request.model, 0.0))
        if fault == "rate_limit":
            await _send_rate_limit(request.model, plan.retry_after_seconds, send)
        elif fault == "server_error":
            raise ChatError(500, "The simulated server failed on purpose.", kind="server_error")
        elif fault == "garbage":
            await _send_whole(_GARBAGE, send)
        else:
            await self._send_reply(request, self._reply(request), send, cut=fault == "cut")

    def _reply(self, request: ChatRequest) -> Reply:
        reply = self._responder.reply(request.model, request.prompt, request.context)
        if reply is None:
            message = f"No reply of '{request.model}' to this prompt was recorded."
            raise ChatError(404, message, param="messages", code="prompt_not_recorded")
        return reply

    async def _send_reply(
        self, request: ChatRequest, reply: Reply, send: Send, *, cut: bool
    ) -> None:
        sent = reply.truncated(request.max_tokens)
        finish_reason = "stop" if sent is reply else "length"
        # Counted before sending: the work is done and billed, whether or not it arrives.
        self._tally.answered(request.model, Usage(sent.prompt_tokens, sent.completion_tokens))
        if request.stream:
            await _send_events(list(events(request, sent, finish_reason)), send, cut=cut)
        else:
            await _send_whole(completion(request, sent, finish_reason), send, cut=cut)

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
            raise _stopping()

    async def _never_answer(self, receive: Receive) -> None:
        """Wait until the client gives up or the server stops."""
        waits = {asyncio.ensure_future(receive()), asyncio.ensure_future(self._closing.wait())}
        _, unfinished = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in unfinished:
            wait.cancel()
        raise _stopping()


def make_app(chat: ChatCompletions, names: Iterable[str]) -> Starlette:
    """Put the endpoints together.

    Args:
        chat: the endpoint of chat completions.
        names: what ``/v1/models`` lists.
    """
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "simulation"} for name in names
    ]
    listing = {"object": "list", "data": models}

    async def list_models(request: Request) -> Response:
        return JSONResponse(listing)

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = f"The simulation has no {request.method} {request.url.path}."
        body = ChatError(status, message).body
        return Response(body, status, media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", list_models),
        ],
        exception_handlers={HTTPException: refuse},
    )


def _stopping() -> ChatError:
    return ChatError(503, "The simulated server is stopping.", kind="server_error")


async def _send_rate_limit(model: str, retry_after_seconds: float, send: Send) -> None:
    message = f"Rate limit of the simulated model '{model}' reached, on purpose."
    error = ChatError(429, message, kind="requests", code="rate_limit_exceeded")
    headers = [(b"retry-after", b"%g" % retry_after_seconds)]
    await _send_whole(error.body, send, status=error.status, headers=headers)


async def _send_whole(
    body: bytes,
    send: Send,
    *,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (),
    cut: bool = False,
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    if cut:
        half = body[: len(body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        raise ConnectionCut
    await send({"type": "http.response.body", "body": body})


async def _send_events(chunks: list[bytes], send: Send, *, cut: bool) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in chunks[: len(chunks) // 2] if cut else chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    if cut:
        raise ConnectionCut
    await send({"type": "http.response.body", "body": b""})
