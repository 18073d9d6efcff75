"""How a server is set up, and what one client may ask of it, so that none can hold it up."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from optllm_router._errors import ConfigurationError
from optllm_router._nearest import quoted
from optllm_router.candidates import no_others
from optllm_router.config import load_server

T = TypeVar("T", int, float)


def _limit(default: T, least: float, most: float) -> T:
    """A field with the values that it may have."""
    limit: T = field(default=default, metadata={"least": least, "most": most})
    return limit


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
        idle_seconds: how long a connection may stay open after an answer, for another request.
        body_bytes: of a request.
        body_seconds: for a whole body.
        request_seconds: from the headers to the last byte of the answer.
        send_seconds: how long a client may leave an answer unread.
        depth: how deeply JSON may be nested.
        values: how many values it may hold, about.

    Raises:
        ConfigurationError: a bound is no number, or lets nothing or too much through.
    """

    connections: int = _limit(4_096, 1, 1_000_000)
    requests: int = _limit(2_048, 1, 1_000_000)
    header_bytes: int = _limit(32_768, 1_000, 1_000_000)
    headers: int = _limit(100, 10, 10_000)
    header_seconds: float = _limit(10.0, 0.1, 3_600)
    idle_seconds: int = _limit(30, 1, 3_600)
    body_bytes: int = _limit(20_000_000, 1_000, 1_000_000_000)
    body_seconds: float = _limit(30.0, 0.1, 3_600)
    request_seconds: float = _limit(1_800.0, 0.1, 86_400)
    send_seconds: float = _limit(60.0, 0.1, 3_600)
    depth: int = _limit(64, 4, 500)
    values: int = _limit(1_000_000, 100, 100_000_000)

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(one, getattr(self, one.name))

    @classmethod
    def read(cls, given: Any) -> Limits:
        """Limits from a mapping of what is not as it is by default.

        Raises:
            ConfigurationError: it is none, or sets a limit that is unknown or wrong.
        """
        if not isinstance(given, Mapping):
            raise ConfigurationError(
                f"server.limits {quoted(given)} must hold limits, like {{requests: 500}}"
            )
        no_others(given, [one.name for one in fields(cls)], "limit of the server")
        return cls(**given)


def load_limits(path: Path | None, **overrides: float | None) -> Limits:
    """The limits that a configuration sets under ``server:``; ``overrides`` win where not ``None``.

    Raises:
        ConfigurationError: the file cannot be read, or a value in it is wrong.
    """
    section = {} if path is None else load_server(path)
    no_others(section, ["limits"], "server setting")
    limits = section.get("limits")
    configured = Limits() if limits is None else Limits.read(limits)
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(configured, **given)  # type: ignore[arg-type]  # the names say which are whole


def _check(limit: Field[Any], value: Any) -> None:
    whole = isinstance(limit.default, int)
    least, most = limit.metadata["least"], limit.metadata["most"]
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (number and least <= value <= most):
        raise ConfigurationError(
            f"limit {limit.name} {quoted(value)} must be a {'whole ' if whole else ''}number "
            f"from {least} to {most}"
        )


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
        conversation_secret: with which workers share who answered last, unless the settings have
            one; new for each server.
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
    conversation_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
