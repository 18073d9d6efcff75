"""``optllm serve`` that tells, at SIGUSR1, what it holds: ``chaos_server.py serve ...``."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import litellm_clients
from chaos_checks import Resources, is_of_litellm

from optllm_router.cli import main


def _look(*_) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(lambda: _looking.add(loop.create_task(_tell())))


_looking: set[asyncio.Task[None]] = set()


async def _tell() -> None:
    await litellm_clients.aclose()  # nobody owns them: they would be taken for ours
    gc.collect()
    resources = Resources.now()
    tasks = [task for task in asyncio.all_tasks() - _looking if not is_of_litellm(task)]
    held = {
        "event": "held",
        "threads": sorted(resources.threads),
        "sockets": resources.sockets,
        "tasks": sorted(task.get_coro().__qualname__ for task in tasks),
    }
    sys.stderr.write(json.dumps(held) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _look)
    main()
