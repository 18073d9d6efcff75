"""A process full of callers that are out of luck: ``torture_worker.py URL BILL SEED CALLERS``.

Each caller carries flows out against one ledger, and a provider that answers, fails, hangs, and
charges for it or not; many are streams, which are read to their end, closed, or let go of. What the
provider charges it appends to the file BILL, one line per charge and one ``write`` each, so that a
kill cannot tear it: of a stream, each token when it is made. Half of the callers are threads, half
are tasks, which get cancelled besides. Ends when stdin does, and prints what happened.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from typing import Any

from optllm_router._errors import (
    OptLLMError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StoreError,
)
from optllm_router._flow import arun, request_flow, run, stream_flow
from optllm_router._health import Gate
from optllm_router._performing import _anext, _next
from optllm_router._runtime import _nothing
from optllm_router._steps import (
    Close,
    Count,
    HangUp,
    Open,
    Opened,
    Pause,
    Receive,
    Request,
    Reserve,
    Send,
    Step,
    Wait,
)
from optllm_router._streams import AnswerStream, AsyncAnswerStream, Life, Sweeper
from optllm_router._types import Call, Candidate, Chunk, Completion, Decision, Price, Usage
from optllm_router.ledger import LeasingLedger, Ledger
from optllm_router.pricing import charge_nano
from optllm_router.store import Database

TENANT = ("tenant:acme",)
LEASE_SECONDS = 1.0
CANDIDATES = {
    name: Candidate(name, name, Price(Decimal(price), Decimal(4 * price), "torture"), 100)
    for name, price in (("dear", 1_000), ("cheap", 10))
}
FAILURES = (ProviderRateLimitedError, ProviderUnavailableError, ProviderTimeoutError)
TOKEN = "x"


class Provider:
    """Charges what it likes, as long as it is within what the call can cost."""

    def __init__(self, bill: str, chance: random.Random) -> None:
        self._bill = os.open(bill, os.O_WRONLY | os.O_APPEND)
        self._chance = chance

    def answer(self, candidate: Candidate, call: Call) -> Completion | Exception:
        """Charge or not, then answer or not; never fail for free after charging."""
        fate = self._chance.random()
        if fate < 0.15:
            return self._chance.choice(FAILURES[:2])("no", candidate=candidate.name)
        usage = Usage(
            self._chance.randint(0, call.most_prompt_tokens),
            self._chance.randint(0, call.max_output_tokens or 0),
        )
        if fate < 0.25:
            return ProviderTimeoutError("who knows", candidate=candidate.name)
        self._charge(candidate, call, usage)
        if fate < 0.35:
            return ProviderTimeoutError("charged", candidate=candidate.name)
        return Completion({}, usage if fate < 0.95 else None)

    def stream(self, candidate: Candidate, call: Call) -> Iterator[Chunk]:
        """A token at a time, each charged when it is made; may refuse, and break off."""
        fate = self._chance.random()
        if fate < 0.1:
            raise self._chance.choice(FAILURES[:2])("no", candidate=candidate.name)
        self._charge(candidate, call, Usage(call.most_prompt_tokens, 0))
        if fate < 0.15:
            raise ProviderTimeoutError("charged", candidate=candidate.name)
        tokens = min(self._chance.randint(1, 8), call.max_output_tokens or 0)
        for token in range(tokens):
            if token > 0 and fate < 0.25:
                raise self._chance.choice(FAILURES[1:])("broken", candidate=candidate.name)
            self._charge(candidate, call, Usage(0, 1))
            yield Chunk({"choices": [{"index": 0, "delta": {"content": TOKEN}}]})
        usage = Usage(call.most_prompt_tokens, tokens) if fate < 0.7 else None
        yield Chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, usage)

    async def astream(self, candidate: Candidate, call: Call) -> AsyncIterator[Chunk]:
        """The same, slowly."""
        for chunk in self.stream(candidate, call):
            yield chunk
            await asyncio.sleep(self.delay() / 4)

    def _charge(self, candidate: Candidate, call: Call, usage: Usage) -> None:
        cost = charge_nano(candidate.price, usage)
        os.write(self._bill, f"{call.messages[0]['content']} {candidate.name} {cost}\n".encode())

    def delay(self) -> float:
        """Seconds that an answer takes."""
        return self._chance.random() * 0.02


class Callers:
    """So many callers, until they are told to stop."""

    def __init__(self, ledger: Ledger, provider: Provider, seed: int) -> None:
        self._ledger = ledger
        self._provider = provider
        self._chance = random.Random(seed)
        self._prefix = f"{os.getpid()}-{time.time_ns():x}"
        self._numbers = iter(range(10**9))
        self._sweeper = Sweeper()
        self.stopped = threading.Event()
        self.seen: Counter[str] = Counter()

    def close(self) -> None:
        """End the streams that were let go of."""
        self._sweeper.close()

    def request(self, kind: str) -> Request:
        id = f"{self._prefix}-{kind}{next(self._numbers)}"
        messages = [{"role": "user", "content": id}]
        call = Call(messages, most_prompt_tokens=self._chance.randint(1, 400))
        decision = Decision(id, "dear", ("cheap",), 0.5, 0.1, 1, 1.0, 0.0, "torture")
        gates = {name: Gate() for name in CANDIDATES}  # new ones never rest
        return Request(decision, call, CANDIDATES, gates, self._chance.choice((TENANT, ())))

    def keep_calling(self) -> None:
        """What a thread does."""
        while not self.stopped.is_set():
            try:
                if self._chance.random() < 0.6:
                    run(request_flow(self.request("whole")), self.perform)
                    self.seen["answered"] += 1
                else:
                    self.read_some(self.request("stream"))
            except OptLLMError as error:
                self.note(error)
                time.sleep(0.01)

    def read_some(self, request: Request) -> None:
        """A stream, to its end or not."""
        life = Life(request.decision, stream_flow(request), self.settle, _nothing)
        stream = AnswerStream(life, self.perform, self._sweeper).open()
        ending = self._chance.choice(("read", "closed", "let go of"))
        most = 100 if ending == "read" else self._chance.randint(0, 4)
        for place, _ in enumerate(stream):
            if place >= most:
                break
        if ending == "closed":
            stream.close()
        self.seen[ending] += 1

    async def aread_some(self, request: Request) -> None:
        """The same, in a task, which may be cancelled."""
        life = Life(request.decision, stream_flow(request), self.settle, _nothing)
        stream = await AsyncAnswerStream(life, self.aperform, self._sweeper).open()
        ending = self._chance.choice(("read", "closed"))
        most = 100 if ending == "read" else self._chance.randint(0, 4)
        place = 0
        async for _ in stream:
            place += 1
            if place > most:
                break
        await stream.close()
        self.seen[ending] += 1

    async def keep_calling_impatiently(self) -> None:
        """What a task does."""
        while not self.stopped.is_set():
            patience = self._chance.choice((0.005, 0.05, 5.0))
            whole = self._chance.random() < 0.6
            if whole:
                flow = request_flow(self.request("whole"))
                call = asyncio.create_task(arun(flow, self.aperform, self.settle))
            else:
                call = asyncio.create_task(self.aread_some(self.request("stream")))
            await asyncio.wait([call], timeout=patience)
            call.cancel()
            try:
                await call
                self.seen["answered"] += whole
            except asyncio.CancelledError:
                self.seen["cancelled"] += 1
            except OptLLMError as error:
                self.note(error)
                await asyncio.sleep(0.01)

    def note(self, error: OptLLMError) -> None:
        self.seen[type(error).__name__] += 1
        if isinstance(error, StoreError):
            sys.stderr.write(f"{error}\n")

    def perform(self, step: Step) -> Any:
        match step:
            case Reserve(reservation):
                return self._ledger.reserve(
                    replace(reservation, lease_seconds=LEASE_SECONDS)
                ).result()
            case Send(candidate, call):
                time.sleep(self._provider.delay())
                return self._provider.answer(candidate, call)
            case Open(candidate, call):
                time.sleep(self._provider.delay())
                chunks = self._provider.stream(candidate, call)
                first = _next(chunks)
                return first if isinstance(first, ProviderError) else Opened(first, chunks)
            case Receive(rest):
                time.sleep(self._provider.delay() / 4)
                return _next(rest)
            case HangUp() | Count():
                return self.settle(step)
            case Close():
                return self._close(step).result()
            case Pause(seconds) | Wait(seconds):
                time.sleep(seconds)

    async def aperform(self, step: Step) -> Any:
        match step:
            case Reserve(reservation):
                short = replace(reservation, lease_seconds=LEASE_SECONDS)
                return await asyncio.shield(asyncio.wrap_future(self._ledger.reserve(short)))
            case Send(candidate, call):
                if self._chance.random() < 0.5:
                    await asyncio.sleep(self._provider.delay())
                answer = self._provider.answer(candidate, call)
                await asyncio.sleep(self._provider.delay())
                return answer
            case Open(candidate, call):
                await asyncio.sleep(self._provider.delay())
                chunks = self._provider.astream(candidate, call)
                first = await _anext(chunks)
                return first if isinstance(first, ProviderError) else Opened(first, chunks)
            case Receive(rest):
                return await _anext(rest)
            case HangUp(rest):
                await rest.aclose()
            case Count():
                return self.settle(step)
            case Close():
                return await asyncio.shield(asyncio.wrap_future(self._close(step)))
            case Pause(seconds) | Wait(seconds):
                await asyncio.sleep(seconds)

    def settle(self, step: Step) -> Any:
        """The last steps of a stream, from any thread."""
        match step:
            case HangUp(rest):
                rest.close()
            case Count(_, call, answered):
                tokens = answered.count(TOKEN)
                return Usage(call.most_prompt_tokens, tokens, estimated=True)
            case Close():
                self._close(step)

    def _close(self, step: Close) -> Any:
        if step.how == "release":
            return self._ledger.release(step.reservation_id)
        if step.how == "settle_in_full":
            return self._ledger.settle_in_full(step.reservation_id)
        return self._ledger.settle(step.reservation_id, step.cost_nano, estimated=step.estimated)


def main() -> None:
    url, bill, seed, callers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with closing(Database(url)) as database, closing(LeasingLedger(database)) as ledger:
        ledger.recover()
        everyone = Callers(ledger, Provider(bill, random.Random(seed + 1)), seed)

        def wait_for_the_end() -> None:
            sys.stdin.read()
            everyone.stopped.set()

        async def tasks() -> None:
            await asyncio.gather(
                *(everyone.keep_calling_impatiently() for _ in range(callers - callers // 2))
            )

        with ThreadPoolExecutor(callers // 2 + 1) as pool:
            waiting = [pool.submit(wait_for_the_end)]
            waiting += [pool.submit(everyone.keep_calling) for _ in range(callers // 2)]
            asyncio.run(tasks())
            for future in waiting:
                future.result()
        everyone.close()
    sys.stdout.write(json.dumps(everyone.seen))


if __name__ == "__main__":
    main()
