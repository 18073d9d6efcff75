"""How a server is set up, and what one client may ask of it, so that none can hold it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Bounds, in bytes, seconds and numbers of things.

    Attributes:
        connections: open at once, per worker; more are closed unheard.
        requests: under way at once, per worker; more are answered 503.
        header_bytes: names and values of a request's headers.
        headers: how many of them.
        header_seconds: from the connection (or the first byte of a later request) until the
            headers are there.
        body_bytes: of a request.
        body_seconds: for a whole body.
        request_seconds: from the headers to the last byte of the answer.
        send_seconds: how long a client may leave an answer unread.
        depth: how deeply JSON may be nested.
        values: how many values it may hold, about.
    """

    connections: int = 4_096
    requests: int = 2_048
    header_bytes: int = 32_768
    headers: int = 100
    header_seconds: float = 10.0
    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    request_seconds: float = 1_800.0
    send_seconds: float = 60.0
    depth: int = 64
    values: int = 1_000_000


@dataclass(frozen=True)
class ServerOptions:
    """What ``optllm serve`` was told; plain values, for they go to every worker.

    Attributes:
        models: litellm model names, where there is no configuration.
        config: a LiteLLM ``config.yaml``; ``None`` for ``models``.
        settings: of the client, over those of the configuration.
        host: the address to listen on.
        port: and the port; 0 lets the system choose.
        workers: how many processes answer.
        grace_seconds: how long answers under way may go on when the server is to stop.
        log_prompts: whether the log may hold what people asked and were answered.
        limits: what one client may ask for.
    """

    models: tuple[str, ...] = ()
    config: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    grace_seconds: float = 30.0
    log_prompts: bool = False
    limits: Limits = Limits()
