"""A thousand streams at once through ``optllm serve``: do all of them stay alive to their end?

    python tests/benchmarks/streams.py --streams 1000 --seconds 40 --json

Three processes share the machine: the simulated provider, the server, and this client, which
opens all streams before the first one ends and reads every chunk of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The server is run as its tests run it.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "server")]

from running import RunningServer, write_config  # noqa: E402
from simulated_entries import model_entries  # noqa: E402

from optllm_router.ledger import Ledger  # noqa: E402
from optllm_router.simulation import SimulationServer  # noqa: E402
from optllm_router.simulation.replies import Reply  # noqa: E402
from optllm_router.store import Database  # noqa: E402

_MODEL = "sim-small"
_PROMPT = "Tell a long story."
_WORDS_PER_CHUNK = 4


@dataclass
class Watched:
    """What one stream looked like from outside; moments in seconds."""

    opened: float
    chunks: list[float] = field(default_factory=list)
    text: str = ""
    done: bool = False
    error: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40.0, help="that a stream lasts")
    parser.add_argument("--pause", type=float, default=1.0, help="between two chunks")
    parser.add_argument("--ramp", type=float, default=10.0, help="in which all are opened")
    parser.add_argument("--transport", choices=["httpx", "litellm"], default="httpx")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.streams, given.seconds, given.pause, given.ramp, given.transport)
    if given.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value}")
    sys.exit(0 if figures["alive_to_the_end"] == given.streams else 1)


def measure(
    streams: int, seconds: float, pause: float, ramp: float, transport: str
) -> dict[str, Any]:
    """Open the streams, read them, and look at the books."""
    chunks = max(3, round(seconds / pause))
    story = " ".join(f"word{n}" for n in range(chunks * _WORDS_PER_CHUNK))
    address: multiprocessing.Queue[str] = multiprocessing.Queue()
    provider = multiprocessing.Process(target=provide, args=(story, pause, address), daemon=True)
    provider.start()
    with tempfile.TemporaryDirectory() as folder:
        models = model_entries(address.get(timeout=60))
        models = [one for one in models if one["model_name"] == _MODEL]
        models[0]["router"] = {"transport": transport}
        models[0]["litellm_params"]["max_tokens"] = 4 * chunks * _WORDS_PER_CHUNK
        config = write_config(Path(folder), models, budget="100 USD")
        with RunningServer(config) as server:
            _, _, port = server.url.rpartition(":")
            asyncio.run(watch_all(int(port), 1))  # libraries load with the first call
            before = cpu_seconds(server.process.pid)
            watched = asyncio.run(watch_all(int(port), streams, ramp))
            cpu = cpu_seconds(server.process.pid) - before
            memory = resident_bytes(server.process.pid)
        books = verified(Path(folder))
    provider.terminate()
    provider.join()
    return {
        "streams": streams,
        "seconds_per_stream": seconds,
        "seconds_between_chunks": pause,
        "opened_within_seconds": ramp,
        "transport": transport,
        "alive_to_the_end": sum(one.done and one.text.strip() == story for one in watched),
        "most_at_once": most_at_once(watched),
        "errors": sorted({one.error for one in watched if one.error})[:5],
        **spread("first_chunk_ms", [one.chunks[0] - one.opened for one in watched if one.chunks]),
        **spread("late_ms", lateness(watched, pause)),
        "server_cpu_seconds": round(cpu, 2),
        "server_memory_mb": round(memory / 1e6),
        "books": books,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def provide(story: str, chunk_seconds: float, address: multiprocessing.Queue[str]) -> None:
    replies = {_PROMPT: {_MODEL: Reply(story, 5, len(story.split()))}}
    with SimulationServer(
        replies=replies, chunk_tokens=_WORDS_PER_CHUNK, chunk_seconds=chunk_seconds
    ) as server:
        address.put(server.base_url)
        time.sleep(86_400)


async def watch_all(port: int, streams: int, ramp: float = 0.0) -> list[Watched]:
    """All streams, begun one after the other in ``ramp`` seconds."""
    return await asyncio.gather(*(watch(port, ramp * n / streams) for n in range(streams)))


async def watch(port: int, wait: float) -> Watched:
    """One stream over a plain socket: an HTTP library would cost more than what is measured."""
    await asyncio.sleep(wait)
    messages = [{"role": "user", "content": _PROMPT}]
    body = json.dumps({"model": "auto", "messages": messages, "stream": True}).encode()
    seen = Watched(opened=time.perf_counter())
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        async for line in reader:
            read_line(line, seen)
        writer.close()
    except OSError as error:
        seen.error = type(error).__name__
    if not seen.done and not seen.error:
        seen.error = "ended early"
    return seen


def read_line(line: bytes, seen: Watched) -> None:
    if line.startswith(b'{"error"'):
        seen.error = json.loads(line)["error"]["message"]
    elif line.startswith(b"data: [DONE]"):
        seen.done = True
    elif line.startswith(b"data: {"):
        chunk = json.loads(line.removeprefix(b"data: "))
        if "error" in chunk:
            seen.error = chunk["error"]["code"]
            return
        seen.chunks.append(time.perf_counter())
        seen.text += chunk["choices"][0]["delta"].get("content") or ""


def most_at_once(watched: list[Watched]) -> int:
    """How many streams were between their first and their last chunk at one moment."""
    moments = [(one.chunks[0], 1) for one in watched if one.chunks]
    moments += [(one.chunks[-1], -1) for one in watched if one.chunks]
    most = now = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


def lateness(watched: list[Watched], pace: float) -> list[float]:
    """How much longer than the provider's pace each pause between two chunks was."""
    return [
        later - earlier - pace
        for one in watched
        for earlier, later in zip(one.chunks[1:-2], one.chunks[2:-1], strict=True)
    ]


def spread(name: str, seconds: list[float]) -> dict[str, float | None]:
    if len(seconds) < 2:
        return {f"{name}_p50": None, f"{name}_p99": None}
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name}_p50": round(cuts[49] * 1e3, 1), f"{name}_p99": round(cuts[98] * 1e3, 1)}


def verified(folder: Path) -> str:
    database = Database(f"sqlite:///{folder}/optllm.db")
    try:
        differences = Ledger(database).verify()
        (balance,) = Ledger(database).balances()
    finally:
        database.close()
    if differences or balance.reserved_nano:
        return f"wrong: {differences}, {balance.reserved_nano} nano-dollars still set aside"
    return "exact, nothing set aside"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
