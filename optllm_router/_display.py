"""How the command shows things to people: tables and progress. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from optllm_router._money import format_usd, usd_text

if TYPE_CHECKING:
    from optllm_router.evaluation.demo import Demo
    from optllm_router.evaluation.replay import Replay
    from optllm_router.ledger import Balance, Reconciliation

Report = Callable[[str, int, int], None]
"""What is being done, how many steps are done, and of how many."""

_WIDTH_OF_FILES, _ANY = 140, 1_000


class _Console(Console):
    """Shows text as it is: names of models and scopes are what others chose to call them."""

    def render_str(self, text: str, **manner: Any) -> Text:
        return super().render_str(visible(text), **manner)


def visible(text: str) -> str:
    """Text for a terminal: characters that it would obey and not show are shown as escapes.

    >>> visible("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\n'
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def print_whole(table: Table) -> None:
    """Print a table at its own width: figures that are cut off at an edge would mislead."""
    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(width=_ANY), table).maximum)
    out.print(table, crop=False)


def console(*, stderr: bool = False) -> Console:
    """A console that is wide where its output goes to a file or a pipe."""
    made = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_FILES
    return made


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress bar on standard error, where that is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def report(doing: str, done: int, of: int) -> None:
            progress.update(task, description=doing, completed=done, total=of or None)

        yield report


def print_demo(demo: Demo, figure: Path | None, *, replaced: bool) -> None:
    """The demo's table, cap and spend."""
    out = console()
    table = Table(
        title=f"{demo.prompts} prompts to simulated models over HTTP, in {demo.seconds:.0f} s",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("success", justify="right")
    table.add_column("USD", justify="right")
    table.add_column("share of each model")
    for i, row in enumerate(demo.rows):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row.shares.items())
        style = "bold" if i == 0 else None
        table.add_row(row.name, f"{row.success:.1%}", usd_text(row.cost_usd), shares, style=style)
    out.print(table)
    parts = " → ".join(f"{part:.0%}" for part in demo.success_by_part)
    out.print(f"success by quarter, learning from no label on: {parts}")
    if demo.refused:
        out.print(f"{demo.refused} prompts were refused: what was left did not pay for them")
    out.print(f"cap   {format_usd(demo.cap_nano)}")
    out.print(
        f"spent {format_usd(demo.spent_nano)}, as the providers billed it"
        if demo.spent_nano == demo.billed_nano
        else f"spent {format_usd(demo.spent_nano)}, billed {format_usd(demo.billed_nano)}"
    )
    out.print("books " + ("verified" if not demo.books else "; ".join(demo.books)))
    if figure is None:
        out.print("no picture was drawn; for one: pip install 'optllm-router[figures]'")
    else:
        out.print(f"replaced {figure}" if replaced else f"wrote {figure}")


def print_replay(replay: Replay) -> None:
    """What was sent beside what was promised."""
    best = replay.best_single
    table = Table(
        title=f"{replay.dataset}: {replay.n_queries:,} queries, {replay.n_train:,} labelled before",
        title_justify="left",
    )
    for heading in ("", "accuracy", "USD"):
        table.add_column(heading, justify="right" if heading else "left")
    offline = replay.offline
    spent = usd_text(replay.spent_nano / 1e9)
    table.add_row("sent and graded", f"{replay.accuracy:.4f}", spent, style="bold")
    on_paper = (f"{offline.accuracy:.4f}", usd_text(offline.cost_usd))
    table.add_row("the same allocation offline", *on_paper)
    table.add_row("promised by the plan", f"{offline.promised:.4f}", usd_text(offline.expected_usd))
    table.add_section()
    table.add_row(f"always {best['model']}", f"{best['accuracy']:.4f}", usd_text(best["cost_usd"]))
    out = console()
    out.print(table)
    shares = ", ".join(f"{name} {share:.1%}" for name, share in replay.shares.items())
    out.print(f"shares: {shares}")
    out.print(f"cap   {format_usd(replay.cap_nano)}")
    out.print(f"spent {format_usd(replay.spent_nano)}")
    out.print(
        f"{replay.diverted} diverted to another model than planned, {replay.refused} refused, "
        f"{replay.failed} failed"
    )
    out.print("books " + ("verified" if not replay.books else "; ".join(replay.books)))


def print_balances(balances: Sequence[Balance]) -> None:
    """One row per budget."""
    if not balances:
        console().print("no budgets in this store")
        return
    table = Table()
    words = ("budget", "for", "window")
    for heading in (*words, "limit", "spent", "reserved", "left", "calls"):
        table.add_column(heading, justify="left" if heading in words else "right")
    for balance in balances:
        kept = (balance.spent_nano, balance.reserved_nano, balance.left_nano)
        books = [*(format_usd(amount) for amount in kept), f"{balance.calls:,}"]
        if balance.scope.endswith(":*"):  # for each one, which has books of its own
            books = [""] * len(books)
        zone = "" if balance.timezone == "UTC" else f" in {balance.timezone}"
        table.add_row(
            balance.budget if balance.hard else f"{balance.budget} (soft)",
            balance.scope,
            f"{balance.window}{zone}",
            format_usd(balance.limit_nano),
            *books,
        )
    console().print(table)


def print_reconciliation(done: Reconciliation) -> None:
    """One row per correction, and what is left to do."""
    if done.corrections:
        table = Table()
        for heading in ("reservation", "model", "was counted as", "cost"):
            table.add_column(
                heading, justify="left" if heading in ("reservation", "model") else "right"
            )
        for one in done.corrections:
            amounts = (format_usd(one.before_nano), format_usd(one.after_nano))
            table.add_row(one.reservation_id, one.candidate or "(calls to come)", *amounts)
        console().print(table)
    for id in done.unmatched:
        console().print(f"no single expired call of id {id}")
    console().print(f"{done.still_expired:,} expired calls still count in full")
    if done.expired_blocks:
        held = format_usd(sum(block.amount_nano for block in done.expired_blocks))
        console().print(
            f"{len(done.expired_blocks):,} blocks of dead processes still count in full ({held}); "
            "a complete report frees them: --complete-until"
        )
        for block in done.expired_blocks:
            console().print(
                f"  {block.id}: {format_usd(block.amount_nano)} of {', '.join(block.budgets)}"
            )


def print_models(rows: Sequence[dict[str, Any]]) -> None:
    """One row per model."""
    table = Table(caption="USD per million tokens", caption_justify="left")
    for heading in ("name", "prompt", "cached", "completion", "max output tokens", "price from"):
        table.add_column(heading, justify="left" if heading in ("name", "price from") else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['usd_per_million_prompt_tokens']:g}",
            _rate(row["usd_per_million_cached_tokens"]),
            f"{row['usd_per_million_completion_tokens']:g}",
            f"{row['max_output_tokens']:,}",
            row["price_source"],
        )
    console().print(table)


def _rate(usd: float | None) -> str:
    return "" if usd is None else f"{usd:g}"


def print_keys(rows: Sequence[dict[str, Any]]) -> None:
    """One row per access key."""
    if not rows:
        console().print("no access keys in this store; make one with: optllm keys create")
        return
    table = Table()
    for heading in ("id", "scope", "made", "expires", "works"):
        table.add_column(heading)
    for row in rows:
        expires = _day(row["expires_at"]) if row["expires_at"] else "never"
        works = "yes" if row["works"] else "revoked" if row["revoked_at"] else "expired"
        table.add_row(row["id"], row["scope"], _day(row["created_at"]), expires, works)
    console().print(table)


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
