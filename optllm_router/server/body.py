"""The bodies of requests, read within bounds; and the clients that sent them, watched."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from optllm_router.server.errors import Refused
from optllm_router.server.options import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class Body:
    """Calls an application once the body is there, and cancels it when the client goes away."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on; raises :class:`Refused` or :class:`ClientGone`."""
        body = await self._read(receive)
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()
        answered = False

        async def replay() -> Message:
            if pending:
                return pending.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async def watch(task: asyncio.Task[Any]) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            if not answered:
                scope["state"]["line_context"].given_up = "client_gone"
                task.cancel()

        watcher = asyncio.create_task(watch(_this_task()))
        try:
            await self._app(scope, replay, send_and_note)
        except asyncio.CancelledError:
            if gone.is_set():
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def _read(self, receive: Receive) -> bytes:
        import anyio

        most = self._limits.body_bytes
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    size += len(message.get("body", b""))
                    if size <= most:
                        parts.append(message.get("body", b""))
                    elif size > 2 * most:  # up to here it is read, for the client to hear why
                        break
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refused(
                408,
                f"the body took over {self._limits.body_seconds:g} seconds; send it faster",
                code="request_timeout",
            ) from None
        if size > most:
            raise Refused(
                413,
                f"the body has over {most} bytes; send less, or raise --max-body-bytes",
                code="request_too_large",
            )
        return b"".join(parts)


def read_json(body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Refused: it is none, or more than the limits allow.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.values:
        raise Refused(413, f"the JSON holds over {limits.values} values", code="request_too_large")
    try:
        value = json.loads(body, parse_constant=_no_number)
        too_deep = _deeper_than(value, limits.depth)
    except RecursionError:
        too_deep = True
    except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
        raise Refused(400, f"the body is not JSON: {_reason(error)}", code="invalid_json") from None
    if too_deep:
        raise Refused(400, f"the JSON is nested over {limits.depth} deep", code="invalid_json")
    if not isinstance(value, dict):
        raise Refused(
            400, 'the body must be a JSON object, like {"model": ...}', code="invalid_json"
        )
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _reason(error: ValueError) -> str:
    """Why it is not JSON, without a word of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "requests are tasks"
    return task
