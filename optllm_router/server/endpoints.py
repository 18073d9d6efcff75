"""What the server answers: each endpoint hands a request to the client and its answer back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from optllm_router._errors import OptLLMError
from optllm_router.server.access import Caller
from optllm_router.server.body import read_json
from optllm_router.server.errors import Refused
from optllm_router.server.log import log_event
from optllm_router.server.openapi import CHAT_FIELDS, FEEDBACK_FIELDS, document
from optllm_router.server.options import Limits
from optllm_router.store import Database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router.client import AsyncOptLLM
    from optllm_router.server.metrics import Metrics

_READY_SECONDS = 2.0
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
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/metrics", self.exposition, methods=["GET"]),
            Route("/health/live", self.live, methods=["GET"]),
            Route("/health/ready", self.ready, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        )

    async def chat_completions(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await self._json(request)
        arguments = call_arguments(body, CHAT_FIELDS, _caller(request))
        answer = await self.client.chat.completions.create(**arguments)
        self._note(request, body, answer)
        return Response(_as_json(answer), media_type="application/json")

    async def feedback(self, request: Request) -> Response:
        """``POST /v1/feedback``: how good an answer was."""
        body = await self._json(request)
        for name in FEEDBACK_FIELDS:
            if name not in body:
                raise Refused(400, f"{name} is missing", param=name, code="missing_field")
        if unknown := body.keys() - FEEDBACK_FIELDS:
            raise Refused(400, f"field {min(unknown)!r} is unknown", code="unknown_field")
        id, score = body["id"], body["score"]
        if not isinstance(id, str):
            raise Refused(400, "id must be text: that of an answer", param="id")
        await self.client.feedback.create(id, score=score)
        return JSONResponse({"object": "feedback", "id": id, "score": float(score)})

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``: the candidates, and ``auto``."""
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._names()]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        name = request.path_params["model"]
        if name not in self._names():
            raise Refused(
                404, f"model {name!r} is not configured; GET /v1/models", code="model_not_found"
            )
        return JSONResponse(_model(name))

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
        return JSONResponse(document(self.limits))

    def _touch_store(self) -> None:
        with self.database.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def _names(self) -> list[str]:
        return ["auto", *(candidate.name for candidate in self.client.settings.candidates)]

    async def _json(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Also what keeps web pages out: a browser sends no JSON to others without asking first.
        if kind != "application/json":
            raise Refused(
                415,
                f"content-type {kind[:100]!r} is not taken; send application/json",
                code="unsupported_media_type",
            )
        return read_json(await request.body(), self.limits)

    def _note(self, request: Request, body: Mapping[str, Any], answer: Any) -> None:
        made = answer.optllm
        usage = answer.usage
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        self.metrics.answer(made.candidate, prompt, completion, made.cost_nano)
        fields = {**asdict(made), "prompt_tokens": prompt, "completion_tokens": completion}
        if self.log_prompts:
            fields["request"] = body
            fields["answer"] = json.loads(_as_json(answer))
        caller = _caller(request)
        log_event(
            "decision",
            request_id=request.state.request_id,
            path=request.url.path,
            key=caller.key,
            scope=caller.scope,
            **fields,
        )


def call_arguments(
    body: Mapping[str, Any], fields: frozenset[str], caller: Caller
) -> dict[str, Any]:
    """A body as arguments of the client; what OpenAI does not know goes to ``extra_body``.

    Raises:
        Refused: the caller may not name another scope.
    """
    arguments = {name: value for name, value in body.items() if name in fields}
    further = {name: value for name, value in body.items() if name not in fields}
    ours = further.get("optllm")
    if isinstance(ours, Mapping) and not caller.sees_everything:
        for name in _SCOPES:
            if name in ours:
                raise Refused(
                    403,
                    f"this key's calls count under {caller.scope!r}; optllm.{name} cannot "
                    "change that (a key of scope 'everything' can)",
                    code="scope_not_allowed",
                    param=f"optllm.{name}",
                )
    if further:
        arguments["extra_body"] = further
    return arguments


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _as_json(answer: Any) -> str:
    """An openai type as it would come from OpenAI."""
    text: str = answer.model_dump_json(
        exclude={"optllm"}, exclude_unset=True, by_alias=True, warnings=False
    )
    return text


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "optllm"}
