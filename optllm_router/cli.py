"""The ``optllm`` command.

Results go to standard output, as tables for people or with ``--json`` for machines; progress
and errors go to standard error. A mistake of the user is one line and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from optllm_router import __version__
from optllm_router._budget_commands import budget
from optllm_router._command_options import (
    FILE,
    Command,
    check_folder,
    json_option,
    print_json,
)
from optllm_router._display import (
    print_demo,
    print_models,
    print_replay,
    print_whole,
    progress_bar,
    visible,
)
from optllm_router._errors import OptLLMError
from optllm_router._money import NANO_PER_USD
from optllm_router._receipt_command import receipt
from optllm_router._server_commands import keys, serve

if TYPE_CHECKING:
    from optllm_router._types import Price, Rates
    from optllm_router.config import Settings


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; the entry point of ``optllm``."""
    try:
        code = commands.main(args=arguments, prog_name="optllm", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:  # of a group alone, as `optllm keys`
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except OptLLMError as error:
        _fail(str(error), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {visible(sentence)}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="optllm")
def commands() -> None:
    """Route every prompt to the LLM that should answer it, within a budget that holds."""


commands.add_command(budget)
commands.add_command(serve)
commands.add_command(keys)
commands.add_command(receipt)


def _seed_option(command: Command) -> Command:
    return click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of random choices.",
    )(command)


@commands.command(short_help="The whole loop against simulated models: no key, no network.")
@click.option(
    "--prompts", type=click.IntRange(4, 100_000), default=900, show_default=True, help="To answer."
)
@click.option("--budget-usd", type=float, default=0.50, show_default=True, help="The hard cap.")
@click.option(
    "--figure",
    type=FILE,
    help="Where to draw cost against success, .svg or .png; front.svg, if anything can be drawn.",
)
@_seed_option
@json_option
def demo(prompts: int, budget_usd: float, figure: Path | None, seed: int, as_json: bool) -> None:
    """The whole loop against simulated models on this machine: no key, no network.

    Starts without labels, sends every prompt over real HTTP through litellm, learns from a
    grader as it goes, and keeps to a hard cap. The models are simulated: the figures say how
    the router works, and nothing about real models.
    """
    from optllm_router.evaluation import can_draw, check_figure
    from optllm_router.evaluation.demo import run_demo

    if figure is None and can_draw():
        figure = Path("front.svg")
    if figure is not None:
        check_figure(figure)
    replaced = figure is not None and figure.exists()
    with progress_bar() as report:
        done = run_demo(
            prompts=prompts,
            budget_usd=budget_usd,
            seed=seed,
            figure=figure,
            progress=lambda count, of: report("answering prompts", count, of),
        )
    if as_json:
        print_json({**done.to_dict(), "figure": figure and str(figure)})
    else:
        print_demo(done, figure, replaced=replaced)


@commands.command(short_help="Recorded prompts and answers through the real client.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--budget-usd", type=float, required=True, help="The hard cap.")
@click.option("--labels", type=float, default=0.02, show_default=True, help="Share to learn from.")
@click.option("--limit", type=click.IntRange(1), help="Send at most so many queries.")
@_seed_option
@json_option
def replay(
    folder: Path, budget_usd: float, labels: float, limit: int | None, seed: int, as_json: bool
) -> None:
    """Recorded prompts and answers through the real client, litellm, HTTP and the ledger.

    DIR holds queries.csv and outcomes.csv. A labelled share is learnt from; the rest is planned
    jointly under the cap and sent to local servers that repeat the recorded answers.
    """
    from optllm_router.evaluation import load_recorded
    from optllm_router.evaluation.replay import replay as run_replay

    with progress_bar() as report:
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
        print_json(done.to_dict())
    else:
        print_replay(done)


