"""``optllm receipt``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from rich.table import Table

from optllm_router._command_options import (
    FILE,
    check_folder,
    json_option,
    opened,
    print_json,
    store_options,
)
from optllm_router._display import console
from optllm_router._money import usd_from_nano

if TYPE_CHECKING:
    from optllm_router.receipts import Baseline, Estimate, Receipt, Success
    from optllm_router.store import By, Spent

_HELD = "(calls to come)"
_NAMELESS = {"scope": "(no budget)", "model": _HELD, "price_table": _HELD}
_GROUPINGS = {"model": "model", "scope": "scope", "day": "day", "price-table": "price_table"}


@click.command(short_help="What was spent; what one model for all would have cost.")
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="WHEN",
    help="Start: so long ago, like 7d or 24h, or a date.",
)
@click.option("--until", metavar="WHEN", help="End, written the same way.  [default: now]")
@click.option(
    "--baseline",
    metavar="MODEL",
    help="Compare with this model for everything, or 'none'.  [default: the dearest one]",
)
@click.option(
    "--by",
    type=click.Choice(list(_GROUPINGS)),
    default="model",
    show_default=True,
    help="What the rows of the table, or of --csv, are.",
)
@click.option("--csv", "csv_file", type=FILE, help="Also write the rows to this file.")
@store_options
@json_option
def receipt(
    since: str,
    until: str | None,
    baseline: str | None,
    by: str,
    csv_file: Path | None,
    config: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """What was spent, on what, and what one model for everything would have cost.

    Sums are exact. The comparison is predicted from what the store holds, with a 95 % interval.
    """
    from optllm_router.config import load_settings
    from optllm_router.receipts import make_receipt

    check_folder(csv_file)
    candidates = load_settings(config).candidates if config else ()
    with opened(config, store) as database:
        made = make_receipt(
            database, since=since, until=until, baseline=baseline, candidates=candidates
        )
    grouping = cast("By", _GROUPINGS[by])
    if csv_file is not None:
        try:
            made.write_csv(csv_file, grouping)
        except OSError as error:
            raise click.UsageError(
                f"{str(csv_file)!r} cannot be written: {error.strerror or error}"
            ) from error
    if as_json:
        print_json(made.to_dict())
    else:
        _print(made, grouping)


def _print(made: Receipt, by: By) -> None:
    out = console()
    out.print(_spent_table(made, by))
    for line in _remarks(made.total):
        out.print(line)
    if made.baseline is None:
        if made.success is not None:
            out.print(f"success {_success(made.success)}")
        if made.no_baseline:
            out.print(f"no comparison with one model for everything: {made.no_baseline}")
    else:
        out.print(_comparison_table(made, made.baseline))
        for line in _provenance(made.baseline):
            out.print(line)


def _spent_table(made: Receipt, by: By) -> Table:
    table = Table(title=f"{_moment(made.since)} to {_moment(made.until)}", title_justify="left")
    table.add_column(by.replace("_", " "))
    for heading in ("calls", "prompt tokens", "cached", "completion tokens", "USD", "share"):
        table.add_column(heading, justify="right")
    for name, spent in made.by[by].items():
        table.add_row(name or _NAMELESS[by], *_cells(spent, made.total.spent_nano))
    table.add_section()
    table.add_row("all", *_cells(made.total, made.total.spent_nano), style="bold")
    return table


def _cells(spent: Spent, all_nano: int) -> Sequence[str]:
    tokens = (spent.prompt_tokens, spent.cached_tokens, spent.completion_tokens)
    mark = "~" if spent.estimated_nano or spent.expired_nano else ""
    return (
        f"{spent.calls:,}",
        *(f"{count:,}" for count in tokens),
        f"{mark}{_usd(spent.spent_nano)}",
        f"{spent.spent_nano / all_nano:.1%}" if all_nano else "",
    )


def _remarks(total: Spent) -> list[str]:
    """What the sums alone would hide."""
    lines = []
    if total.estimated_calls:
        lines.append(
            f"~ {_usd(total.estimated_nano)} USD of it are estimated: the tokens of "
            f"{total.estimated_calls:,} calls were not counted by the provider"
        )
    if total.expired_nano:
        lines.append(
            f"~ {_usd(total.expired_nano)} USD of it were set aside by processes that died, for "
            f"{total.expired_calls:,} calls: the most that these can have cost"
        )
    if total.reported_nano:
        lines.append(f"{_usd(total.reported_nano)} USD of it are as the providers reported them")
    if total.open_nano:
        lines.append(
            f"besides, {_usd(total.open_nano)} USD are set aside, {total.open_calls:,} calls are "
            "under way"
        )
    if total.free_calls:
        lines.append(f"besides, {total.free_calls:,} calls failed without a charge")
    return lines


def _comparison_table(made: Receipt, baseline: Baseline) -> Table:
    table = Table(title=f"{baseline.answers:,} answers", title_justify="left")
    table.add_column("")
    for heading in ("success", "USD", "saved"):
        table.add_column(heading, justify="right")
    did = "not graded" if made.success is None else _success(made.success)
    table.add_row("as they were", did, _usd(baseline.cost_nano), "", style="bold")
    instead = "never graded" if baseline.success is None else _share(baseline.success.rate)
    cost = baseline.cost_usd
    saved = "" if baseline.savings is None else _share(baseline.savings)
    usd = f"{cost.value:.6f} ({cost.low:.6f} to {cost.high:.6f})"
    table.add_row(f"all by {baseline.model}", instead, usd, saved)
    return table


def _provenance(baseline: Baseline) -> list[str]:
    """Where the comparison comes from."""
    others = baseline.answers - baseline.own_answers
    lines = [
        f"in brackets: 95 % intervals. {baseline.own_answers:,} answers were the model's own; the "
        f"other {others:,} are priced from {baseline.sampled:,} of them (prices: "
        f"{baseline.price_source})",
        f"its lengths are predicted from {baseline.recorded_lengths:,} answers of its own",
    ]
    if baseline.success is not None:
        lines[-1] += f", its success from the scores of {baseline.recorded_scores:,}"
    return lines


def _success(success: Success) -> str:
    parts = (f"{success.graded:,} graded", f"{success.predicted:,} predicted")
    return f"{_share(success.rate)}, {' and '.join(parts)}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _usd(nano: int) -> str:
    return f"{usd_from_nano(nano):.6f}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
