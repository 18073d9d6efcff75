"""The ``optllm`` command.

Results go to standard output, as tables for people or with ``--json`` for machines; progress
and errors go to standard error. A mistake of the user is one line and exit code 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click

from optllm_router import __version__
from optllm_router._errors import OptLLMError

if TYPE_CHECKING:
    from rich.console import Console

    from optllm_router.config import Settings
    from optllm_router.evaluation.demo import Demo
    from optllm_router.evaluation.replay import Replay
    from optllm_router.ledger import Balance

Command = TypeVar("Command", bound=Callable[..., Any])
Report = Callable[[str, int, int], None]

_WIDTH_OF_FILES = 140
_DEFAULT_STORE = "sqlite:///optllm.db"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; the entry point of ``optllm``."""
    try:
        code = commands.main(args=arguments, prog_name="optllm", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except OptLLMError as error:
        _fail(str(error), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {sentence}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="optllm")
def commands() -> None:
    """Route every prompt to the LLM that should answer it, within a budget that holds."""


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def _seed_option(command: Command) -> Command:
    return click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of random choices.",
    )(command)


@commands.command()
@click.option(
    "--prompts", type=click.IntRange(1, 100_000), default=700, show_default=True, help="To answer."
)
@click.option("--budget-usd", type=float, default=0.40, show_default=True, help="The hard cap.")
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("front.svg"),
    show_default=True,
    help="Where to draw cost against success, .svg or .png.",
)
@_seed_option
@_json_option
def demo(prompts: int, budget_usd: float, figure: Path, seed: int, as_json: bool) -> None:
    """The whole loop against simulated models on this machine: no key, no network.

    Starts without labels, sends every prompt over real HTTP through litellm, learns from a
    grader as it goes, and keeps to a hard cap. The models are simulated: the figures say how
    the router works, and nothing about real models.
    """
    from optllm_router.evaluation.demo import run_demo

    with _progress() as report:
        done = run_demo(
            prompts=prompts,
            budget_usd=budget_usd,
            seed=seed,
            figure=figure,
            progress=lambda count, of: report("answering prompts", count, of),
        )
    if as_json:
        _print_json({**done.to_dict(), "figure": str(figure)})
    else:
        _print_demo(done, figure)


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--budget-usd", type=float, required=True, help="The hard cap.")
@click.option("--labels", type=float, default=0.02, show_default=True, help="Share to learn from.")
@click.option("--limit", type=click.IntRange(1), help="Send at most so many queries.")
@_seed_option
@_json_option
def replay(
    folder: Path, budget_usd: float, labels: float, limit: int | None, seed: int, as_json: bool
) -> None:
    """Recorded prompts and answers through the real client, litellm, HTTP and the ledger.

    DIR holds queries.csv and outcomes.csv. A labelled share is learnt from; the rest is planned
    jointly under the cap and sent to local servers that repeat the recorded answers.
    """
    from optllm_router.evaluation import load_recorded
    from optllm_router.evaluation.replay import replay as run_replay

    with _progress() as report:
        report("reading", 0, 0)
        done = run_replay(
            load_recorded(folder),
            labels=labels,
            budget_usd=budget_usd,
            limit=limit,
            seed=seed,
            progress=report,
        )
    if as_json:
        _print_json(done.to_dict())
    else:
        _print_replay(done)


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--labels", type=float, default=0.02, show_default=True, help="Share to learn from.")
@click.option(
    "--cost",
    type=click.Choice(["recorded", "predicted"]),
    default="recorded",
    show_default=True,
    help="Which costs to allocate with; the recorded ones are paid.",
)
@click.option(
    "--dump",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the predictions to this .npz, so that anyone can rescore.",
)
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw accuracy against cost, .svg or .png.",
)
@_seed_option
@_json_option
def evaluate(
    folder: Path,
    labels: float,
    cost: Literal["recorded", "predicted"],
    dump: Path | None,
    figure: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Predictor and allocation on recorded outcomes, against baselines and the oracle.

    DIR holds queries.csv and outcomes.csv. Nothing is sent.
    """
    from optllm_router import evaluation

    with _progress() as report:
        report("reading", 0, 0)
        recorded = evaluation.load_recorded(folder)
        done = evaluation.evaluate(recorded, labels=labels, seed=seed, cost=cost, progress=report)
    if dump is not None:
        evaluation.write_dump(done, dump)
    if figure is not None:
        evaluation.draw_evaluation(done, figure)
    if as_json:
        click.echo(done.to_json())
    else:
        _console().print(evaluation.evaluation_table(done))


def _settings_options(command: Command) -> Command:
    config = click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A LiteLLM config.yaml with our settings under router:.",
    )
    store = click.option(
        "--store", help=f"Database URL.  [default: that of --config, or {_DEFAULT_STORE}]"
    )
    return config(store(command))


@commands.command()
@_settings_options
@click.option("--verify", is_flag=True, help="Recompute the books; exit 1 when they are wrong.")
@_json_option
def budget(config: Path | None, store: str | None, verify: bool, as_json: bool) -> None:
    """What each budget has spent, set aside and left in its current window."""
    from optllm_router.ledger import Ledger
    from optllm_router.store import Database

    settings = _settings(config) if config else None
    url = store or (settings.store if settings else _DEFAULT_STORE)
    _must_exist(url)
    database = Database(url)
    try:
        ledger = Ledger(database)
        balances = ledger.balances()
        differences = ledger.verify() if verify else []
    finally:
        database.close()
    if as_json:
        rows = [_balance_as_dict(balance) for balance in balances]
        _print_json({"store": url, "budgets": rows, "differences": differences})
    else:
        _print_balances(balances)
        for difference in differences:
            click.echo(difference, err=True)
    if differences:
        sys.exit(1)


@commands.command()
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A LiteLLM config.yaml; its models are shown.",
)
@_json_option
def models(names: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Prices and limits of models, as the router would use them.

    MODEL is a litellm name, like openai/gpt-4o-mini. Without any, those of --config.
    """
    from optllm_router.config import read_candidates

    if not names and config is None:
        raise click.UsageError("name a model, like openai/gpt-4o-mini, or give --config")
    candidates = list(read_candidates(list(names))) if names else []
    if config is not None:
        candidates.extend(_settings(config).candidates)
    rows = [
        {
            "name": candidate.name,
            "model": candidate.model,
            "usd_per_million_prompt_tokens": float(candidate.price.prompt) / 1000,
            "usd_per_million_completion_tokens": float(candidate.price.completion) / 1000,
            "max_output_tokens": candidate.max_output_tokens,
            "price_source": candidate.price.source,
        }
        for candidate in candidates
    ]
    if as_json:
        _print_json({"models": rows})
    else:
        _print_models(rows)


def _settings(config: Path) -> Settings:
    from optllm_router.config import load_settings

    return load_settings(config)


def _must_exist(url: str) -> None:
    """Looking at a store must not create one."""
    path = url.removeprefix("sqlite:///").partition("?")[0]
    if url.startswith("sqlite:///") and not path.startswith("file:") and not Path(path).exists():
        raise click.UsageError(f"no store at {path!r}; give --store or --config")


def _balance_as_dict(balance: Balance) -> dict[str, Any]:
    return {
        "budget": balance.budget,
        "window": balance.window,
        "next_window": balance.next_window,
        "limit_nano": balance.limit_nano,
        "spent_nano": balance.spent_nano,
        "reserved_nano": balance.reserved_nano,
        "left_nano": balance.left_nano,
    }


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    return console


@contextmanager
def _progress() -> Iterator[Report]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = _console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=None)

        def report(doing: str, done: int, of: int) -> None:
            progress.update(task, description=doing, completed=done, total=of or None)

        yield report


