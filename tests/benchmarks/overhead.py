"""What a call costs beyond the provider: ``python tests/benchmarks/overhead.py --json``.

A provider that answers at once, in a process of its own on another core, is asked through raw
httpx, raw litellm, and ``AsyncOptLLM`` over either transport. Ours decides among 10 candidates
that it has learnt about, keeps a budget, and records everything in SQLite. At concurrency 1 the
contestants take turns of 25 calls; at concurrency 50 round by round. What a contestant left to be
done in the background is done before the next one's turn, and its CPU counts. All figures are
medians of ``--rounds`` rounds. CPU is that of all threads of the client's process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import importlib.metadata
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

CANDIDATES = 10
TURN = 25
REST_SECONDS = 0.15
"""After a turn: litellm logs and our ledger commits in the background, within 50 ms."""
SHOWN = 14
TAUGHT = 300
PROMPT = "What is {} + {}? Explain every step of the calculation, then give the result."
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Step by step, the answer is 42. " * 8},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 22, "completion_tokens": 72, "total_tokens": 94},
}
Ask = Callable[[str], Awaitable[Any]]


# The provider


class Provider(asyncio.Protocol):
    """Answers every request with the same completion, as fast as a process can."""

    body = json.dumps(ANSWER).encode()
    response = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while True:
            head, end, rest = self.received.partition(b"\r\n\r\n")
            if not end:
                return
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
            if len(rest) < length:
                return
            self.received = rest[length:]
            self.transport.write(self.response)


async def serve() -> None:
    """Answer until killed; the port is the first line of output."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def provider(core: int | None) -> Iterator[str]:
    """The provider's URL, for as long as the block lasts."""
    command = [sys.executable, __file__, "--serve"]
    if core is not None:
        command += ["--core", str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


# The contestants


def entries(url: str, transport: str) -> list[dict]:
    """Ten models of different prices behind one URL."""
    return [
        {
            "model_name": f"model-{number}",
            "litellm_params": {
                "model": f"openai/model-{number}",
                "api_base": url,
                "api_key": "unused",
                "input_cost_per_token": f"{2**number}e-8",
                "output_cost_per_token": f"{4 * 2**number}e-8",
                "max_tokens": 200,
            },
            "router": {"transport": transport},
        }
        for number in range(CANDIDATES)
    ]


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@contextlib.asynccontextmanager
async def contestants(url: str) -> Any:
    """By name, what asks one question."""
    import httpx

    from optllm_router import AsyncOptLLM
    from optllm_router.transports.litellm import load_litellm

    litellm = load_litellm()
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(litellm.close_litellm_async_clients)
        client = await stack.enter_async_context(httpx.AsyncClient(limits=limits))
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        async def raw_httpx(text: str) -> Any:
            body = {"model": "model-0", "messages": messages(text), "max_tokens": 200}
            response = await client.post(f"{url}/chat/completions", json=body)
            return response.json()

        async def raw_litellm(text: str) -> Any:
            return await litellm.acompletion(
                model="openai/model-0",
                messages=messages(text),
                api_base=url,
                api_key="unused",
                max_tokens=200,
            )

        async def router(transport: str) -> Ask:
            ours = AsyncOptLLM(
                entries(url, transport),
                budget="1000 USD per day",
                store=f"sqlite:///{Path(folder) / transport}.db",
                max_retries=0,
            )
            await stack.enter_async_context(ours)
            for number in range(TAUGHT):
                answer = await ours.chat.completions.create(
                    model=f"model-{number % CANDIDATES}",
                    messages=messages(PROMPT.format(number, number * 7)),
                )
                await ours.feedback.create(answer.id, score=float(number % 3 > 0))
            ours._session.runtime.router.wait()

            async def ask(text: str) -> Any:
                return await ours.chat.completions.create(model="auto", messages=messages(text))

            return ask

        yield {
            "raw httpx": raw_httpx,
            "raw litellm": raw_litellm,
            "optllm, litellm": await router("litellm"),
            "optllm, httpx": await router("httpx"),
        }


# Measuring


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def one_by_one(asks: dict[str, Ask], calls: int) -> dict[str, dict[str, float]]:
    """Latencies in milliseconds, the contestants in turn."""
    taken: dict[str, list[float]] = {name: [] for name in asks}
    for first in range(0, calls, TURN):
        for name, ask in asks.items():
            for number in range(first, min(first + TURN, calls)):
                begin = time.perf_counter()
                await ask(PROMPT.format(number, calls))
                taken[name].append(1e3 * (time.perf_counter() - begin))
            await asyncio.sleep(REST_SECONDS)
    return {
        name: {"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
        for name, times in taken.items()
    }


async def at_once(ask: Ask, calls: int, concurrency: int) -> dict[str, float]:
    """Throughput and CPU of many workers."""
    numbers = iter(range(calls))

    async def work() -> None:
        for number in numbers:
            await ask(PROMPT.format(number, concurrency))

    gc.collect()
    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    seconds = time.perf_counter() - begin
    await asyncio.sleep(REST_SECONDS)
    cpu = time.process_time() - cpu
    return {"calls_per_second": calls / seconds, "cpu_ms_per_call": 1e3 * cpu / calls}


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in figures}
        for name, figures in rounds[0].items()
    }


