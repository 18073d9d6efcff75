"""``client.chat.completions``.

:meth:`Completions.create` is ours; what is built on it (``parse``, ``stream``, raw responses) is
openai's own code over :mod:`._wire`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from optllm_router._chat import Prepared, chat_completion
from optllm_router._openai_errors import openai_errors
from optllm_router._session import Session
from optllm_router._types import Messages

if TYPE_CHECKING:
    from openai.lib.streaming.chat import (
        AsyncChatCompletionStreamManager,
        ChatCompletionStreamManager,
    )
    from openai.resources.chat.chat import (
        AsyncChatWithRawResponse,
        AsyncChatWithStreamingResponse,
        ChatWithRawResponse,
        ChatWithStreamingResponse,
    )
    from openai.resources.chat.completions import AsyncCompletions as AsyncOpenAICompletions
    from openai.resources.chat.completions import Completions as OpenAICompletions
    from openai.resources.chat.completions.completions import (
        AsyncCompletionsWithRawResponse,
        AsyncCompletionsWithStreamingResponse,
        CompletionsWithRawResponse,
        CompletionsWithStreamingResponse,
    )
    from openai.types.chat import ChatCompletion, ParsedChatCompletion

    from optllm_router._openai_streams import AsyncChatStream, ChatStream


class Chat:
    """``client.chat``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def completions(self) -> Completions:
        """``client.chat.completions.create(...)``."""
        return Completions(self._session)

    @property
    def with_raw_response(self) -> ChatWithRawResponse:
        """The same, whose methods return openai's raw responses with their headers."""
        from optllm_router._wire import openai_over

        return openai_over(self._session).chat.with_raw_response

    @property
    def with_streaming_response(self) -> ChatWithStreamingResponse:
        """The same, whose methods return responses whose body is read as it comes."""
        from optllm_router._wire import openai_over

        return openai_over(self._session).chat.with_streaming_response


class AsyncChat:
    """``client.chat``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def completions(self) -> AsyncCompletions:
        """``await client.chat.completions.create(...)``."""
        return AsyncCompletions(self._session)

    @property
    def with_raw_response(self) -> AsyncChatWithRawResponse:
        """As :attr:`Chat.with_raw_response`, without blocking the event loop."""
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session).chat.with_raw_response

    @property
    def with_streaming_response(self) -> AsyncChatWithStreamingResponse:
        """As :attr:`Chat.with_streaming_response`, without blocking the event loop."""
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session).chat.with_streaming_response


class Completions:
    """``client.chat.completions``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        stream: Literal[False] | None = None,
        **arguments: Any,
    ) -> ChatCompletion: ...

    @overload
    def create(
        self, *, messages: Messages, model: str = "auto", stream: Literal[True], **arguments: Any
    ) -> ChatStream: ...

    @overload
    def create(
        self, *, messages: Messages, model: str = "auto", stream: bool, **arguments: Any
    ) -> ChatCompletion | ChatStream: ...

    def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        stream: bool | None = None,
        **arguments: Any,
    ) -> ChatCompletion | ChatStream:
        """Answer a conversation.

        Args:
            messages: as OpenAI's API takes them.
            model: ``auto`` to choose, ``auto:POLICY`` to choose by another policy, or a
                configured model's name to pin it.
            stream: True for chunks as they come.
            **arguments: further arguments of OpenAI's API. ``extra_body={"optllm": {...}}`` sets
                what :meth:`OptLLM.with_options` does, for this call.

        Returns:
            OpenAI's type. ``id`` is what ``feedback.create`` takes; ``optllm`` tells how the
            answer was made (of a stream, once it is read to its end).

        Raises:
            BudgetExceededError: (an ``openai.RateLimitError``) nothing was sent.
            InvalidRequestError: (an ``openai.BadRequestError``) nothing was sent.
            ProviderError: (the fitting ``openai`` class) the only candidate that was asked failed.
            AllCandidatesFailedError: each one failed: the ``openai`` class of their faults where
                all are of one kind, as for timeouts, else an ``openai.InternalServerError``. Both
                have ``causes``, what each attempt raised, and ``left_out``, who was not asked.
        """
        with openai_errors():
            prepared = self._session.prepare(messages, model, {**arguments, "stream": stream})
            if not prepared.stream:
                return chat_completion(self._session.complete(prepared))
            return _stream(self._session, prepared)

    def parse(self, *, messages: Messages, model: str = "auto", **arguments: Any) -> Any:
        """As :meth:`create`, with answers parsed into the class given as ``response_format``.

        Returns:
            ``openai.types.chat.ParsedChatCompletion``, with ``optllm`` as there.
        """
        answer: ParsedChatCompletion[Any] = _helpers(self._over_wire()).parse(
            messages=messages, model=model, **arguments
        )
        return answer

    def stream(
        self, *, messages: Messages, model: str = "auto", **arguments: Any
    ) -> ChatCompletionStreamManager[Any]:
        """openai's helper around a stream: events, and the whole answer at the end.

        Both the helper and ``get_final_completion()`` have ``optllm``; the helper's is ``None``
        until the last event was read.
        """
        helper: ChatCompletionStreamManager[Any] = _helpers(self._over_wire()).stream(
            messages=messages, model=model, **arguments
        )
        return helper

    @property
    def with_raw_response(self) -> CompletionsWithRawResponse:
        """The same methods, returning openai's raw responses with their headers."""
        return self._over_wire().with_raw_response

    @property
    def with_streaming_response(self) -> CompletionsWithStreamingResponse:
        """The same methods, returning responses whose body is read as it comes."""
        return self._over_wire().with_streaming_response

    def _over_wire(self) -> OpenAICompletions:
        from optllm_router._wire import openai_over

        return openai_over(self._session).chat.completions