def _print_demo(demo: Demo, figure: Path) -> None:
    from rich.table import Table

    from optllm_router._money import format_usd

    console = _console()
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
        table.add_row(row.name, f"{row.success:.1%}", f"{row.cost_usd:.4f}", shares, style=style)
    console.print(table)
    parts = " → ".join(f"{part:.0%}" for part in demo.success_by_part)
    console.print(f"success by quarter, learning from no label on: {parts}")
    console.print(f"cap   {format_usd(demo.cap_nano)}")
    console.print(
        f"spent {format_usd(demo.spent_nano)}, as the providers billed it"
        if demo.spent_nano == demo.billed_nano
        else f"spent {format_usd(demo.spent_nano)}, billed {format_usd(demo.billed_nano)}"
    )
    console.print("books " + ("verified" if not demo.books else "; ".join(demo.books)))
    console.print(f"wrote {figure}")


def _print_replay(replay: Replay) -> None:
    from rich.table import Table

    from optllm_router._money import format_usd

    best = replay.best_single
    table = Table(
        title=f"{replay.dataset}: {replay.n_queries:,} queries, {replay.n_train:,} labelled before",
        title_justify="left",
    )
    for heading in ("", "accuracy", "USD"):
        table.add_column(heading, justify="right" if heading else "left")
    offline = replay.offline
    spent = f"{replay.spent_nano / 1e9:.6f}"
    table.add_row("sent and graded", f"{replay.accuracy:.4f}", spent, style="bold")
    on_paper = (f"{offline.accuracy:.4f}", f"{offline.cost_usd:.6f}")
    table.add_row("the same allocation offline", *on_paper)
    table.add_row("promised by the plan", f"{offline.promised:.4f}", f"{offline.expected_usd:.6f}")
    table.add_section()
    table.add_row(f"always {best['model']}", f"{best['accuracy']:.4f}", f"{best['cost_usd']:.6f}")
    console = _console()
    console.print(table)
    shares = ", ".join(f"{name} {share:.1%}" for name, share in replay.shares.items())
    console.print(f"shares: {shares}")
    console.print(f"cap   {format_usd(replay.cap_nano)}")
    console.print(f"spent {format_usd(replay.spent_nano)}")
    console.print(
        f"{replay.diverted} diverted to another model than planned, {replay.refused} refused, "
        f"{replay.failed} failed"
    )
    console.print("books " + ("verified" if not replay.books else "; ".join(replay.books)))


def _print_balances(balances: Sequence[Balance]) -> None:
    from rich.table import Table

    from optllm_router._money import format_usd

    if not balances:
        click.echo("no budgets in this store")
        return
    table = Table()
    for heading in ("budget", "window", "limit", "spent", "reserved", "left"):
        table.add_column(heading, justify="left" if heading in ("budget", "window") else "right")
    for balance in balances:
        amounts = (balance.limit_nano, balance.spent_nano, balance.reserved_nano, balance.left_nano)
        table.add_row(balance.budget, balance.window, *(format_usd(amount) for amount in amounts))
    _console().print(table)


def _print_models(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(caption="USD per million tokens", caption_justify="left")
    for heading in ("name", "prompt", "completion", "max output tokens", "price from"):
        table.add_column(heading, justify="left" if heading in ("name", "price from") else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['usd_per_million_prompt_tokens']:g}",
            f"{row['usd_per_million_completion_tokens']:g}",
            f"{row['max_output_tokens']:,}",
            row["price_source"],
        )
    _console().print(table)
