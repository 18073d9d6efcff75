"""A comparison as one self-contained HTML page: figure, table and what the figures mean.

No script, no font, no address: the page opens from a disk in ten years.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from optllm_router._errors import ConfigurationError
from optllm_router.evaluation.figures import check_drawing, front_svg, fronts_of
from optllm_router.evaluation.tables import (
    INTERVALS,
    best_single_texts,
    comparison_caption,
    interval_text,
    mean_text,
    number_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from optllm_router.evaluation.bootstrap import Estimate
    from optllm_router.evaluation.comparison import Comparison, Row

__all__ = ["check_report", "report_html", "write_report"]

_MEANINGS = {
    "AUC": "mean true accuracy over 300 equally spaced budgets, from the all-cheapest allocation "
    "to the cost of the best single model",
    "gap closed": "how far the AUC is on the way from the static mixture (0: base rates alone, "
    "blind to the query) to the oracle (1: every true score known)",
    "saved at parity": "share of the best single model's cost that is saved at its accuracy; "
    "a dash when its accuracy is not reached",
    "max accuracy": "highest true accuracy of any point of the front",
    "match_best": "what the policy of that name picks without seeing a test label: its accuracy "
    "minus the best single model's, and its cost over the best single model's",
    "Brier, ECE": "mean squared error of the predicted probabilities, and their expected "
    "calibration error over 15 bins",
    "IGD, spread": "mean distance from the oracle's front to this one, and Deb's measure of "
    "uneven spread, in (USD, accuracy)",
    "seconds": "to fit, to predict the whole test set, to solve for the whole front",
}
_PLAIN = (
    ("Brier", "brier", 3),
    ("ECE", "ece", 3),
    ("IGD", "igd", 3),
    ("spread", "spread", 2),
    ("fit s", "fit_seconds", 2),
    ("predict s", "predict_seconds", 2),
    ("solve s", "solve_seconds", 3),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 1rem 0; max-width: 56rem; } svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: #555; padding-top: .5rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; vertical-align: top; }
th:first-child { text-align: left; } tr.ours { background: #eef6fc; }
small { display: block; color: #666; font-weight: normal; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.5rem; }
"""


def check_report(path: Path) -> None:
    """Find out before long work whether :func:`write_report` will be able to write.

    Raises:
        ConfigurationError: when the file does not end in ``.html``, its folder does not exist, or
            matplotlib, which draws the figure, is absent.
    """
    if path.suffix != ".html":
        raise ConfigurationError(f"report {str(path)!r} must end in .html")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}"
        )
    check_drawing()


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write :func:`report_html` to a file.

    Raises:
        ConfigurationError: when the file does not end in ``.html`` or cannot be written, or
            matplotlib, which draws the figure, is absent.
    """
    path = Path(path)
    check_report(path)
    page = report_html(comparison)
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {str(path)!r} ({error.strerror}); choose a folder that exists and is "
            "writable"
        ) from error
    return path


def report_html(comparison: Comparison) -> str:
    """The page as text."""
    title = f"Routing {comparison.dataset}"
    meanings = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _MEANINGS.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(_setting(comparison))}</p>"
        f"<h2>Accuracy against cost</h2>{_figure(comparison)}"
        f'<h2>Methods</h2><div class="scroll">{_table(comparison)}</div>'
        f"<h2>What the figures mean</h2><dl>{meanings}</dl></body></html>\n"
    )


def _setting(comparison: Comparison) -> str:
    setting = comparison.setting
    seeds = ", ".join(map(str, comparison.best_single))
    return (
        f"{comparison.n_train:,} labelled queries ({100 * setting.labels:g} % of all), "
        f"{comparison.n_test:,} to test on; seeds {seeds}; allocated with {setting.cost} costs, "
        f"paid with the recorded ones; match_best with confidence {setting.confidence:g}."
    )


def _figure(comparison: Comparison) -> str:
    seed, best = next(iter(comparison.best_single.items()))
    series, points = fronts_of(comparison.curves, comparison.singles, best)
    picture = front_svg(series, points, cost_label="cost of all queries, USD")
    caption = (
        f"Seed {seed}. Curves are fronts as they were paid and came true; circles are single "
        f"models, the star is the best of them, {best.model}."
    )
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(comparison: Comparison) -> str:
    headings = [heading for heading, _ in INTERVALS.values()] + [name for name, *_ in _PLAIN]
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    rows = "".join(
        _row(name, row, len(comparison.best_single)) for name, row in comparison.rows.items()
    )
    best = "".join(f"<td>{escape(text)}</td>" for text in best_single_texts(comparison))
    rows += (
        '<tr><th scope="row">best single<small>the best model, chosen in hindsight</small></th>'
        f"{best}{'<td></td>' * len(_PLAIN)}</tr>"
    )
    return (
        f"<table><caption>{escape(comparison_caption(comparison))}</caption>"
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(name: str, row: Row, seeds: int) -> str:
    about = row.about
    if len(row.seeds) < seeds:
        about += f" ({len(row.seeds)} of {seeds} seeds finished)"
    cells = [
        _estimate(row.estimates[figure], show, len(row.seeds))
        for figure, (_, show) in INTERVALS.items()
    ]
    cells += [f"<td>{number_text(row.means[figure], digits)}</td>" for _, figure, digits in _PLAIN]
    ours = ' class="ours"' if name == "optllm" else ""
    heading = f'<th scope="row">{escape(name)}<small>{escape(about)}</small></th>'
    return f"<tr{ours}>{heading}{''.join(cells)}</tr>"


def _estimate(estimate: Estimate, show: Callable[[float], str], seeds: int) -> str:
    interval = interval_text(estimate, show)
    below = f"<small>{escape(interval)}</small>" if interval else ""
    return f"<td>{escape(mean_text(estimate, show, seeds))}{below}</td>"