class AsyncCompletions:
    """``client.chat.completions``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        stream: Literal[False] | None = None,
        **arguments: Any,
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self, *, messages: Messages, model: str = "auto", stream: Literal[True], **arguments: Any
    ) -> AsyncChatStream: ...

    @overload
    async def create(
        self, *, messages: Messages, model: str = "auto", stream: bool, **arguments: Any
    ) -> ChatCompletion | AsyncChatStream: ...

    async def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        stream: bool | None = None,
        **arguments: Any,
    ) -> ChatCompletion | AsyncChatStream:
        """As :meth:`Completions.create`, without blocking the event loop."""
        with openai_errors():
            prepared = self._session.prepare(messages, model, {**arguments, "stream": stream})
            if not prepared.stream:
                return chat_completion(await self._session.acomplete(prepared))
            return await _astream(self._session, prepared)

    async def parse(self, *, messages: Messages, model: str = "auto", **arguments: Any) -> Any:
        """As :meth:`Completions.parse`, without blocking the event loop."""
        answer: ParsedChatCompletion[Any] = await _helpers(self._over_wire()).parse(
            messages=messages, model=model, **arguments
        )
        return answer

    def stream(
        self, *, messages: Messages, model: str = "auto", **arguments: Any
    ) -> AsyncChatCompletionStreamManager[Any]:
        """As :meth:`Completions.stream`, without blocking the event loop."""
        helper: AsyncChatCompletionStreamManager[Any] = _helpers(self._over_wire()).stream(
            messages=messages, model=model, **arguments
        )
        return helper

    @property
    def with_raw_response(self) -> AsyncCompletionsWithRawResponse:
        """As :attr:`Completions.with_raw_response`, without blocking the event loop."""
        return self._over_wire().with_raw_response

    @property
    def with_streaming_response(self) -> AsyncCompletionsWithStreamingResponse:
        """As :attr:`Completions.with_streaming_response`, without blocking the event loop."""
        return self._over_wire().with_streaming_response

    def _over_wire(self) -> AsyncOpenAICompletions:
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session).chat.completions


def _stream(session: Session, prepared: Prepared) -> ChatStream:
    from optllm_router._chunks import ChatChunks
    from optllm_router._openai_streams import ChatStream

    return ChatStream(ChatChunks(session.stream(prepared), prepared.include_usage))


async def _astream(session: Session, prepared: Prepared) -> AsyncChatStream:
    from optllm_router._chunks import AsyncChatChunks
    from optllm_router._openai_streams import AsyncChatStream

    answer = await session.astream(prepared)
    return AsyncChatStream(AsyncChatChunks(answer, prepared.include_usage))


def _helpers(completions: Any) -> Any:
    """Where openai has ``parse`` and ``stream``: until its version 1.92 they were beta."""
    if hasattr(completions, "parse"):
        return completions
    return completions._client.beta.chat.completions
