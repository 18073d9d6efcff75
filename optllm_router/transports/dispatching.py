"""Each candidate through the transport that its configuration names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

from optllm_router._errors import ConfigurationError
from optllm_router._types import Call, Candidate, Chunk, Completion, Transport
from optllm_router.transports._answer_stores import CacheSettings, make_store
from optllm_router.transports.caching import CachingTransport
from optllm_router.transports.httpx import HttpxTransport
from optllm_router.transports.litellm import LiteLLMTransport


def all_transports(cache: CacheSettings | None = None) -> Transport:
    """Every transport, by the name that a configuration gives it.

    Args:
        cache: where answers are kept; ``None`` for nowhere.
    """
    each = DispatchingTransport({"litellm": LiteLLMTransport(), "httpx": HttpxTransport()})
    if cache is None:
        return each
    return CachingTransport(each, make_store(cache), shared=cache.shared)


class DispatchingTransport:
    """Hands each call to the transport that ``Candidate.transport`` names.

    Args:
        transports: by name.
    """

    def __init__(self, transports: Mapping[str, Transport]) -> None:
        self._transports = transports

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise ``ConfigurationError`` for a transport that is not there, or as those that are."""
        for candidate in candidates:
            if candidate.transport not in self._transports:
                raise ConfigurationError(
                    f"transport {candidate.transport!r} of model {candidate.name!r} is unknown; "
                    f"use {' or '.join(self._transports)}"
                )
        for name, transport in self._transports.items():
            chosen = [candidate for candidate in candidates if candidate.transport == name]
            if chosen:
                transport.check(chosen)

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        return self._transports[candidate.transport].send(candidate, call)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        return await self._transports[candidate.transport].asend(candidate, call)

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """Ask a candidate and hand on its chunks as they come."""
        return self._transports[candidate.transport].stream(candidate, call)

    def astream(self, candidate: Candidate, call: Call) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        return self._transports[candidate.transport].astream(candidate, call)

    def close(self) -> None:
        """Close the connections of all."""
        for transport in self._transports.values():
            transport.close()
