"""The outermost layer: an id for every request, a bound on all of it, an answer to any error."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders

from optllm_router._decision_log import LineContext
from optllm_router.server.body import ClientGone
from optllm_router.server.errors import Refused, as_refusal, error_response, refusal_body
from optllm_router.server.log import log_event
from optllm_router.server.options import Limits
from optllm_router.server.relay import STREAM_FAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from optllm_router.server.metrics import Metrics

    Fault = Callable[[Mapping[str, Any]], Iterable[bytes]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_MOST_LOGGED = 200
_MOST_TELLING_SECONDS = 1.0
"""For the end of a stream that is cut short: who does not read it is not waited for."""
_STOPPING = "stopping"
_CLIENT_GONE = 499
"""How a request is counted whose client went away: nginx's number, there is no other."""


class Gate:
    """Lets requests in, within limits, and turns every error that comes out into a response.

    Args:
        app: what answers.
        limits: the bounds.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id", ""))
        fields = {"request_id": request_id, "path": scope["path"][:_MOST_LOGGED]}
        context = LineContext(fields, given_up=_STOPPING)  # unless there is another reason
        scope.setdefault("state", {}).update(request_id=request_id, line_context=context)
        status, whole = 0, False
        start = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            else:
                whole = not message.get("more_body", False)
            await send(message)

        self._under_way += 1
        self._metrics.under_way.inc()
        try:
            self._check(headers)
            await self._answer(scope, receive, send_with_id)
        except ClientGone:
            status = _CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - logged there, and told to the client
            refused = as_refusal(error)
            self._note(scope, refused)
            if not status:
                await error_response(refused)(scope, receive, send_with_id)
            elif not whole and STREAM_FAULT in scope["state"]:
                await _end_stream(scope["state"][STREAM_FAULT], refused, send_with_id)
        finally:
            self._under_way -= 1
            self._metrics.under_way.dec()
            seconds = time.perf_counter() - start
            self._metrics.request(scope["path"], scope["method"], status, seconds)

    def _check(self, headers: Headers) -> None:
        limits = self._limits
        if self._under_way > limits.requests:
            raise Refused(
                503,
                f"{limits.requests} requests are under way; try again in a second",
                code="overloaded",
                headers={"retry-after": "1"},
            )
        size = sum(len(name) + len(value) for name, value in headers.raw)
        if len(headers.raw) > limits.headers or size > limits.header_bytes:
            raise Refused(
                431,
                f"at most {limits.headers} headers with {limits.header_bytes} bytes are taken",
                code="headers_too_large",
            )

    def _note(self, scope: Scope, refused: Refused) -> None:
        code = refused.code or str(refused.status)
        self._metrics.refusal(code)
        caller, context = scope["state"].get("caller"), scope["state"]["line_context"]
        log_event(
            "refused",
            request_id=context.fields["request_id"],
            path=context.fields["path"],
            key=caller.key if caller else "",
            status=refused.status,
            code=code,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are tasks"
        context: LineContext = scope["state"]["line_context"]
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            context.given_up = "request_timeout"
            task.cancel()

        deadline = asyncio.get_running_loop().call_later(self._limits.request_seconds, give_up)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not late:  # uvicorn has waited for as long as it was told to
                raise Refused(
                    503, "the server is stopping; send the request again", code=_STOPPING
                ) from None
            raise Refused(
                504,
                f"no whole answer within {self._limits.request_seconds:g} seconds",
                code="request_timeout",
            ) from None
        finally:
            deadline.cancel()


async def _end_stream(fault: Fault, refused: Refused, send: Send) -> None:
    """Tell why a stream ends before its end, in its own form: its status is sent already."""
    import anyio

    with anyio.move_on_after(_MOST_TELLING_SECONDS):
        for part in fault(refusal_body(refused)["error"]):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _request_id(given: str) -> str:
    """The caller's id of a request, if it may stand in logs and headers, else one of ours."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