@commands.command(short_help="Predictor and allocation on recorded outcomes.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--labels", type=float, default=0.02, show_default=True, help="Share to learn from.")
@click.option(
    "--cost",
    type=click.Choice(["recorded", "predicted"]),
    default="recorded",
    show_default=True,
    help="Which costs to allocate with; the recorded ones are paid.",
)
@click.option("--dump", type=FILE, help="Write the predictions to this .npz, to rescore them.")
@click.option("--figure", type=FILE, help="Draw accuracy against cost, .svg or .png.")
@_seed_option
@click.option(
    "--baselines",
    metavar="NAMES",
    help="Compare with these methods, separated by commas, or 'all'; with 95 % intervals.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="Compare over so many splits, from --seed on.  [default: 1, or 5 with --baselines]",
)
@click.option("--report", type=FILE, help="Write the comparison as one self-contained HTML page.")
@click.option("--keep", type=FILE, help="Keep finished parts here, and go on from them.")
@json_option
def evaluate(
    folder: Path,
    labels: float,
    cost: Literal["recorded", "predicted"],
    dump: Path | None,
    figure: Path | None,
    seed: int,
    baselines: str | None,
    seeds: int | None,
    report: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Predictor and allocation on recorded outcomes, against baselines and the oracle.

    DIR holds queries.csv and outcomes.csv. Nothing is sent. Ctrl-C stops a comparison, shows what
    is finished, and exits with 130.
    """
    _check_outputs(figure, dump, report, keep)
    if baselines is None and seeds is None and report is None and keep is None:
        _evaluate_once(folder, labels, cost, seed, dump, figure, as_json)
        return
    if dump is not None:
        raise click.UsageError("--dump is for one split; leave out --baselines, --seeds, --report")
    wanted = range(seed, seed + (seeds or 5))
    names = "optllm" if baselines is None else baselines
    _compare(folder, labels, cost, wanted, names, figure, report, keep, as_json)


def _check_outputs(
    figure: Path | None, dump: Path | None, report: Path | None, keep: Path | None
) -> None:
    """Nobody should learn after minutes of work that its result cannot be written."""
    from optllm_router.evaluation import check_dump, check_figure, check_report

    for path, check in ((figure, check_figure), (dump, check_dump), (report, check_report)):
        if path is not None:
            check(path)
    check_folder(keep)


def _evaluate_once(
    folder: Path,
    labels: float,
    cost: Literal["recorded", "predicted"],
    seed: int,
    dump: Path | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    from optllm_router import evaluation

    with progress_bar() as progress:
        progress("reading", 0, 0)
        recorded = evaluation.load_recorded(folder)
        done = evaluation.evaluate(recorded, labels=labels, seed=seed, cost=cost, progress=progress)
    if as_json:
        click.echo(done.to_json())
    else:
        print_whole(evaluation.evaluation_table(done))
    if dump is not None:
        evaluation.write_dump(done, dump)
    if figure is not None:
        evaluation.draw_evaluation(done, figure)


def _compare(
    folder: Path,
    labels: float,
    cost: Literal["recorded", "predicted"],
    seeds: range,
    baselines: str,
    figure: Path | None,
    report: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    from optllm_router import evaluation

    methods = evaluation.methods_named(baselines)
    setting = evaluation.Setting(labels=labels, cost=cost)
    parts, complete = [], False
    with progress_bar() as progress:
        progress("reading", 0, 0)
        recorded = evaluation.load_recorded(folder)
        kept = evaluation.KeptParts(keep, recorded, setting) if keep is not None else None
        running = evaluation.compare(
            recorded, methods, setting, seeds=seeds, kept=kept, progress=progress
        )
        try:
            for part in running:
                parts.append(part)
            complete = True
        except KeyboardInterrupt:
            if not parts:
                raise
            click.echo(f"interrupted: {len(parts)} parts are finished", err=True)
    comparison = evaluation.summarise(recorded.name, setting, parts, complete=complete)
    if as_json:
        click.echo(comparison.to_json())
    else:
        print_whole(evaluation.comparison_table(comparison))
    if figure is not None:
        evaluation.draw_comparison(comparison, figure)
    if report is not None:
        evaluation.write_report(comparison, report)
    if not complete:
        raise click.exceptions.Exit(130)


@commands.command(short_help="Prices and limits of models, as the router uses them.")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--config",
    type=FILE,
    help="A LiteLLM config.yaml; its models are shown.",
)
@json_option
def models(names: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Prices and limits of models, as the router would use them.

    MODEL is a litellm name, like openai/gpt-4o-mini. Without any, those of --config.
    """
    from optllm_router.candidates import read_candidates

    if not names and config is None:
        raise click.UsageError("name a model, like openai/gpt-4o-mini, or give --config")
    candidates = list(read_candidates(list(names))) if names else []
    if config is not None:
        candidates.extend(_settings(config).candidates)
    rows = [
        {
            "name": candidate.name,
            "model": candidate.model,
            **_price_as_dict(candidate.price),
            "max_output_tokens": candidate.max_output_tokens,
            "price_source": candidate.price.source,
        }
        for candidate in candidates
    ]
    if as_json:
        print_json({"models": rows})
    else:
        print_models(rows)


def _price_as_dict(price: Price) -> dict[str, Any]:
    """Every rate; ``None`` for a kind of token that costs as any other."""
    return {
        **_rates_as_dict(price),
        "usd_per_request": float(price.request) / NANO_PER_USD,
        "long_prompts": [
            {"above_tokens": tier.above_tokens, **_rates_as_dict(tier)} for tier in price.tiers
        ],
        "batch": None if price.batch is None else _rates_as_dict(price.batch),
    }


def _rates_as_dict(rates: Rates) -> dict[str, float | None]:
    kinds = {
        "prompt": rates.prompt,
        "cached": rates.cached,
        "cache_write": rates.cache_write,
        "audio": rates.audio,
        "completion": rates.completion,
        "reasoning": rates.reasoning,
    }
    return {
        f"usd_per_million_{kind}_tokens": None if nano is None else float(nano) / 1000
        for kind, nano in kinds.items()
    }


def _settings(config: Path) -> Settings:
    from optllm_router.config import load_settings

    return load_settings(config)
