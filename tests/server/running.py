"""``optllm serve`` as users run it: a process of its own, told to stop by a signal."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import httpx
import yaml

from optllm_router.server import Limits

MAIN = "from optllm_router.cli import main; main()"


class RunningServer:
    """A server on a free port; use it as a context manager.

    Args:
        config: the configuration.
        options: of ``optllm serve``.
        limits: bounds that the configuration is to set.
        env: added to the environment.
        program: what Python runs in the place of the ``optllm`` command.

    Attributes:
        url: where it listens, once started.
        log: the lines of its standard error so far.
    """

    def __init__(
        self,
        config: Path,
        *options: str,
        limits: Limits | None = None,
        env: dict[str, str] | None = None,
        program: Sequence[str] = ("-c", MAIN),
    ) -> None:
        if limits is not None:
            config = _with_limits(config, limits)
        arguments = [*program, "serve", "--config", str(config), "--port", "0", *options]
        self._command = [sys.executable, *arguments]
        self._env = {**os.environ, **(env or {})}
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> RunningServer:
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=self._env
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            first = self._lines.get(timeout=60)
            assert first.startswith("listening on "), first
            self.url = first.removeprefix("listening on ").strip()
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, timeout: float = 30) -> int:
        """Tell it to stop, as systemd and Kubernetes do; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        self.process.stderr.close()
        return code

    def connect(self) -> socket.socket:
        """A plain connection."""
        _, _, port = self.url.rpartition(":")
        return socket.create_connection(("127.0.0.1", int(port)), timeout=20)

    def events(self, name: str) -> list[dict]:
        """The log's lines of one event."""
        lines = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put("the server has ended")

    def _wait_until_ready(self) -> None:
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, "".join(self.log)
        raise AssertionError("the server was never ready")


def _with_limits(config: Path, limits: Limits) -> Path:
    path = config.with_name("limited.yaml")
    server = {"limits": asdict(limits)}
    path.write_text(config.read_text() + yaml.safe_dump({"server": server}))
    return path


def write_config(folder: Path, models: list[dict], **router) -> Path:
    """A configuration for these models with a store in the folder."""
    router = {"store": f"sqlite:///{folder}/optllm.db", "seed": 1, **router}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": models, "router": router}))
    return path


def embedding_entry(base_url: str) -> dict:
    """The simulated provider's embeddings, as a LiteLLM ``model_list`` names them."""
    return {
        "model_name": "sim-embedding",
        "litellm_params": {
            "model": "openai/sim-embedding",
            "api_base": base_url,
            "api_key": "unused",
            "input_cost_per_token": "2e-8",
            "output_cost_per_token": "0",
        },
        "model_info": {"mode": "embedding"},
    }


def until(condition, seconds: float = 10) -> None:
    """Wait for a condition to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
