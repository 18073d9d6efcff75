"""``OptLLM`` and ``AsyncOptLLM``: OpenAI-style clients that choose the model per request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._base_client import BaseClient
from optllm_router._budgets import AsyncBudgets, Budgets
from optllm_router._completions import AsyncChat, Chat
from optllm_router._feedback import AsyncFeedback, Feedback
from optllm_router._models import AsyncModels, Models
from optllm_router._money import Budget
from optllm_router._openai_errors import openai_errors
from optllm_router._types import Messages
from optllm_router.plan import AsyncPlan, Plan
from optllm_router.policy import Policy

if TYPE_CHECKING:
    from decimal import Decimal

    from openai import AsyncOpenAI, OpenAI
    from openai._client import (
        AsyncOpenAIWithRawResponse,
        AsyncOpenAIWithStreamedResponse,
        OpenAIWithRawResponse,
        OpenAIWithStreamedResponse,
    )
    from openai.resources import AsyncEmbeddings, Embeddings
    from openai.resources.responses import AsyncResponses, Responses
    from typing_extensions import Self

    from optllm_router._openai_http import http
    from optllm_router.receipts import Moment, Receipt

    BudgetLike: TypeAlias = str | float | Decimal | Budget | Mapping[str, Any]


class OptLLM(BaseClient):
    """An OpenAI-style client that chooses the model for every request; thread-safe.

    Use it as a context manager, or call :meth:`close`.
    """

    @property
    def chat(self) -> Chat:
        """``client.chat.completions.create(...)``."""
        return Chat(self._session)

    @property
    def budgets(self) -> Budgets:
        """``client.budgets.set("5 USD per day for tenant:acme")``: live changes."""
        return Budgets(self._runtime.ledger)

    @property
    def feedback(self) -> Feedback:
        """``client.feedback.create(answer.id, score=1.0)``."""
        return Feedback(self._session)

    @property
    def embeddings(self) -> Embeddings:
        """``client.embeddings.create(...)``: openai's own; ``auto`` is the only model for them."""
        return self.openai.embeddings

    @property
    def responses(self) -> Responses:
        """``client.responses.create(...)``: openai's own, answered as chat completions.

        Answers have ``optllm``; so have streams, where it is ``None`` until the last event was
        read, and that event's ``response``.
        """
        return self.openai.responses

    @property
    def openai(self) -> OpenAI:
        """A real ``openai.OpenAI`` over this client, for libraries that insist on one."""
        from optllm_router._wire import openai_over

        return openai_over(self._session)

    @property
    def with_raw_response(self) -> OpenAIWithRawResponse:
        """The same resources, whose methods return openai's raw responses."""
        return self.openai.with_raw_response

    @property
    def with_streaming_response(self) -> OpenAIWithStreamedResponse:
        """The same resources, whose methods return responses that are read as they come."""
        return self.openai.with_streaming_response

    @property
    def models(self) -> Models:
        """``client.models.list()``: what ``model`` may be."""
        return Models(self._session)

    def plan(
        self,
        queries: Sequence[str | Messages],
        *,
        budget_usd: float | Decimal | None = None,
        policy: str | Policy | None = None,
        **arguments: Any,
    ) -> Plan:
        """Allocate many queries jointly and quote them; nothing is sent before ``apply()``.

        Args:
            queries: prompts, or lists of messages.
            budget_usd: a cap on what they may cost; what is left of the client's budget is
                one, too. Queries that do not fit end in ``BudgetExceededError``.
            policy: instead of the client's own.
            **arguments: of ``chat.completions.create``, for all of them.
        """
        with openai_errors():
            return Plan(*self._planned(queries, budget_usd, policy, arguments))

    def check(self) -> None:
        """Load what the first request needs; raises ``ConfigurationError`` as that would."""
        with openai_errors():
            self._runtime.check()

    def receipt(
        self, *, since: Moment = "30d", until: Moment = None, baseline: str | None = None
    ) -> Receipt:
        """What was spent, on what, and what one model for everything would have cost.

        Args:
            since: start: a time ago like ``"7d"``, a date, a ``datetime``, a ``timedelta``, or
                Unix seconds.
            until: end, written the same way; ``None`` for now.
            baseline: the model to compare with; ``None`` for the dearest configured one,
                ``"none"`` for no comparison, which takes seconds.

        Raises:
            ConfigurationError: a moment is not understood, or the baseline has no price.
        """
        return self._runtime.receipt(since=since, until=until, baseline=baseline)

    def catch_up(self) -> None:
        """Learn the scores that other processes with this store were told of."""
        with openai_errors():
            self._runtime.scores.catch_up()

    def send(self, request: http.Request) -> http.Response:
        """Answer a request of OpenAI's HTTP API, as ``optllm serve`` gets it.

        Raises:
            OptLLMError: as ``chat.completions.create``; of a stream, before its first chunk.
        """
        from optllm_router._wire import Wire

        return Wire(self._session).answer(request)

    def close(self) -> None:
        """Wait for the requests under way, refuse new ones, close the store. May be called twice.

        The queries of a plan that are not under way yet are refused, too. Streams are ended and
        settled where they are, one that is being read after its next chunk: their readers get an
        ``InvalidRequestError``.
        """
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncOptLLM(BaseClient):
    """As :class:`OptLLM`, with ``await``.

    ``balance``, ``balances`` and ``verify`` wait for the store, and the event loop with them: use
    ``await client.budgets.list()`` and ``await asyncio.to_thread(client.verify)`` there.
    """

    @property
    def chat(self) -> AsyncChat:
        """``await client.chat.completions.create(...)``."""
        return AsyncChat(self._session)

    @property
    def budgets(self) -> AsyncBudgets:
        """``await client.budgets.set("5 USD per day for tenant:acme")``: live changes."""
        return AsyncBudgets(self._runtime.ledger)

    @property
    def feedback(self) -> AsyncFeedback:
        """``await client.feedback.create(answer.id, score=1.0)``."""
        return AsyncFeedback(self._session)

    @property
    def embeddings(self) -> AsyncEmbeddings:
        """``await client.embeddings.create(...)``; as :attr:`OptLLM.embeddings`."""
        return self.openai.embeddings

    @property
    def responses(self) -> AsyncResponses:
        """``await client.responses.create(...)``: openai's own, answered as chat completions."""
        return self.openai.responses

    @property
    def openai(self) -> AsyncOpenAI:
        """A real ``openai.AsyncOpenAI`` over this client, for libraries that insist on one."""
        from optllm_router._wire import async_openai_over

        return async_openai_over(self._session)

    @property
    def with_raw_response(self) -> AsyncOpenAIWithRawResponse:
        """As :attr:`OptLLM.with_raw_response`, without blocking the event loop."""
        return self.openai.with_raw_response

    @property
    def with_streaming_response(self) -> AsyncOpenAIWithStreamedResponse:
        """As :attr:`OptLLM.with_streaming_response`, without blocking the event loop."""
        return self.openai.with_streaming_response

    @property
    def models(self) -> AsyncModels:
        """``await client.models.list()``: what ``model`` may be."""
        return AsyncModels(self._session)

    async def plan(
        self,
        queries: Sequence[str | Messages],
        *,
        budget_usd: float | Decimal | None = None,
        policy: str | Policy | None = None,
        **arguments: Any,
    ) -> AsyncPlan:
        """As :meth:`OptLLM.plan`; computed in a thread."""
        with openai_errors():
            planned = await asyncio.to_thread(self._planned, queries, budget_usd, policy, arguments)
            return AsyncPlan(*planned)

    async def check(self) -> None:
        """Load what the first request needs; raises ``ConfigurationError`` as that would."""
        with openai_errors():
            await self._runtime.acheck()

    async def receipt(
        self, *, since: Moment = "30d", until: Moment = None, baseline: str | None = None
    ) -> Receipt:
        """As :meth:`OptLLM.receipt`; computed in a thread."""
        return await asyncio.to_thread(
            self._runtime.receipt, since=since, until=until, baseline=baseline
        )

    async def catch_up(self) -> None:
        """As :meth:`OptLLM.catch_up`, without blocking the event loop."""
        with openai_errors():
            await asyncio.to_thread(self._runtime.scores.catch_up)

    async def send(self, request: http.Request) -> http.Response:
        """As :meth:`OptLLM.send`, without blocking the event loop."""
        from optllm_router._wire import AsyncWire

        return await AsyncWire(self._session).answer(request)

    async def close(self) -> None:
        """As :meth:`OptLLM.close`, without blocking the event loop."""
        await asyncio.to_thread(self._runtime.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
