"""``client.chat.completions``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from optllm_router._chat import chat_completion
from optllm_router._openai_errors import openai_errors
from optllm_router._session import Session
from optllm_router._types import Messages

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


class Chat:
    """``client.chat``."""

    def __init__(self, session: Session) -> None:
        self.completions = Completions(session)


class AsyncChat:
    """``client.chat``."""

    def __init__(self, session: Session) -> None:
        self.completions = AsyncCompletions(session)


class Completions:
    """``client.chat.completions``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self, *, messages: Messages, model: str = "auto", **arguments: Any
    ) -> ChatCompletion:
        """Answer a conversation.

        Args:
            messages: as OpenAI's API takes them.
            model: ``auto`` to choose, or a configured model's name to pin it.
            **arguments: further arguments of OpenAI's API. ``extra_body={"optllm": {"policy":
                "min_cost:0.9"}}`` sets the policy of this call.

        Returns:
            OpenAI's type. ``id`` is what ``feedback.create`` takes; ``optllm`` tells how the
            answer was made.

        Raises:
            BudgetExceededError: (an ``openai.RateLimitError``) nothing was sent.
            InvalidRequestError: (an ``openai.BadRequestError``) nothing was sent.
            ProviderError: (the fitting ``openai`` class) the candidate failed.
            AllCandidatesFailedError: (an ``openai.InternalServerError``) each one failed.
        """
        runtime = self._session.runtime
        with openai_errors():
            prepared = self._session.prepare(messages, model, arguments)
            runtime.check()
            with runtime.under_way():
                decision = runtime.decide(
                    prepared.query, prepared.model, prepared.options.policy
                ).result()
                answer = runtime.answer(decision, prepared.query)
            return chat_completion(answer)


class AsyncCompletions:
    """``client.chat.completions``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self, *, messages: Messages, model: str = "auto", **arguments: Any
    ) -> ChatCompletion:
        """As :meth:`Completions.create`, without blocking the event loop."""
        runtime = self._session.runtime
        with openai_errors():
            prepared = self._session.prepare(messages, model, arguments)
            await runtime.acheck()
            with runtime.under_way():
                decision = await asyncio.wrap_future(
                    runtime.decide(prepared.query, prepared.model, prepared.options.policy)
                )
                answer = await runtime.aanswer(decision, prepared.query)
            return chat_completion(answer)
