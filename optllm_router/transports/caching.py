"""Answers to calls that were answered before, from memory or Redis: ``router.cache``.

A call is the same when everything that can change its answer is: candidate, messages, parameters.
A hit asks nobody and costs nothing: its usage says ``reported_nano=0``. Whole answers and streams
are kept apart, and a stream is kept once it has ended well. When Redis cannot be reached, calls
go on without it.

litellm has caches too, but looking at a hit imports its whole proxy, which few have installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from optllm_router._environment import from_environment
from optllm_router._errors import ConfigurationError
from optllm_router._types import Call, Candidate, Chunk, Completion, Transport, Usage

_log = logging.getLogger("optllm_router")

_MOST_BYTES = 1_000_000
_MOST_CHUNKS = 10_000
"""Larger answers are not kept."""
_MOST_LOCAL_BYTES = 64_000_000
_REDIS_SECONDS = 1.0
"""How long Redis may take for anything: a cache must not be slower than what it saves."""
_NO_MATTER = frozenset(
    (
        *("extra_headers", "metadata", "user", "safety_identifier", "prompt_cache_key", "store"),
        *("stream_options", "timeout"),
    )
)
"""Parameters that change no answer."""


_Part: TypeAlias = tuple[Mapping[str, Any], Usage | None]


@dataclass(frozen=True)
class CacheSettings:
    """Where answers are kept, and for how long; the names are LiteLLM's.

    Attributes:
        type: ``local`` (this process) or ``redis``.
        ttl: seconds that an answer is kept, > 0.
        namespace: put before every key in Redis.
        host: of Redis.
        port: of Redis.
        password: of Redis.
    """

    type: str
    ttl: float = 600.0
    namespace: str = "optllm"
    host: str = "127.0.0.1"
    port: int = 6379
    password: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, given: Any) -> CacheSettings:
        """Settings from a mapping, as YAML holds it.

        Raises:
            ConfigurationError: names what is wrong.
        """
        known = cls.__dataclass_fields__
        if not isinstance(given, Mapping) or not set(given) <= set(known):
            raise ConfigurationError(
                f"cache must be a mapping of {', '.join(known)}, like {{type: local, ttl: 600}}"
            )
        settings = cls(
            **{"type": "", **{name: from_environment(given[name], "cache") for name in given}}
        )
        if settings.type not in ("local", "redis"):
            raise ConfigurationError(f"cache type {settings.type!r} must be local or redis")
        number = isinstance(settings.ttl, (int, float)) and not isinstance(settings.ttl, bool)
        if not number or not 0 < settings.ttl < math.inf:
            raise ConfigurationError(f"cache ttl {settings.ttl!r} must be seconds over 0")
        return settings


class AnswerStore(Protocol):
    """Keeps bytes by key for a while; never fails.

    Attributes:
        blocks: whether it waits for others, and event loops must not.
    """

    blocks: bool

    def get(self, key: str) -> bytes | None:
        """What is kept; ``None`` when there is nothing, or it cannot be reached."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keep something, if possible."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class LocalStore:
    """Keeps answers in memory, up to 64 MB: those that were used last."""

    blocks = False

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> bytes | None:
        """What is kept; ``None`` when there is nothing."""
        with self._lock:
            until, value = self._kept.get(key, (0.0, b""))
            if until <= time.monotonic():
                return None
            self._kept.move_to_end(key)
            return value

    def put(self, key: str, value: bytes) -> None:
        """Keep something; what was not used for longest goes when there is no room."""
        with self._lock:
            self._bytes -= len(self._kept.pop(key, (0.0, b""))[1])
            self._kept[key] = (time.monotonic() + self._ttl, value)
            self._bytes += len(value)
            while self._bytes > _MOST_LOCAL_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1][1])

    def close(self) -> None:
        """Nothing to do."""


class RedisStore:
    """Keeps answers in Redis, for all processes that share it.

    Raises:
        ConfigurationError: the package ``redis`` is not installed.
    """

    blocks = True

    def __init__(self, settings: CacheSettings) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise ConfigurationError(
                "cache type redis needs a package that is not installed: pip install redis"
            ) from None
        self._error = redis.RedisError
        self._ttl = settings.ttl
        self._namespace = settings.namespace
        self._reached = True
        self._client = redis.Redis(
            host=settings.host,
            port=settings.port,
            password=settings.password,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
        )

    def get(self, key: str) -> bytes | None:
        """What is kept; ``None`` when there is nothing, or Redis cannot be reached."""
        try:
            value = self._client.get(f"{self._namespace}:{key}")
        except self._error as error:
            self._note(error)
            return None
        self._reached = True
        return value if isinstance(value, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        """Keep something, if Redis can be reached."""
        try:
            milliseconds = max(1, round(1000 * self._ttl))
            self._client.set(f"{self._namespace}:{key}", value, px=milliseconds)
        except self._error as error:
            self._note(error)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _note(self, error: Exception) -> None:
        if self._reached:
            self._reached = False
            _log.warning("the cache cannot be reached, calls go on without it: %s", error)


def make_store(settings: CacheSettings) -> AnswerStore:
    """The store that settings describe."""
    return LocalStore(settings.ttl) if settings.type == "local" else RedisStore(settings)


class CachingTransport:
    """Looks for an answer before it asks another transport, and keeps those that come.

    Args:
        transport: who is asked.
        store: where answers are kept.
    """

    def __init__(self, transport: Transport, store: AnswerStore) -> None:
        self._transport = transport
        self._store = store

    def check(self, candidates: Sequence[Candidate]) -> None:
        """As the transport inside."""
        self._transport.check(candidates)

    def close(self) -> None:
        """Close the connections of both."""
        self._transport.close()
        self._store.close()

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """The answer that is kept, or a new one."""
        key = cache_key(candidate, call)
        kept = _kept(self._store.get(key))
        if kept is not None:
            return Completion(*kept[0])
        completion = self._transport.send(candidate, call)
        self._keep(key, [(completion.body, completion.usage)])
        return completion

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        key = cache_key(candidate, call)
        kept = _kept(await self._aget(key))
        if kept is not None:
            return Completion(*kept[0])
        completion = await self._transport.asend(candidate, call)
        await self._akeep(key, [(completion.body, completion.usage)])
        return completion

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """The chunks that are kept, or new ones; see ``Transport.stream``."""
        key = cache_key(candidate, call, streamed=True)
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
        key = cache_key(candidate, call, streamed=True)
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

    async def _aget(self, key: str) -> bytes | None:
        if self._store.blocks:
            return await asyncio.to_thread(self._store.get, key)
        return self._store.get(key)

    def _keep(self, key: str, parts: Sequence[_Part]) -> None:
        value = _encoded(parts)
        if value is not None:
            self._store.put(key, value)

    async def _akeep(self, key: str, parts: Sequence[_Part]) -> None:
        if self._store.blocks:
            await asyncio.to_thread(self._keep, key, parts)
        else:
            self._keep(key, parts)


def cache_key(candidate: Candidate, call: Call, *, streamed: bool = False) -> str:
    """What all calls have in common that are answered alike; no prompt can be read from it."""
    asked = {
        "model": candidate.model,
        "configured": {k: v for k, v in candidate.parameters.items() if k not in _NO_MATTER},
        "parameters": {k: v for k, v in call.parameters.items() if k not in _NO_MATTER},
        "messages": call.messages,
        "bound": call.max_output_tokens,
        "operation": call.operation,
        "streamed": streamed,
    }
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
