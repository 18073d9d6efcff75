"""``optllm serve`` and ``optllm keys``."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optllm_router._command_options import Command, json_option, opened, print_json, store_options
from optllm_router._display import print_keys
from optllm_router._errors import ConfigurationError
from optllm_router._money import Budget
from optllm_router._scopes import EVERYTHING, scopes_of_call, template_of
from optllm_router.server import Limits, ServerOptions, load_limits

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from optllm_router.store import AccessKey, Database

_LIFE = re.compile(r"(?P<count>[1-9]\d{0,5})\s*(?P<unit>[hdw])")
_UNIT_SECONDS = {"h": 3_600, "d": 86_400, "w": 604_800}


def _limit_option(name: str, help: str) -> Callable[[Command], Command]:
    """``--max-NAME``, over what the configuration says of that limit."""
    (limit,) = (one for one in dataclasses.fields(Limits) if one.name == name)
    range = click.IntRange if isinstance(limit.default, int) else click.FloatRange
    return click.option(
        f"--max-{name.replace('_', '-')}",
        name,
        type=range(limit.metadata["least"], limit.metadata["most"]),
        help=f"{help}  [default: that of --config, or {limit.default}]",
    )


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@store_options
@click.option("--budget", help="The cap, like '5 USD per day'.")
@click.option("--policy", help="What is wanted, like match_best or min_cost:0.9.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes."
)
@click.option(
    "--grace",
    type=click.FloatRange(1, 3_600),
    default=30.0,
    show_default=True,
    help="Seconds that answers under way may take when the server is to stop.",
)
@_limit_option("body_bytes", "Bytes of a request's body.")
@_limit_option("requests", "Requests under way at once, per worker.")
@_limit_option("connections", "Connections open at once, per worker.")
@_limit_option("request_seconds", "Seconds that a request may take, with its whole answer.")
@_limit_option("idle_seconds", "Seconds that a connection may wait for its next request.")
@click.option(
    "--log-prompts", is_flag=True, help="Write prompts and answers to the log; off by default."
)
def serve(
    models: tuple[str, ...],
    config: Path | None,
    store: str | None,
    budget: str | None,
    policy: str | None,
    host: str,
    port: int,
    workers: int,
    grace: float,
    log_prompts: bool,
    **limits: float | None,
) -> None:
    """An OpenAI-compatible server: point base_url at it, and ask for model 'auto'.

    MODEL is a litellm name, like openai/gpt-4o-mini; or give --config. On 127.0.0.1 no key is
    asked for until one is made; to listen elsewhere, make one first: optllm keys create.

    Further bounds, on headers and slow clients, stand under server: limits: in the configuration.
    """
    from optllm_router.server.serving import serve as run

    if bool(models) == (config is not None):
        raise click.UsageError("name models, like openai/gpt-4o-mini, or give --config")
    settings = {"store": store, "budget": budget, "policy": policy}
    options = ServerOptions(
        models=models,
        config=config,
        settings={name: value for name, value in settings.items() if value is not None},
        host=host,
        port=port,
        workers=workers,
        grace_seconds=grace,
        log_prompts=log_prompts,
        limits=load_limits(config, **limits),
    )
    run(options, listening=lambda url: click.echo(f"listening on {url}", err=True))


@click.group()
def keys() -> None:
    """Who may use `optllm serve`: make, list and revoke access keys."""


@keys.command()
@store_options
@click.option(
    "--scope",
    default="everything",
    show_default=True,
    help="What its calls count under, like tenant:team-a (or just team-a).",
)
@click.option("--budget", help="The cap of its scope, like '20 USD per month'.")
@click.option("--expires", metavar="LIFE", help="When it stops working, like 12h, 90d or 4w.")
@json_option
def create(
    config: Path | None,
    store: str | None,
    scope: str,
    budget: str | None,
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key; it is shown once.

    With --budget, its scope gets that cap, or another limit if it has one already.
    """
    from optllm_router.store import AccessKeys

    scope, seconds = _scope(scope), _seconds(expires)
    keep = None if budget is None else functools.partial(_keep, _cap(budget, scope), budget)
    with opened(config, store, may_create=True) as database:
        text, key = AccessKeys(database).create(scope, lives_seconds=seconds, together_with=keep)
        pays = _is_paid(scope, database, config)
    if not pays:
        click.echo(
            f"warning: no budget covers {scope}, so every call with this key is refused; set one: "
            f"optllm budget set '5 USD per day for {scope}'",
            err=True,
        )
    if as_json:
        print_json({"key": text, **_as_dict(key)})
    else:
        click.echo(text)
        click.echo(f"id {key.id}, scope {key.scope}; it is not shown again", err=True)


@keys.command(name="list")
@store_options
@json_option
def list_keys(config: Path | None, store: str | None, as_json: bool) -> None:
    """All keys that were ever made, without their secrets."""
    from optllm_router.store import AccessKeys

    with opened(config, store) as database:
        rows = [_as_dict(key) for key in AccessKeys(database).all()]
    if as_json:
        print_json({"keys": rows})
    else:
        print_keys(rows)


@keys.command()
@click.argument("key_id", metavar="ID")
@store_options
def revoke(key_id: str, config: Path | None, store: str | None) -> None:
    """Stop a key from working, at once and for good; answers under way go on."""
    from optllm_router.store import AccessKeys

    with opened(config, store) as database:
        key = AccessKeys(database).revoke(key_id)
    click.echo(f"key {key.id} of scope {key.scope} is revoked", err=True)


def _scope(text: str) -> str:
    """A call's scope as people write it: ``team-a`` is ``tenant:team-a``."""
    scope = text if ":" in text or text == EVERYTHING else f"tenant:{text}"
    scopes_of_call([scope])  # complains of what is none
    return scope


def _cap(text: str, scope: str) -> Budget:
    """A budget of that scope, and named after it where its text has no scope of its own."""
    budget = Budget.parse(text, name=scope)
    if budget.scope not in (EVERYTHING, scope):
        raise ConfigurationError(f"budget {text!r} is for {budget.scope}, but the key for {scope}")
    return dataclasses.replace(budget, scope=scope)


def _keep(cap: Budget, text: str, connection: Connection) -> None:
    """Create the budget of a key, or change its limit."""
    from optllm_router.ledger import keep_budget

    try:
        keep_budget(connection, cap, only=["limit_nano"])
    except ConfigurationError as error:
        what = str(error).rpartition("; give the new budget")[0] or str(error)
        wanted = text if " for " in text else f"{text} for {cap.scope}"
        raise ConfigurationError(
            f"{what}; no key was made. Set one of another name, with "
            f"`optllm budget set {shlex.quote(wanted)} --name NAME`, and make the key without "
            "--budget"
        ) from None


def _is_paid(scope: str, database: Database, config: Path | None) -> bool:
    """Whether calls of a scope have a budget, here or in the configuration; others are refused."""
    from optllm_router.config import load_budgets
    from optllm_router.ledger import Ledger

    if scope == EVERYTHING or any(one.scope == scope for one in Ledger(database).glance([scope])):
        return True
    configured = load_budgets(config) if config else ()
    return any(one.scope in (scope, template_of(scope)) for one in configured)


def _seconds(life: str | None) -> float | None:
    if life is None:
        return None
    match = _LIFE.fullmatch(life.strip().lower())
    if match is None:
        raise ConfigurationError(f"life {life!r} is not understood; write it like 12h, 90d or 4w")
    return float(int(match["count"]) * _UNIT_SECONDS[match["unit"]])


def _as_dict(key: AccessKey) -> dict[str, Any]:
    return {**asdict(key), "works": key.works_at(time.time())}
