"""Answers to calls that were answered before, from memory or Redis: ``router.cache``.

A call is the same when everything that can change its answer is: candidate, messages, parameters.
So are the scopes that it belongs to, unless the cache is shared: else whoever asks learns from the
cost whether somebody else asked the same. A hit asks nobody and costs nothing: its usage says
``reported_nano=0``. Whole answers and streams are kept apart, and a stream is kept once it has
ended well. When Redis cannot be reached, calls go on without it.

litellm has caches too, but looking at a hit imports its whole proxy, which few have installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from optllm_router._types import Call, Candidate, Chunk, Completion, Transport, Usage
from optllm_router.transports._answer_stores import AnswerStore

_MOST_BYTES = 1_000_000
_MOST_CHUNKS = 10_000
"""Larger answers are not kept."""
_MOST_THREADS = 8
"""That wait for a store at once: of our own, for asyncio's are also there to look up hosts."""
_NO_MATTER = frozenset(
    (
        *("extra_headers", "metadata", "user", "safety_identifier", "prompt_cache_key", "store"),
        *("stream_options", "timeout"),
    )
)
"""Parameters that change no answer."""


_Part: TypeAlias = tuple[Mapping[str, Any], Usage | None]


class CachingTransport:
    """Looks for an answer before it asks another transport, and keeps those that come.

    Args:
        transport: who is asked.
        store: where answers are kept.
        shared: whether a call is the same when another scope pays for it.
    """

    def __init__(self, transport: Transport, store: AnswerStore, *, shared: bool = False) -> None:
        self._transport = transport
        self._store = store
        self._shared = shared
        self._threads = _threads()

    def check(self, candidates: Sequence[Candidate]) -> None:
        """As the transport inside."""
        self._transport.check(candidates)

    def close(self) -> None:
        """Close the connections of both; it can be used again."""
        self._transport.close()
        self._store.close()
        self._threads = _threads()  # the old ones end when nobody waits for them any more

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """The answer that is kept, or a new one."""
        key = self._key(candidate, call)
        kept = _kept(self._store.get(key))
        if kept is not None:
            return Completion(*kept[0])
        completion = self._transport.send(candidate, call)
        self._keep(key, [(completion.body, completion.usage)])
        return completion

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        key = self._key(candidate, call)
        kept = _kept(await self._aget(key))
        if kept is not None:
            return Completion(*kept[0])
        completion = await self._transport.asend(candidate, call)
        await self._akeep(key, [(completion.body, completion.usage)])
        return completion

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """The chunks that are kept, or new ones; see ``Transport.stream``."""
        key = self._key(candidate, call, streamed=True)
        kept = _kept(self._store.get(key))
        if kept is not None:
            yield from (Chunk(*part) for part in kept)
            return
        parts: list[_Part] = []
        with contextlib.closing(self._transport.stream(candidate, call)) as chunks:
            for chunk in chunks:
                parts.append((chunk.body, chunk.usage))
                yield chunk
        self._keep(key, parts)

    async def astream(self, candidate: Candidate, call: Call) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        key = self._key(candidate, call, streamed=True)
        kept = _kept(await self._aget(key))
        if kept is not None:
            for part in kept:
                yield Chunk(*part)
            return
        parts: list[_Part] = []
        async with contextlib.aclosing(self._transport.astream(candidate, call)) as chunks:
            async for chunk in chunks:
                parts.append((chunk.body, chunk.usage))
                yield chunk
        await self._akeep(key, parts)

    def _key(self, candidate: Candidate, call: Call, *, streamed: bool = False) -> str:
        return cache_key(candidate, call, streamed=streamed, shared=self._shared)

    async def _aget(self, key: str) -> bytes | None:
        if self._store.blocks:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._store.get, key)
        return self._store.get(key)

    def _keep(self, key: str, parts: Sequence[_Part]) -> None:
        value = _encoded(parts)
        if value is not None:
            self._store.put(key, value)

    async def _akeep(self, key: str, parts: Sequence[_Part]) -> None:
        if self._store.blocks:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._keep, key, parts)
        else:
            self._keep(key, parts)


def cache_key(
    candidate: Candidate, call: Call, *, streamed: bool = False, shared: bool = False
) -> str:
    """What all calls have in common that are answered alike; no prompt can be read from it."""
    asked = {
        "model": candidate.model,
        "configured": {k: v for k, v in candidate.parameters.items() if k not in _NO_MATTER},
        "parameters": {k: v for k, v in call.parameters.items() if k not in _NO_MATTER},
        "messages": call.messages,
        "bound": call.max_output_tokens,
        "operation": call.operation,
        "streamed": streamed,
        "scopes": None if shared else sorted(call.scopes),
    }
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="optllm-cache")


def _encoded(parts: Sequence[_Part]) -> bytes | None:
    if len(parts) > _MOST_CHUNKS:
        return None
    value = json.dumps([(body, usage and asdict(usage)) for body, usage in parts]).encode()
    return value if len(value) <= _MOST_BYTES else None


def _kept(value: bytes | None) -> list[_Part] | None:
    """What was kept, as it costs now: nothing, also when only its beginning is read."""
    if value is None:
        return None
    try:
        parts = [(body, usage and Usage(**usage)) for body, usage in json.loads(value)]
    except (ValueError, TypeError):  # of another version, or not ours
        return None
    free = [(body, usage and replace(usage, reported_nano=0)) for body, usage in parts]
    if free and free[0][1] is None:
        free[0] = (free[0][0], Usage(0, 0, estimated=True, reported_nano=0))
    return free or None
