"""``optllm budget``: look at budgets, set and remove them, reconcile them with a provider."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from optllm_router._command_options import json_option, opened, print_json, store_options
from optllm_router._display import print_balances, print_reconciliation

if TYPE_CHECKING:
    from optllm_router.ledger import Balance, Ledger
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
        balances = ledger.balances()
        differences = ledger.verify() if verify else []
    if as_json:
        rows = [_balance_as_dict(balance) for balance in balances]
        shown = database.url.render_as_string(hide_password=True)
        print_json({"store": shown, "budgets": rows, "differences": differences})
    else:
        print_balances(balances)
        for difference in differences:
            click.echo(difference, err=True)
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
    from optllm_router.ledger import set_what_is_given

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
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_placed
@json_option
def reconcile(place: _Place, file: Path, as_json: bool) -> None:
    """Put true costs in the place of the full amounts of calls whose process died.

    FILE is the provider's usage report: CSV with a header or a JSON list, with id (as in our
    answers) and cost_usd, and model where an id was tried with several.
    """
    from optllm_router.ledger import read_charges, reconcile

    charges = read_charges(file)
    with _books(place) as (ledger, database):
        ledger.recover()
        done = reconcile(ledger, database, charges)
    if as_json:
        print_json(asdict(done))
    else:
        print_reconciliation(done)


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
