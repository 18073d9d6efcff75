"""The OpenAI-compatible web application: routes, faults and latency around a responder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from optllm_router.simulation.answers import answer, prompt_usage
from optllm_router.simulation.delivery import Delivery
from optllm_router.simulation.faults import Fault, FaultPlayer, Faults
from optllm_router.simulation.models import EMBEDDING_MODEL
from optllm_router.simulation.replies import Reply, Responder
from optllm_router.simulation.requests import (
    ChatError,
    ChatRequest,
    parse_chat,
    parse_embedding,
)
from optllm_router.simulation.schemas import SchemaError
from optllm_router.simulation.tally import Tally
from optllm_router.simulation.wire import completion, embedding_usage, embeddings, events

_GARBAGE = b"<html><body><h1>It works!</h1></body></html>"
_HUGE_CHARACTERS = 10 * 2**20


class Provider:
    """What all endpoints share: who answers, how fast, what goes wrong, and the bill.

    Args:
        responder: who answers.
        tally: where calls are counted.
        faults: which calls fail, see :meth:`play`.
        latency_seconds: by model, the time before the first byte.
        chunk_tokens: tokens in each event of a stream, >= 1.
        chunk_seconds: time between two events of a stream.
    """

    def __init__(
        self,
        responder: Responder,
        tally: Tally,
        faults: Faults | Mapping[str, Faults],
        latency_seconds: Mapping[str, float],
        *,
        chunk_tokens: int,
        chunk_seconds: float,
    ) -> None:
        self._responder = responder
        self._names = frozenset(responder.names)
        self._tally = tally
        self._latency_seconds = latency_seconds
        self._chunk_tokens = chunk_tokens
        self._chunk_seconds = chunk_seconds
        self.closing = asyncio.Event()
        self.play(faults)

    def play(self, faults: Faults | Mapping[str, Faults]) -> None:
        """Follow other fault plans from the next call on, counting from 0; from any thread."""
        self._player = FaultPlayer(faults)

    def close(self) -> None:
        """Let go of calls that wait for their latency or forever; the loop's thread only."""
        self.closing.set()

    async def chat(self, body: bytes, delivery: Delivery) -> None:
        """Answer a request for a chat completion."""
        request = parse_chat(body)
        fault = await self._begin(request.model, self._names, delivery)
        if fault == "garbage":
            return await delivery.whole(_GARBAGE)
        reply = self._reply(request)
        try:
            one = answer(request, reply)
        except SchemaError as error:
            message = f"No arguments of the tools can be made here: {error}."
            raise ChatError(400, message, param="tools") from None
        if fault == "huge":
            one = replace(one, text="x" * _HUGE_CHARACTERS)
        answers = [one] * request.choices
        asked = prompt_usage(request, reply)
        usage = replace(asked, completion_tokens=one.tokens * request.choices)
        if not request.stream:
            # Counted before sending: the work is done and billed, whether or not it arrives.
            self._tally.answered(request.model, usage)
            return await delivery.whole(completion(request, answers, usage), fault=fault)
        await delivery.events(
            list(events(request, answers, usage, self._chunk_tokens)),
            self._tally.metered(request.model, asked),
            seconds=self._chunk_seconds,
            fault=fault,
        )

    async def embed(self, body: bytes, delivery: Delivery) -> None:
        """Answer a request for embeddings."""
        request = parse_embedding(body)
        fault = await self._begin(request.model, frozenset({EMBEDDING_MODEL}), delivery)
        if fault == "garbage":
            return await delivery.whole(_GARBAGE)
        usage = embedding_usage(request)
        self._tally.answered(request.model, usage)
        await delivery.whole(embeddings(request, usage), fault=fault)

    async def _begin(self, model: str, names: frozenset[str], delivery: Delivery) -> Fault | None:
        """Count a call and let its time pass; returns the fault of its answer.

        Raises:
            ChatError: there will be none.
        """
        self._tally.received(model)
        if model not in names:
            message = f"The model '{model}' does not exist; there are: "
            raise ChatError(
                404, message + ", ".join(sorted(names)), param="model", code="model_not_found"
            )
        plan, fault = self._player.next(model)
        if fault == "timeout":
            await delivery.ended()
            raise _stopping()
        await self._wait(self._latency_seconds.get(model, 0.0))
        if fault == "rate_limit":
            message = f"Rate limit of the simulated model '{model}' reached, on purpose."
            raise ChatError(
                429,
                message,
                kind="requests",
                code="rate_limit_exceeded",
                headers=[(b"retry-after", b"%g" % plan.retry_after_seconds)],
            )
        if fault == "server_error":
            raise ChatError(500, "The simulated server failed on purpose.", kind="server_error")
        return fault

    def _reply(self, request: ChatRequest) -> Reply:
        if not (request.is_plain or self._responder.takes_orders):
            message = "Recorded replies call no tools and keep to no schema."
            raise ChatError(400, message, code="unsupported_parameter")
        reply = self._responder.reply(request.model, request.prompt, request.context)
        if reply is None:
            message = f"No reply of '{request.model}' to this prompt was recorded."
            raise ChatError(404, message, param="messages", code="prompt_not_recorded")
        return reply

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)
            raise _stopping()


class Endpoint:
    """One path of the application.

    Plain ASGI rather than a function from request to response, because a broken connection and
    an answer that never comes are not responses.

    Args:
        answer: reads a body and delivers the answer.
        closing: set when the server stops.
    """

    def __init__(
        self, answer: Callable[[bytes, Delivery], Awaitable[None]], closing: asyncio.Event
    ) -> None:
        self._answer = answer
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        async with Delivery(receive, send, self._closing) as delivery:
            try:
                await self._answer(body, delivery)
            except ChatError as error:
                await delivery.whole(error.body, status=error.status, headers=error.headers)


def make_app(provider: Provider, names: Iterable[str]) -> Starlette:
    """Put the endpoints together.

    Args:
        provider: who answers.
        names: what ``/v1/models`` lists, beside the model of embeddings.
    """
    models = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "simulation"}
        for name in (*names, EMBEDDING_MODEL)
    }

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            error = ChatError(404, f"The model '{name}' does not exist.", code="model_not_found")
            return Response(error.body, error.status, media_type="application/json")
        return JSONResponse(models[name])

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = f"The simulation has no {request.method} {request.url.path}."
        body = ChatError(status, message).body
        return Response(body, status, media_type="application/json")

    return Starlette(
        routes=[
            Route(
                "/v1/chat/completions", Endpoint(provider.chat, provider.closing), methods=["POST"]
            ),
            Route("/v1/embeddings", Endpoint(provider.embed, provider.closing), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", show_model),
        ],
        exception_handlers={HTTPException: refuse},
    )


def _stopping() -> ChatError:
    return ChatError(503, "The simulated server is stopping.", kind="server_error")
