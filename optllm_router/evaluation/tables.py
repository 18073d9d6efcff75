"""Results as tables for people (rich renderables; printing them is the caller's business)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from optllm_router._money import usd_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from optllm_router.evaluation.bootstrap import Estimate
    from optllm_router.evaluation.comparison import Comparison, Row
    from optllm_router.evaluation.judge import Deployed
    from optllm_router.evaluation.protocol import Evaluation, Figures

__all__ = ["ABSENT", "INTERVALS", "comparison_table", "evaluation_table"]

ABSENT = "–"
_EVALUATION_HEADINGS = (
    "AUC",
    "gap\nclosed",
    "saved at\nparity",
    "max\naccuracy",
    "match_best:\naccuracy, cost",
    "Brier",
    "ECE",
    "IGD",
    "spread",
    "seconds: fit,\npredict, solve",
)


def _share(value: float) -> str:
    return f"{round(value, 3) + 0.0:.1%}"  # never "-0.0%"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


INTERVALS: dict[str, tuple[str, Callable[[float], str]]] = {
    "auc": ("AUC", _three),
    "gap_closed": ("gap closed", _three),
    "savings_at_parity": ("saved at parity", _share),
    "max_accuracy": ("max accuracy", _three),
    "accuracy_delta": ("match_best accuracy", _signed),
    "cost_ratio": ("match_best cost", _three),
}
"""Heading and format of every figure that has an interval."""


def evaluation_table(evaluation: Evaluation) -> Table:
    """One row per method, the best single model as the last one."""
    split, best = evaluation.split, evaluation.best_single
    table = Table(
        title=f"{evaluation.dataset}: learnt from {len(split.train):,} labelled queries, "
        f"tested on {len(split.test):,} (seed {split.seed}){_costs(evaluation.costs_predicted)}",
        caption=f"Parity is with {best.model}, chosen in hindsight: accuracy {best.accuracy:.4f} "
        f"for {usd_text(best.cost_usd)} USD.{dropped_sentence(split.n_dropped)}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", style="bold", no_wrap=True)
    for heading in _EVALUATION_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    if evaluation.costs_predicted:
        table.add_column("gap closed,\nif costs were known", justify="right", no_wrap=True)
    for name, result in evaluation.methods.items():
        knowing = number_text(result.gap_closed_knowing_costs, 3)
        cells = [*_cells(result.figures), *([knowing] if evaluation.costs_predicted else [])]
        table.add_row(name, *cells, style=_style(name))
    table.add_section()
    table.add_row("best single", ABSENT, ABSENT, "0.0%", f"{best.accuracy:.3f}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """One row per method: means over the seeds, 95 % intervals below them."""
    seeds = len(comparison.best_single)
    table = Table(
        title=f"{comparison.dataset}: learnt from {comparison.n_train:,} labelled queries, tested "
        f"on {comparison.n_test:,}, mean of {seeds} seed{'s' if seeds > 1 else ''}"
        f"{_costs(comparison.setting.cost == 'predicted')}",
        caption=comparison_caption(comparison),
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("method", style="bold", no_wrap=True)
    for heading, _ in INTERVALS.values():
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for heading in ("Brier\nECE", "IGD\nspread", "seconds: fit,\npredict, solve"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in comparison.rows.items():
        mark = "" if len(row.seeds) == seeds else f"{len(row.seeds)} of {seeds} seeds"
        cells = [
            _interval(row.estimates[figure], show, len(row.seeds))
            for figure, (_, show) in INTERVALS.items()
        ]
        table.add_row(_above(name, mark), *cells, *_plain_cells(row), style=_style(name))
    table.add_row("best single", *best_single_texts(comparison))
    return table


def _costs(predicted: bool) -> str:
    return ", allocated with predicted costs" if predicted else ""


def comparison_caption(comparison: Comparison) -> str:
    """What parity is with, how the intervals are made, and what was left out."""
    best = {single.model for single in comparison.best_single.values()}
    accuracy = [single.accuracy for single in comparison.best_single.values()]
    caption = (
        f"Parity is with {' or '.join(sorted(best))}, chosen in hindsight: accuracy "
        f"{sum(accuracy) / len(accuracy):.4f}."
    )
    if comparison.setting.resamples:
        caption += (
            f" Intervals: 95 % bootstrap over queries ({comparison.setting.resamples} resamples) "
            "and seeds."
        )
    if not comparison.complete:
        caption += " Interrupted: not all parts are finished."
    return caption + dropped_sentence(comparison.n_dropped)


def best_single_texts(comparison: Comparison) -> list[str]:
    """What the best single model has under the headings of :data:`INTERVALS`."""
    accuracies = [single.accuracy for single in comparison.best_single.values()]
    own = {
        "savings_at_parity": 0.0,
        "max_accuracy": sum(accuracies) / len(accuracies),
        "accuracy_delta": 0.0,
        "cost_ratio": 1.0,
    }
    return [
        show(own[figure]) if figure in own else ABSENT for figure, (_, show) in INTERVALS.items()
    ]


def dropped_sentence(n_dropped: int) -> str:
    """Says what was left out of the test set; empty when nothing was."""
    if not n_dropped:
        return ""
    return (
        f" {n_dropped:,} test queries were left out because the score or cost of a model is "
        "missing."
    )


def interval_text(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The interval as ``low..high``, empty when there is none."""
    if estimate.high is None:
        return ""
    low = ABSENT if estimate.low is None else show(estimate.low)
    return f"{low}..{show(estimate.high)}"


def mean_text(estimate: Estimate, show: Callable[[float], str], seeds: int) -> str:
    """The mean, and in how many seeds it exists when not in all."""
    if estimate.mean is None:
        return ABSENT
    partly = "" if estimate.exists == seeds else f" ({estimate.exists}/{seeds})"
    return show(estimate.mean) + partly


def number_text(value: float | None, digits: int) -> str:
    """A number, or a dash where it does not apply."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def _interval(estimate: Estimate, show: Callable[[float], str], seeds: int) -> Text:
    return _above(mean_text(estimate, show, seeds), interval_text(estimate, show))


def _above(text: str, remark: str) -> Text:
    """A cell with a remark below what it says, if there is one."""
    return Text.assemble(text, "\n", (remark, "dim")) if remark else Text(text)


def _plain_cells(row: Row) -> list[str]:
    means = row.means
    seconds = ("fit_seconds", "predict_seconds", "solve_seconds")
    return [
        f"{number_text(means['brier'], 3)}\n{number_text(means['ece'], 3)}",
        f"{number_text(means['igd'], 3)}\n{number_text(means['spread'], 2)}",
        " ".join(number_text(means[name], 2) for name in seconds),
    ]


def _cells(figures: Figures) -> list[str]:
    seconds = (figures.fit_seconds, figures.predict_seconds, figures.solve_seconds)
    savings = figures.savings_at_parity
    return [
        f"{figures.auc:.4f}",
        number_text(figures.gap_closed, 3),
        ABSENT if savings is None else _share(savings),
        f"{figures.max_accuracy:.3f}",
        _deployed(figures.deployed),
        number_text(figures.brier, 3),
        number_text(figures.ece, 3),
        number_text(figures.igd, 3),
        number_text(figures.spread, 2),
        " ".join(number_text(value, 2) for value in seconds),
    ]


def _deployed(deployed: Deployed | None) -> str:
    if deployed is None:
        return ABSENT
    return f"{_signed(deployed.accuracy_delta)} ×{deployed.cost_ratio:.2f}"


def _style(name: str) -> str | None:
    return "cyan" if name == "optllm" else None
