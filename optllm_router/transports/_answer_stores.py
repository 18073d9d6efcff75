"""Where answers are kept, to be given again: memory, or Redis, and the settings that say so.

A store never fails and is never waited for longer than it is worth: a Redis that does not answer is
left alone for a while, and calls go on without it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from optllm_router._environment import from_environment
from optllm_router._errors import ConfigurationError
from optllm_router._nearest import quoted

_log = logging.getLogger("optllm_router")

_MOST_LOCAL_BYTES = 64_000_000
_REDIS_SECONDS = 1.0
"""How long Redis may take for anything: a cache must not be slower than what it saves."""
_REST_SECONDS = 5.0
"""How long it is not asked after it could not be reached."""


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
        shared: whether a call may be answered with what another tenant, user, job or tag was;
            whoever asks then learns from the cost whether somebody asked the same.
    """

    type: str
    ttl: float = 600.0
    namespace: str = "optllm"
    host: str = "127.0.0.1"
    port: int = 6379
    password: str | None = field(default=None, repr=False)
    shared: bool = False

    def __post_init__(self) -> None:
        if self.type not in ("local", "redis"):
            raise ConfigurationError(f"cache type {quoted(self.type)} must be local or redis")
        number = isinstance(self.ttl, (int, float)) and not isinstance(self.ttl, bool)
        if not number or not 0 < self.ttl < math.inf:
            raise ConfigurationError(
                f"cache ttl {quoted(self.ttl)} must be seconds over 0, like 600"
            )
        whole = isinstance(self.port, int) and not isinstance(self.port, bool)
        if not whole or not 1 <= self.port <= 65_535:
            raise ConfigurationError(
                f"cache port {quoted(self.port)} must be a whole number from 1 to 65535, like 6379"
            )
        if not isinstance(self.host, str) or not _names_host(self.host):
            raise ConfigurationError(
                f"cache host {quoted(self.host)} must be a name or an address, like 127.0.0.1"
            )
        if not isinstance(self.namespace, str):
            raise ConfigurationError(
                f"cache namespace {quoted(self.namespace)} must be text, like 'optllm'"
            )
        if not isinstance(self.password, str | None):
            raise ConfigurationError("cache password must be text; write it in quotes")
        if not isinstance(self.shared, bool):
            raise ConfigurationError(f"cache shared {quoted(self.shared)} must be true or false")

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
        return cls(**{"type": "", **{name: _value(name, given[name]) for name in given}})


def _value(name: str, given: Any) -> Any:
    """A setting; the environment has texts only, so that numbers are read from them."""
    value = from_environment(given, "cache")
    if value is given or name not in ("ttl", "port"):
        return value
    with contextlib.suppress(ValueError):
        return int(value) if name == "port" else float(value)
    return value


def _names_host(host: str) -> bool:
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


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
    """Keeps answers in Redis, for all processes that share it; thread-safe.

    Args:
        settings: where it is.
        clock: seconds, from any start, that never go back.

    Raises:
        ConfigurationError: the package ``redis`` is not installed.
    """

    blocks = True

    def __init__(
        self, settings: CacheSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError:
            raise ConfigurationError(
                "cache type redis needs a package that is not installed: pip install redis"
            ) from None
        self._error = redis.RedisError
        self._unreachable = (redis.ConnectionError, redis.TimeoutError)
        self._ttl = settings.ttl
        self._namespace = settings.namespace
        self._clock = clock
        self._lock = threading.Lock()
        self._rests_until = -math.inf
        self._works = True
        self._client = redis.Redis(
            host=settings.host,
            port=settings.port,
            password=settings.password,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),  # redis asks ten times otherwise, with pauses
        )

    def get(self, key: str) -> bytes | None:
        """What is kept; ``None`` when there is nothing, or Redis cannot be reached."""
        value = None
        if self._may_ask():
            with self._noted():
                value = self._client.get(f"{self._namespace}:{key}")
        return value if isinstance(value, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        """Keep something, if Redis can be reached."""
        if self._may_ask():
            milliseconds = max(1, round(1000 * self._ttl))
            with self._noted():
                self._client.set(f"{self._namespace}:{key}", value, px=milliseconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _may_ask(self) -> bool:
        """Whether to ask; after a rest only the first who comes tries, and the others go on."""
        with self._lock:
            now = self._clock()
            if now < self._rests_until:
                return False
            if self._rests_until > -math.inf:
                self._rests_until = now + _REST_SECONDS
            return True

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """What is inside asks Redis; how that ends decides whether it is asked again."""
        try:
            yield
        except self._error as error:
            with self._lock:
                first, self._works = self._works, False
                if isinstance(error, self._unreachable):
                    self._rests_until = self._clock() + _REST_SECONDS
            if first:
                _log.warning("the cache cannot be used, calls go on without it: %s", error)
        else:
            with self._lock:
                self._works = True
                self._rests_until = -math.inf


def make_store(settings: CacheSettings) -> AnswerStore:
    """The store that settings describe."""
    return LocalStore(settings.ttl) if settings.type == "local" else RedisStore(settings)
