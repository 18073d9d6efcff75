"""What the server answers: each endpoint hands a request to the client and its answer back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from optllm_router._decision_log import LINE_CONTEXT, LineContext
from optllm_router._errors import BudgetExceededError, OptLLMError
from optllm_router._nearest import quoted
from optllm_router._openai_streams import PAID
from optllm_router._scopes import KINDS
from optllm_router._telemetry import continued
from optllm_router._wire import LARGE_BYTES
from optllm_router.server.access import EVERYTHING, Caller
from optllm_router.server.body import read_json
from optllm_router.server.errors import Refused, budget_headers
from optllm_router.server.openapi import ANSWERING_PATHS, FEEDBACK_FIELDS, document
from optllm_router.server.options import Limits
from optllm_router.server.relay import relay
from optllm_router.store import Database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openai import BaseModel

    from optllm_router._openai_http import http
    from optllm_router._steps import Paid
    from optllm_router.client import AsyncOptLLM
    from optllm_router.server.metrics import Metrics

_ARGUMENTS = ("timeout", "extra_headers", "extra_query", "extra_body")
"""What clients in other languages take beside the fields of a request; it is not sent."""
_READY_SECONDS = 2.0
_LONGEST_NAME = 200
_SCOPES = ("tenant", "user", "tags", "job")
"""What names whose money is spent: only a caller who sees everything may."""


@dataclass(frozen=True)
class Endpoints:
    """The endpoints around one client.

    Attributes:
        client: decides, pays, sends, learns.
        database: the store, to find out whether it can be used.
        metrics: where answers are counted.
        limits: bounds on what is read.
        log_prompts: whether the log may hold what people asked and were answered.
    """

    client: AsyncOptLLM
    database: Database
    metrics: Metrics
    limits: Limits
    log_prompts: bool = False

    def routes(self) -> Sequence[Route]:
        """All of them."""
        return (
            *(Route(path, self.answer, methods=["POST"]) for path in ANSWERING_PATHS),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/metrics", self.exposition, methods=["GET"]),
            Route("/health/live", self.live, methods=["GET"]),
            Route("/health/ready", self.ready, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        )

    async def answer(self, request: Request) -> Response:
        """``POST`` of a chat completion, a response or embeddings."""
        body = await self._json(request)
        caller = _caller(request)
        for name in _ARGUMENTS:
            if name in body:
                raise Refused(400, f"{name} is no field", param=name, code="unknown_field")
        check_scopes(body.get("optllm"), caller)

        context: LineContext = request.state.line_context
        context.fields.update(key=caller.key, scope=caller.scope)
        if self.log_prompts:
            context.fields["request"], context.keeps_answers = body, True
        LINE_CONTEXT.set(context)  # each request has a task, and so contextvars, of its own
        client, path, sent = self._client_of(caller.scope), request.url.path, await request.body()
        request_id = request.state.request_id
        try:
            with continued(request.headers):
                return await relay(client, path, sent, body, request_id, self._count)
        except BudgetExceededError as error:
            if caller.sees_everything or error.scope == caller.scope:
                raise
            raise Refused(
                429,
                "a budget that this key shares with others does not pay for the call; nothing was "
                "sent. Try again later or lower max_tokens",
                code="insufficient_quota",
                headers=budget_headers(error),
            ) from None

    async def feedback(self, request: Request) -> Response:
        """``POST /v1/feedback``: how good an answer was."""
        body = await self._json(request)
        for name in FEEDBACK_FIELDS:
            if name not in body:
                raise Refused(400, f"{name} is missing", param=name, code="missing_field")
        if unknown := body.keys() - FEEDBACK_FIELDS:
            name = min(unknown)
            told = f"field {quoted(name)} is unknown"
            raise Refused(400, told, code="unknown_field", param=name[:_LONGEST_NAME])
        id, score = body["id"], body["score"]
        if not isinstance(id, str):
            raise Refused(400, "id must be text: that of an answer", param="id")
        await self._client_of(_caller(request).scope).feedback.create(id, score=score)
        return JSONResponse({"object": "feedback", "id": id, "score": float(score)})

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``: the candidates, ``auto``, and ``auto:NAME`` for named policies."""
        page = await self.client.models.list()
        return _openai_json(page)

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        return _openai_json(await self.client.models.retrieve(request.path_params["model"]))

    async def exposition(self, request: Request) -> Response:
        """``GET /metrics``: of all scopes, so for callers who see everything."""
        if not _caller(request).sees_everything:
            raise Refused(
                403,
                "/metrics tells of all scopes; use a key of scope 'everything'",
                code="scope_not_allowed",
            )
        text = await asyncio.to_thread(self.metrics.exposition)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def live(self, request: Request) -> Response:
        """``GET /health/live``: the process answers."""
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """``GET /health/ready``: the store can be used, too."""
        try:
            await asyncio.wait_for(asyncio.to_thread(self._touch_store), _READY_SECONDS)
        except (OptLLMError, asyncio.TimeoutError):
            raise Refused(503, "the store cannot be used", code="not_ready") from None
        return JSONResponse({"status": "ready"})

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return JSONResponse(document(self.limits, self.client.settings.policies))

    def _touch_store(self) -> None:
        with self.database.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    async def _json(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Also what keeps web pages out: a browser sends no JSON to others without asking first.
        if kind != "application/json":
            raise Refused(
                415,
                f"content-type {kind[:100]!r} is not taken; send application/json",
                code="unsupported_media_type",
            )
        sent = await request.body()
        if len(sent) > LARGE_BYTES:
            return await asyncio.to_thread(read_json, sent, self.limits)
        return read_json(sent, self.limits)

    def _client_of(self, scope: str) -> AsyncOptLLM:
        """The client whose calls count under a scope."""
        if scope == EVERYTHING:
            return self.client
        kind, _, name = scope.partition(":")
        if kind not in KINDS:  # a key that the command did not make must not pay from all
            raise Refused(
                403,
                f"scope {scope!r} of this key is no scope; whoever runs this server has to make "
                "another key",
                code="scope_not_allowed",
            )
        options: dict[str, Any] = {"tags" if kind == "tag" else kind: name}
        return self.client.with_options(**options)

    def _count(self, response: http.Response) -> None:
        """Count an answer and what it took, which is not known of a stream broken off."""
        paid: Paid | None = response.extensions[PAID]()
        if paid is not None:
            self.metrics.answer(paid)


def check_scopes(ours: Any, caller: Caller) -> None:
    """Refuse a call that names a scope, unless its caller sees all of them.

    Raises:
        Refused: the caller may not.
    """
    if caller.sees_everything or not isinstance(ours, Mapping):
        return
    for name in _SCOPES:
        if name in ours:
            raise Refused(
                403,
                f"this key's calls count under {caller.scope!r}; optllm.{name} cannot change "
                "that (a key of scope 'everything' can)",
                code="scope_not_allowed",
                param=f"optllm.{name}",
            )


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _openai_json(value: BaseModel) -> Response:
    return Response(value.model_dump_json(exclude_unset=True), media_type="application/json")
