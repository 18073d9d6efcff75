"""The garbage collector does not hold up a server."""

from __future__ import annotations

import asyncio
import gc

from simulated_entries import model_entries

from optllm_router import AsyncOptLLM
from optllm_router.server import ServerOptions
from optllm_router.server.app import make_app

LATER = 10_000


def test_a_server_that_has_started_collects_only_what_comes_later(provider, sqlite_url):
    looked_at: list[int] = []

    async def run() -> None:
        started, stop = asyncio.Event(), asyncio.Event()

        async def receive() -> dict:
            if started.is_set():
                await stop.wait()
                return {"type": "lifespan.shutdown"}
            return {"type": "lifespan.startup"}

        async def send(message: dict) -> None:
            assert not message["type"].endswith("failed"), message
            if message["type"] == "lifespan.startup.complete":
                started.set()

        client = AsyncOptLLM(model_entries(provider.base_url), store=sqlite_url)
        app = make_app(client, ServerOptions())
        life = asyncio.create_task(app({"type": "lifespan"}, receive, send))
        await started.wait()
        looked_at.append(len(gc.get_objects()))
        stop.set()
        await life

    there = len(gc.get_objects())
    assert there > LATER
    asyncio.run(run())
    assert looked_at[0] < LATER
    assert gc.get_freeze_count() == 0  # whoever goes on without the server
