"""A plan: many queries allocated jointly, quoted before a cent is spent."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._chat import Prepared, chat_completion
from optllm_router._errors import InvalidRequestError, OptLLMError
from optllm_router._money import Budget
from optllm_router._openai_errors import as_openai_error, openai_errors
from optllm_router._runtime import Runtime
from optllm_router._types import Decision
from optllm_router.allocation import ParetoFront
from optllm_router.router import Quote

if TYPE_CHECKING:
    from decimal import Decimal

    from openai.types.chat import ChatCompletion

    Result: TypeAlias = ChatCompletion | OptLLMError
    OnResult: TypeAlias = Callable[[int, Result], None]

_log = logging.getLogger("optllm_router")


def checked_queries(queries: Any) -> Iterable[Any]:
    """Several queries; a text is none of its letters.

    Raises:
        InvalidRequestError: it is one query, or none.
    """
    if isinstance(queries, (str, bytes, Mapping)) or not isinstance(queries, Iterable):
        raise InvalidRequestError(
            f"queries is one {type(queries).__name__}; pass a list of prompts, or of lists of "
            "messages, like ['What is 2 + 2?']"
        )
    return queries


def plan_budget(budget_usd: float | Decimal) -> Budget:
    """The budget of one plan, which is a job of its own; its calls must fit into it, too."""
    name = f"plan-{secrets.token_hex(8)}"
    return Budget(budget_usd, "total", name, scope=f"job:{name}")


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
    _cap: Budget | None
    _unapplied: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _arrived: dict[int, Result] = field(default_factory=dict, repr=False, compare=False)
    _complaints: list[Exception] = field(default_factory=list, repr=False, compare=False)

    @property
    def results(self) -> list[Result | None]:
        """What has arrived so far, in the order of the queries; ``None`` where nothing has."""
        return [self._arrived.get(position) for position in range(len(self.decisions))]

    def _begin(self, concurrency: int) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidRequestError(f"concurrency {concurrency!r} must be 1 or more")
        if not self._unapplied.acquire(blocking=False):
            raise InvalidRequestError("this plan was applied already; make a new one")

    def _open_budget(self) -> None:
        if self._cap is not None:
            self._runtime.ledger.set_budget(self._cap)

    def _arrive(self, position: int, result: Result, on_result: OnResult | None) -> None:
        self._arrived[position] = result
        if on_result is None:
            return
        try:
            on_result(position, result)
        except Exception as error:  # noqa: BLE001 - raised by apply(), once all have arrived
            if self._complaints:
                _log.exception("on_result failed for query %d, as it did before", position)
            self._complaints.append(error)

    def _finish(self) -> list[Result]:
        if self._complaints:
            raise self._complaints[0]
        return [self._arrived[position] for position in range(len(self.decisions))]


class Plan(_Planned):
    """A plan of an :class:`OptLLM`."""

    def apply(self, *, concurrency: int = 16, on_result: OnResult | None = None) -> list[Result]:
        """Send every query to the candidate planned for it; one result per query, in order.

        A query that fails, or for which the budget has no room any more, has its error as
        its result; the others go on. Where money that running calls have set aside may come
        back, a query waits for it instead of turning to another candidate.

        An exception of ``on_result`` stops nothing either: it is raised when all queries are
        through, and the results are in :attr:`results`.

        Args:
            concurrency: calls under way at once, 1 or more.
            on_result: called with each query's position and result as it arrives.

        Raises:
            InvalidRequestError: the plan was applied already, or ``concurrency`` is under 1.
            Exception: the first that ``on_result`` raised.
        """
        with openai_errors():
            self._runtime.check()
            self._begin(concurrency)
            self._open_budget()

        def one(position: int) -> None:
            query, decision = self._prepared[position].query, self.decisions[position]
            try:
                with self._runtime.under_way():
                    answer = self._runtime.answer(decision, query, patient=True, cap=self._cap)
                result: Result = chat_completion(answer)
            except OptLLMError as error:
                result = as_openai_error(error)
            self._arrive(position, result, on_result)

        with ThreadPoolExecutor(concurrency, thread_name_prefix="optllm-plan") as pool:
            list(pool.map(one, range(len(self.decisions))))
        return self._finish()


class AsyncPlan(_Planned):
    """A plan of an :class:`AsyncOptLLM`."""

    async def apply(
        self, *, concurrency: int = 16, on_result: OnResult | None = None
    ) -> list[Result]:
        """As :meth:`Plan.apply`, without blocking the event loop."""
        with openai_errors():
            await self._runtime.acheck()
            self._begin(concurrency)
            await asyncio.to_thread(self._open_budget)
        room = asyncio.Semaphore(concurrency)

        async def one(position: int) -> None:
            query, decision = self._prepared[position].query, self.decisions[position]
            async with room:
                try:
                    with self._runtime.under_way():
                        answer = await self._runtime.aanswer(
                            decision, query, patient=True, cap=self._cap
                        )
                    result: Result = chat_completion(answer)
                except OptLLMError as error:
                    result = as_openai_error(error)
            self._arrive(position, result, on_result)

        positions = range(len(self.decisions))
        for error in await asyncio.gather(*map(one, positions), return_exceptions=True):
            if error is not None:  # raised only now: nobody would watch the others
                raise error
        return self._finish()
