"""``optllm budget``: look at budgets, set and remove them, reconcile them with a provider."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from optllm_router._command_options import json_option, opened, print_json, store_options
from optllm_router._display import print_balances, print_reconciliation

if TYPE_CHECKING:
    from optllm_router.ledger import Balance, Ledger, Period
    from optllm_router.store import Database

_Place: TypeAlias = "tuple[Path | None, str | None]"
"""What ``--config`` and ``--store`` say."""


def _placed(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and ``--store``, here or of ``optllm budget`` before, as ``place``."""

    @store_options
    @click.pass_context
    @functools.wraps(command)
    def with_place(
        context: click.Context, /, config: Path | None, store: str | None, **arguments: Any
    ) -> None:
        place: _Place = (config, store) if config or store else context.obj
        command(place, **arguments)

    return with_place


@click.group(
    invoke_without_command=True, short_help="What budgets have spent and left; set and verify them."
)
@store_options
@click.option("--verify", is_flag=True, help="Recompute the books; exit 1 when they are wrong.")
@json_option
@click.pass_context
def budget(
    context: click.Context, config: Path | None, store: str | None, verify: bool, as_json: bool
) -> None:
    """What each budget has spent, set aside and left in its current window."""
    context.obj = (config, store)
    if context.invoked_subcommand is not None:
        if verify or as_json:
            raise click.UsageError("--verify and --json go with `optllm budget` itself")
        return
    _report(context.obj, verify, as_json)


class _AmountCommand(click.Command):
    """A command whose argument may be a negative amount, which is refused as what it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [re.sub(r"^(?=-[\d.$])", " ", one) for one in args])


@budget.command(name="verify")
@_placed
@json_option
def verify_books(place: _Place, as_json: bool) -> None:
    """Recompute the books from their entries; exit 1 when they are wrong."""
    _report(place, True, as_json)


def _report(place: _Place, verify: bool, as_json: bool) -> None:
    with _books(place) as (ledger, database):
        templates, balances = ledger.templates(), ledger.balances()
        differences = ledger.verify() if verify else []
    if as_json:
        kinds = {"budgets": balances, "templates": templates}
        rows = {kind: [_balance_as_dict(one) for one in those] for kind, those in kinds.items()}
        print_json({"store": database.name, **rows, "differences": differences})
    else:
        print_balances([*templates, *balances])
        for difference in differences:
            click.echo(difference, err=True)
        if verify and not differences:
            click.echo("every balance is the sum of its reservations", err=True)
    if differences:
        sys.exit(1)


@budget.command(name="set", cls=_AmountCommand)
@click.argument("text", metavar="BUDGET")
@click.option("--name", default="", help="What to call it.  [default: its scope]")
@click.option(
    "--hard/--soft",
    default=None,
    help="Set aside the most that calls can cost, or what they are likely to.  [default: hard]",
)
@click.option(
    "--pace/--no-pace",
    default=None,
    help="Spread the money over the window's traffic, or not.  [default: pace]",
)
@click.option(
    "--threshold",
    "thresholds",
    type=int,
    multiple=True,
    metavar="PERCENT",
    help="Report when so much of the limit is spent; may be given several times.  "
    "[default: 50, 80, 95, 100]",
)
@_placed
def set_(
    place: _Place,
    text: str,
    name: str,
    hard: bool | None,
    pace: bool | None,
    thresholds: tuple[int, ...],
) -> None:
    """Create a budget, or change one at once: its limit, and what else is given.

    BUDGET is like '20 USD per month in Europe/Berlin' or '5 USD per day for tenant:acme'; with
    tenant:* each tenant has one of its own.
    """
    from optllm_router._money import Budget
    from optllm_router.ledger import set_what_is_given

    Budget.parse(text, name=name)  # before a store is made for it
    percentages = thresholds or None
    with _books(place, may_create=True) as (ledger, _):
        wanted = set_what_is_given(
            ledger, text, name=name, hard=hard, pace=pace, thresholds=percentages
        )
    click.echo(f"budget {wanted.name!r} is set", err=True)
    if not wanted.limit_nano:
        click.echo("with nothing to spend, it refuses every call that may cost anything", err=True)


@budget.command()
@click.argument("name")
@_placed
def remove(place: _Place, name: str) -> None:
    """Take a budget out of use; what it spent stays in the books."""
    with _books(place) as (ledger, _):
        ledger.remove_budget(name)
    click.echo(f"budget {name!r} is removed", err=True)


@budget.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False
)
@click.option(
    "--complete-until",
    metavar="TIME",
    help="FILE names every charged call that was sent before; what else expired is freed.",
)
@click.option(
    "--complete-since", metavar="TIME", help="FILE is complete from then on.  [default: ever]"
)
@_placed
@json_option
def reconcile(
    place: _Place,
    file: Path | None,
    complete_until: str | None,
    complete_since: str | None,
    as_json: bool,
) -> None:
    """Put true costs in the place of the full amounts of what dead processes left.

    FILE is the provider's usage report: CSV with a header or a JSON list, with id (as in our
    answers) and cost_usd, and model where an id was tried with several. Without it, tells what
    counts in full. TIME is like 7d, 24h, 2026-01-31 or 2026-01-31T12:00:00+01:00.
    """
    from optllm_router.ledger import read_charges, reconcile

    if file is None and (complete_until or complete_since):
        raise click.UsageError("--complete-until says something about a FILE; give one")
    complete = _period(complete_since, complete_until)
    charges = read_charges(file) if file else []
    with _books(place) as (ledger, database):
        ledger.recover()
        done = reconcile(ledger, database, charges, complete=complete)
    if as_json:
        print_json(asdict(done))
    else:
        print_reconciliation(done)


def _period(since: str | None, until: str | None) -> Period | None:
    from optllm_router.ledger import Period
    from optllm_router.receipts.receipt import read_moment

    if until is None:
        if since is not None:
            raise click.UsageError("--complete-since needs --complete-until")
        return None
    now = time.time()
    start = read_moment(since, now, "--complete-since") if since else 0.0
    end = read_moment(until, now, "--complete-until")
    if not start < end <= now:
        raise click.UsageError(
            f"--complete-until {until!r} must be past, and after --complete-since"
        )
    return Period(start, end)


@contextlib.contextmanager
def _books(place: _Place, *, may_create: bool = False) -> Iterator[tuple[Ledger, Database]]:
    from optllm_router.ledger import Ledger

    with opened(*place, may_create=may_create) as database:
        yield Ledger(database), database


def _balance_as_dict(balance: Balance) -> dict[str, Any]:
    amounts = {
        "left_nano": balance.left_nano,
        "expected_excess_nano": balance.expected_excess_nano,
    }
    return {**asdict(balance), **amounts}
