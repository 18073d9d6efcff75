"""A streamed answer as JSON values: the chunks of OpenAI's API, named after the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optllm_router._openai_errors import openai_errors
from optllm_router._streams import AnswerStream, AsyncAnswerStream
from optllm_router._types import Chunk, Usage

if TYPE_CHECKING:
    from typing_extensions import Self


class _Shape:
    """What a chunk becomes for its reader.

    A provider is always asked for its usage; the reader gets it where it was asked for, as a
    last chunk without choices. Where the provider sends none, that chunk holds our estimate.
    """

    def __init__(self, id: str, include_usage: bool) -> None:
        self._id = id
        self._include_usage = include_usage
        self._told_usage = False
        self._last: dict[str, Any] = {}

    def body(self, chunk: Chunk) -> dict[str, Any] | None:
        """The chunk as it goes on; ``None`` for one that the reader did not ask for."""
        body = {key: value for key, value in chunk.body.items() if value is not None}
        body.update(id=self._id, object="chat.completion.chunk")
        body.setdefault("choices", [])
        self._last = body
        if not self._include_usage:
            body.pop("usage", None)
            return body if body["choices"] else None
        self._told_usage = self._told_usage or "usage" in body
        return body

    def rest(self, usage: Usage | None) -> dict[str, Any] | None:
        """What is still to be said at the end; ``None`` for nothing."""
        if usage is None or not self._include_usage or self._told_usage:
            return None
        self._told_usage = True
        return {**self._last, "choices": [], "usage": _usage_block(usage)}


class ChatChunks:
    """The bodies of a stream's chunks, as they come."""

    def __init__(self, answer: AnswerStream, include_usage: bool) -> None:
        self.answer = answer
        self._shape = _Shape(answer.decision.id, include_usage)

    def close(self) -> None:
        """End the stream, at the provider as well."""
        self.answer.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        with openai_errors():
            for chunk in self.answer:
                body = self._shape.body(chunk)
                if body is not None:
                    return body
        paid = self.answer.paid
        rest = self._shape.rest(paid.usage if paid else None)
        if rest is None:
            raise StopIteration
        return rest


class AsyncChatChunks:
    """As :class:`ChatChunks`, with ``async for``."""

    def __init__(self, answer: AsyncAnswerStream, include_usage: bool) -> None:
        self.answer = answer
        self._shape = _Shape(answer.decision.id, include_usage)

    async def close(self) -> None:
        """As :meth:`ChatChunks.close`."""
        await self.answer.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        with openai_errors():
            async for chunk in self.answer:
                body = self._shape.body(chunk)
                if body is not None:
                    return body
        paid = self.answer.paid
        rest = self._shape.rest(paid.usage if paid else None)
        if rest is None:
            raise StopAsyncIteration
        return rest


def _usage_block(usage: Usage) -> Mapping[str, Any]:
    """Usage as OpenAI's API writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
