"""The calls of the chaos suite: which, how they are left, and what became of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from chaos_provider import KINDS, LOUD, MIXED, SILENT, SOUND, TRANSPORTS, model_name

from optllm_router import (
    AsyncOptLLM,
    OptLLM,
    OptLLMError,
    ProviderConnectionError,
    ProviderRateLimitedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

Ending = Literal["read", "close", "drop", "cancel"]
"""What the caller does: reads to the end, closes a stream, lets go of it, is cancelled."""

_WEIGHTS = {SOUND: 4.0, MIXED: 4.0, LOUD: 8.0, "huge": 0.15}
_LONGEST_BEFORE_LEAVING = 0.5
_LONGEST_HOLDING = 0.2
"""Within it, the provider makes a whole answer."""
_AT_ONCE = 24


@dataclass(frozen=True)
class Order:
    """One call.

    Attributes:
        number: in the order of the plan.
        transport: of the model.
        kind: of the model; any of the mixed ones is as good as the other, and any of the loud
            ones is asked where it is ``loud``.
        streamed: whether the answer is wanted as it is made.
        ending: what the caller does.
        chunks: read before a stream is closed or let go of.
        holding: seconds between the last of them and that.
        seconds: before a task is cancelled, and before it is cancelled again.
        timeout: seconds for the whole answer.
    """

    number: int
    transport: str
    kind: str
    streamed: bool
    ending: Ending
    chunks: int
    holding: float
    seconds: tuple[float, float]
    timeout: float

    @property
    def arguments(self) -> dict:
        """Of ``chat.completions.create``."""
        question = f"What is {self.number % 50} + 7?"  # few: what is learnt of them takes memory
        pinned = {"model": model_name(self.transport, self.kind)}
        routed = {"model": "auto", "extra_body": {"optllm": {"require_tags": self.kind}}}
        return {
            "messages": [{"role": "user", "content": question}],
            "stream": self.streamed,
            "timeout": self.timeout,
            **(routed if self.kind in (MIXED, LOUD) else pinned),
        }


def orders(
    seed: int, count: int, endings: Sequence[Ending], kinds: Sequence[str] = KINDS
) -> list[Order]:
    """``count`` different calls; the same for the same seed."""
    rng = random.Random(seed)
    weights = [_WEIGHTS.get(kind, 1.0) for kind in kinds]
    made = []
    for number, kind in enumerate(rng.choices(kinds, weights, k=count)):
        streamed = rng.random() < 0.5
        ending = rng.choice(endings)
        if not streamed and ending in ("close", "drop"):
            ending = "read"
        made.append(
            Order(
                number,
                rng.choices(TRANSPORTS, (2, 1))[0],  # through litellm they take ten times as long
                kind,
                streamed,
                ending,
                chunks=rng.randrange(1, 5),
                holding=rng.random() * _LONGEST_HOLDING,
                seconds=(rng.random() * _LONGEST_BEFORE_LEAVING, rng.random() * 0.02),
                timeout=rng.uniform(1.0, 1.5) if kind in SILENT else 60.0,
            )
        )
    return made


@dataclass(frozen=True)
class End:
    """What became of a call: an answer, an error, or the caller left.

    Attributes:
        order: the call.
        error: what it raised; ``None`` for an answer, and for a stream that was left.
        cancelled: whether its task was.
        said: characters of the answer.
        late: seconds after its time limit.
    """

    order: Order
    error: BaseException | None
    cancelled: bool
    said: int
    late: float


def is_right(end: End) -> bool:
    """Whether a call ended as it must: in an answer, or the error of what was done to it."""
    order, error = end.order, end.error
    if end.cancelled:
        return order.ending == "cancel"
    if error is not None and not isinstance(error, OptLLMError):
        return False
    if order.kind == MIXED or order.ending != "read":
        return True
    if order.kind == LOUD and order.streamed and error is not None:  # it broke in the middle
        return isinstance(error, (ProviderConnectionError, ProviderResponseError))
    expected = _expected_errors(order)
    return isinstance(error, expected) if expected else error is None and end.said > 0


def _expected_errors(order: Order) -> tuple[type[OptLLMError], ...]:
    """What a call may raise whose caller waits for its end; nothing for an answer."""
    litellm = order.transport == "litellm"
    # litellm takes a model that repeats itself for broken, when it gets to it in time.
    repeats = (ProviderResponseError,) if litellm and order.streamed else ()
    return {
        "rate_limit": (ProviderRateLimitedError,),
        "server_error": (ProviderUnavailableError,),
        "timeout": (ProviderTimeoutError,),
        "garbage": (ProviderResponseError,),
        "cut": (ProviderConnectionError,),
        "cut_early": (ProviderConnectionError,),
        "stall": (ProviderTimeoutError,),
        "endless": (ProviderTimeoutError, *repeats),
        "malformed": (ProviderResponseError,),
        "huge": () if litellm else (ProviderResponseError,),
    }.get(order.kind, ())


def ask_all(client: OptLLM, asked: Sequence[Order]) -> list[End]:
    """Every call, from many threads."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda order: _timed(order, lambda: _ask(client, order)), asked))


def _ask(client: OptLLM, order: Order) -> int:
    answer = client.chat.completions.create(**order.arguments)
    if not order.streamed:
        return len(answer.choices[0].message.content)
    said = 0
    for number, chunk in enumerate(answer):
        if order.ending != "read" and number >= order.chunks:
            time.sleep(order.holding)  # while the provider goes on
            break
        said += sum(len(choice.delta.content or "") for choice in chunk.choices)
    if order.ending == "close":
        answer.close()
    return said


async def aask_all(client: AsyncOptLLM, asked: Sequence[Order]) -> list[End]:
    """Every call, from many tasks."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(order: Order) -> End:
        async with room:
            task = asyncio.create_task(_atimed(order, lambda: _aask(client, order)))
            if order.ending == "cancel":
                for seconds in order.seconds:
                    await asyncio.wait([task], timeout=seconds)
                    task.cancel()
            try:
                return await task
            except asyncio.CancelledError as error:
                return End(order, _bare(error), True, 0, 0.0)

    return await asyncio.gather(*map(one, asked))


async def _aask(client: AsyncOptLLM, order: Order) -> int:
    answer = await client.chat.completions.create(**order.arguments)
    if not order.streamed:
        return len(answer.choices[0].message.content)
    said, number = 0, 0
    async for chunk in answer:
        if order.ending in ("close", "drop") and number >= order.chunks:
            await asyncio.sleep(order.holding)
            break
        number += 1
        said += sum(len(choice.delta.content or "") for choice in chunk.choices)
    if order.ending == "close":
        await answer.close()
    return said


def _timed(order: Order, ask: Callable[[], int]) -> End:
    deadline = time.monotonic() + order.timeout
    said, error = 0, None
    try:
        said = ask()
    except Exception as raised:  # noqa: BLE001 - what it is, is checked
        error = _bare(raised)
    return End(order, error, False, said, time.monotonic() - deadline)


async def _atimed(order: Order, ask: Callable[[], Awaitable[int]]) -> End:
    deadline = time.monotonic() + order.timeout
    said, error = 0, None
    try:
        said = await ask()
    except Exception as raised:  # noqa: BLE001 - what it is, is checked
        error = _bare(raised)
    return End(order, error, False, said, time.monotonic() - deadline)


def _bare(error: BaseException) -> BaseException:
    """An error without the frames it went through, which hold all that was there."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
