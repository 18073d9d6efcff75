"""Between HTTP and the client: requests in, whole answers and streams out."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from optllm_router._openai_http import http
from optllm_router._openai_streams import FAULT
from optllm_router._wire import PARSED
from optllm_router.server.errors import as_refusal, refusal_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from optllm_router.client import AsyncOptLLM

Note = Callable[[http.Response], None]
"""Called once an answer is over, with the client's response."""
STREAM_FAULT = "stream_fault"
"""In a request's state once its stream has begun: a function that tells an error as last bytes."""

_STREAMED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""What keeps proxies from holding chunks back."""
_HOP_BY_HOP = frozenset(("content-length", "transfer-encoding", "connection", "x-request-id"))


async def relay(
    client: AsyncOptLLM,
    path: str,
    body: bytes,
    parsed: Mapping[str, Any],
    request_id: str,
    note: Note,
) -> Response:
    """Have a client answer a request of OpenAI's API.

    Args:
        client: decides, pays, sends.
        path: of the endpoint.
        body: JSON, as it came.
        parsed: what is in it.
        request_id: handed on to the provider.
        note: told when it is over.

    Raises:
        OptLLMError: there is no answer.
    """
    headers = {"content-type": "application/json", "x-request-id": request_id}
    request = http.Request(
        "POST",
        f"https://optllm.invalid{path}",
        content=body,
        headers=headers,
        extensions={PARSED: parsed},
    )
    response = await client.send(request)
    further = {name: value for name, value in response.headers.items() if name not in _HOP_BY_HOP}
    if response.is_stream_consumed:
        note(response)
        return Response(response.content, headers=further)
    return _Streamed(response, {**further, **_STREAMED}, note)


class _Streamed(Response):
    """A stream, handed on chunk by chunk; it is closed and noted however it ends."""

    def __init__(self, response: http.Response, headers: dict[str, str], note: Note) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._response = response
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        scope["state"][STREAM_FAULT] = self._response.extensions[FAULT]
        try:
            await send(start)
            async for part in self._parts():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._response.aclose()
            self._note(self._response)

    async def _parts(self) -> AsyncIterable[bytes]:
        stream = self._response.stream
        assert isinstance(stream, http.AsyncByteStream), "an asynchronous client answered"
        try:
            async for part in stream:
                yield part
        except Exception as error:  # noqa: BLE001 - logged there, and told to the client
            # The status is sent already: openai's clients raise what an event says.
            told = refusal_body(as_refusal(error))["error"]
            for part in self._response.extensions[FAULT](told):
                yield part
