"""A plan: many queries allocated jointly, quoted before a cent is spent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from optllm_router._chat import Prepared, chat_completion
from optllm_router._errors import InvalidRequestError, OptLLMError
from optllm_router._openai_errors import as_openai_error, openai_errors
from optllm_router._runtime import Runtime
from optllm_router._types import Decision
from optllm_router.allocation import ParetoFront
from optllm_router.router import Quote

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    Result: TypeAlias = ChatCompletion | OptLLMError
    OnResult: TypeAlias = Callable[[int, Result], None]


@dataclass(frozen=True)
class _Planned:
    """What both kinds of plan hold.

    Attributes:
        decisions: who is to answer each query, in the order of the queries.
        quote: what that is expected to cost and to achieve.
        front: every optimal alternative, from all-cheapest to highest expected success.
    """

    decisions: Sequence[Decision]
    quote: Quote
    front: ParetoFront
    _prepared: Sequence[Prepared]
    _runtime: Runtime
    _unapplied: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def _begin(self, concurrency: int) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidRequestError(f"concurrency {concurrency!r} must be 1 or more")
        if not self._unapplied.acquire(blocking=False):
            raise InvalidRequestError("this plan was applied already; make a new one")


class Plan(_Planned):
    """A plan of an :class:`OptLLM`."""

    def apply(self, *, concurrency: int = 16, on_result: OnResult | None = None) -> list[Result]:
        """Send every query to the candidate planned for it; one result per query, in order.

        A query that fails, or for which the budget has no room any more, has its error as
        its result; the others go on. Where money that running calls have set aside may come
        back, a query waits for it instead of turning to another candidate.

        Args:
            concurrency: calls under way at once, 1 or more.
            on_result: called with each query's position and result as it arrives.

        Raises:
            InvalidRequestError: the plan was applied already, or ``concurrency`` is under 1.
        """
        with openai_errors():
            self._runtime.check()
            self._begin(concurrency)

        def one(position: int) -> Result:
            query = self._prepared[position].query
            try:
                answer = self._runtime.answer(self.decisions[position], query, patient=True)
                result: Result = chat_completion(answer)
            except OptLLMError as error:
                result = as_openai_error(error)
            if on_result is not None:
                on_result(position, result)
            return result

        with ThreadPoolExecutor(concurrency, thread_name_prefix="optllm-plan") as pool:
            return list(pool.map(one, range(len(self.decisions))))


class AsyncPlan(_Planned):
    """A plan of an :class:`AsyncOptLLM`."""

    async def apply(
        self, *, concurrency: int = 16, on_result: OnResult | None = None
    ) -> list[Result]:
        """As :meth:`Plan.apply`, without blocking the event loop."""
        with openai_errors():
            await self._runtime.acheck()
            self._begin(concurrency)
        room = asyncio.Semaphore(concurrency)

        async def one(position: int) -> Result:
            query, decision = self._prepared[position].query, self.decisions[position]
            async with room:
                try:
                    answer = await self._runtime.aanswer(decision, query, patient=True)
                    result: Result = chat_completion(answer)
                except OptLLMError as error:
                    result = as_openai_error(error)
            if on_result is not None:
                on_result(position, result)
            return result

        return list(await asyncio.gather(*map(one, range(len(self.decisions)))))