async def where_time_goes(ask: Ask, calls: int) -> dict[str, float]:
    """Microseconds of CPU per call: the event loop's by package or room, and other threads'.

    The profiler tells how the event loop's time is shared out; how much it is was measured
    without it. The rows add up to the total.
    """
    gc.collect()
    before, cpu = thread_seconds(), time.process_time()
    await one_by_one({"": ask}, calls)
    after, total = thread_seconds(), 1e6 * (time.process_time() - cpu) / calls
    spent = {name: 1e6 * (after[name] - before[name]) / calls for name in after}
    loop = spent.pop(threading.main_thread().name)
    profile = cProfile.Profile()
    profile.enable()
    await one_by_one({"": ask}, calls)
    profile.disable()
    rooms = shares(profile)
    largest = dict(sorted(rooms.items(), key=lambda item: -item[1])[:SHOWN])
    table = {room: loop * share for room, share in largest.items()}
    table["all others"] = loop * max(0.0, 1 - sum(largest.values()))
    threads = {f"thread {name}": one for name, one in sorted(spent.items()) if one >= 1}
    table["threads that ended (refits)"] = total - loop - sum(threads.values())
    return {**table, **threads, "total": total}


def thread_seconds() -> Counter[str]:
    """CPU of the threads alive, those of one pool together."""
    seconds: Counter[str] = Counter()
    for thread in threading.enumerate():
        clock = time.pthread_getcpuclockid(thread.ident)
        seconds[thread.name.rstrip("0123456789_")] += time.clock_gettime(clock)
    return seconds


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """What fraction of a profile each package or room took; built-in functions are their caller's.

    Waiting for events is left out.
    """
    spent: Counter[str] = Counter()
    for (path, _, name), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():
        if path != "~":
            spent[place_of(path)] += own
        elif "poll" not in name and "select" not in name:
            for (caller, _, _), (_, _, part, _) in callers.items():
                spent[place_of(caller)] += part
    return {room: own / spent.total() for room, own in spent.items()}


def place_of(path: str) -> str:
    """Whose code this is."""
    for root in ("optllm_router/", "site-packages/"):
        if root in path:
            parts = path.rpartition(root)[2].split("/")
            prefix = "optllm_router." if root == "optllm_router/" else ""
            return prefix + parts[0].removesuffix(".py")
    return "standard library"


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    async with contestants(url) as asks:
        for ask in asks.values():
            await at_once(ask, 100, 50)
        alone = medians([await one_by_one(asks, options.calls) for _ in range(options.rounds)])
        crowds = [
            {name: await at_once(ask, options.calls * 2, 50) for name, ask in asks.items()}
            for _ in range(options.rounds)
        ]
        crowd = medians(crowds)
        profile = {name: await where_time_goes(ask, 200) for name, ask in asks.items()}
    litellm, ours, fast = (crowd[n] for n in ("raw litellm", "optllm, litellm", "optllm, httpx"))
    added = {
        key: alone["optllm, litellm"][key] - alone["raw litellm"][key]
        for key in ("p50_ms", "p99_ms")
    }
    ratios = {
        "cpu_added": ours["cpu_ms_per_call"] / litellm["cpu_ms_per_call"] - 1,
        "throughput": ours["calls_per_second"] / litellm["calls_per_second"],
        "httpx_throughput": fast["calls_per_second"] / litellm["calls_per_second"],
    }
    return {
        "concurrency_1": {**alone, "added_to_litellm": added},
        "concurrency_50": {**crowd, "against_litellm": ratios},
        "targets": {
            "added p50 <= 1.0 ms": added["p50_ms"] <= 1.0,
            "added p99 <= 3 ms": added["p99_ms"] <= 3.0,
            "CPU added <= 25 %": ratios["cpu_added"] <= 0.25,
            "throughput >= 85 %": ratios["throughput"] >= 0.85,
            "httpx >= 2 x litellm": ratios["httpx_throughput"] >= 2,
        },
        "cpu_microseconds": profile,
    }


def machine() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("litellm", "httpx", "openai")}
    return {"cores": os.cpu_count(), "python": platform.python_version(), **versions}


def show(figures: dict[str, Any]) -> None:
    for title in ("concurrency_1", "concurrency_50"):
        print(title)
        for name, values in figures[title].items():
            print(f"  {name:18}", *(f"{key} {value:.2f} " for key, value in values.items()))
    for name, table in figures["cpu_microseconds"].items():
        print(f"CPU of a call of {name}, in microseconds")
        for room, spent in table.items():
            print(f"  {room:32} {spent:8.0f}")
    for target, met in figures["targets"].items():
        print(f"{'met' if met else 'MISSED':7} {target}")


def main() -> None:
    """Serve, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        if options.core is not None:
            os.sched_setaffinity(0, {options.core})
        asyncio.run(serve())
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[0]})
    with provider(cores[1] if len(cores) > 1 else None) as url:
        figures = {**asyncio.run(measure(url, options)), "machine": machine()}
    print(json.dumps(figures)) if options.json else show(figures)


if __name__ == "__main__":
    main()
