"""litellm keeps HTTP clients open for the life of the process; tests close what they opened.

Nobody owns these clients: they would be found unclosed by whichever later test collects garbage.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """``asyncio.run``, which also closes litellm's clients while their event loop lives."""

    async def run_and_close() -> Any:
        try:
            return await coroutine
        finally:
            await aclose()

    return asyncio.run(run_and_close())


def close() -> None:
    """Close the clients of synchronous calls, and forget all of them."""
    litellm = sys.modules.get("litellm")
    if litellm is None:
        return
    cache = litellm.in_memory_llm_clients_cache
    for client in list(cache.cache_dict.values()):
        if not asyncio.iscoroutinefunction(getattr(client, "close", None)):
            getattr(client, "close", lambda: None)()
    cache.flush_cache()


async def aclose() -> None:
    """Close the clients of this event loop, and forget all of them."""
    litellm = sys.modules.get("litellm")
    if litellm is None:
        return
    await litellm.close_litellm_async_clients()
    close()
    await asyncio.sleep(0.01)  # transports close in the next rounds of the loop
