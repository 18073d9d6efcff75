"""Accuracy against cost, drawn: curves of methods, single models as labelled points.

Needs matplotlib, the optional extra ``figures``; it is imported when something is drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import ConfigurationError
from optllm_router.evaluation._labels import place_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.comparison import Comparison
    from optllm_router.evaluation.judge import Curve, SingleModel
    from optllm_router.evaluation.protocol import Evaluation

__all__ = [
    "Point",
    "Series",
    "draw_comparison",
    "draw_evaluation",
    "draw_front",
    "front_svg",
    "fronts_of",
]

# Okabe and Ito (2008), "Color universal design": told apart with any kind of colour vision. The
# dashes differ too, for prints in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", (0, (6, 2)), (0, (4, 1.5, 1, 1.5)), (0, (2, 1.5)), (0, (8, 2, 2, 2)), (0, (1, 1)))
# After six curves a colour returns with another dash, and thinner.
_STYLES = tuple(
    (_COLOURS[i], _DASHES[(i + 2 * cycle) % 6], width)
    for cycle, width in enumerate((2.0, 1.4, 0.9))
    for i in range(6)
)
_REFERENCE = ("#777777", (0, (1, 2)), 1.6)
_INK = "#222222"
_MOST_VERTICES = 600
_LOGARITHMIC_FROM = 30.0


@dataclass(frozen=True, eq=False)
class Series:
    """A curve: one front.

    Attributes:
        label: in the legend.
        cost: shape (m,), USD.
        success: shape (m,), share of successes, 0..1.
        reference: drawn in grey, as a bound rather than a contestant.
    """

    label: str
    cost: ArrayLike
    success: ArrayLike
    reference: bool = False


@dataclass(frozen=True)
class Point:
    """One allocation, such as a single model that answers everything.

    Attributes:
        label: written beside it.
        cost: USD.
        success: share of successes, 0..1.
        marked: drawn as a star, for the one that the others are compared with.
    """

    label: str
    cost: float
    success: float
    marked: bool = False


def draw_front(
    path: str | Path,
    series: Sequence[Series],
    points: Sequence[Point] = (),
    *,
    cap_usd: float | None = None,
    title: str | None = None,
    cost_label: str = "cost, USD",
    success_label: str = "answered correctly",
) -> Path:
    """Draw success against cost.

    The cost axis is logarithmic when the points and curves span more than a factor of 30.

    Args:
        path: of the picture; its ending decides: ``.svg`` or ``.png``.
        series: curves, at most eighteen besides references; the first is drawn on top.
        points: labelled points; their labels are moved until none overlaps.
        cap_usd: a budget, drawn as a vertical line.
        title: above the picture.
        cost_label: of the horizontal axis.
        success_label: of the vertical axis.

    Raises:
        ConfigurationError: when matplotlib is absent, the ending is another, the file cannot
            be written, or there is nothing or too much to draw.
    """
    path = Path(path)
    check_figure(path)
    _check(series, points)
    labels = (title, cost_label, success_label)
    picture = _render(path.suffix[1:], series, points, cap_usd, labels)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {str(path)!r} ({error.strerror}); choose a folder that exists and is "
            "writable"
        ) from error
    return path


def check_figure(path: Path) -> None:
    """Find out before long work whether :func:`draw_front` will be able to draw.

    Raises:
        ConfigurationError: when matplotlib is absent, the ending is not .svg or .png, or the
            folder does not exist.
    """
    if path.suffix not in (".svg", ".png"):
        raise ConfigurationError(f"figure {str(path)!r} must end in .svg or .png")
    if not path.parent.is_dir():
        raise ConfigurationError(f"figure {str(path)!r}: there is no folder {str(path.parent)!r}")
    check_drawing()


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        check_drawing()
    except ConfigurationError:
        return False
    return True


def check_drawing() -> None:
    """Find out before long work whether anything can be drawn.

    Raises:
        ConfigurationError: when matplotlib is absent.
    """
    _matplotlib()


def front_svg(
    series: Sequence[Series], points: Sequence[Point] = (), *, cost_label: str = "cost, USD"
) -> str:
    """The same picture as an ``<svg>`` element to put into a page."""
    _check(series, points)
    labels = (None, cost_label, "answered correctly")
    text = _render("svg", series, points, None, labels).decode("utf-8")
    return text[text.index("<svg") :]


def fronts_of(
    curves: Mapping[str, Curve], singles: Sequence[SingleModel], best: SingleModel
) -> tuple[list[Series], list[Point]]:
    """Series and points of evaluated methods: the oracle as a bound, every single model."""
    series = [
        Series(name, curve.cost, curve.accuracy, reference=name == "oracle")
        for name, curve in curves.items()
    ]
    points = [
        Point(one.model, one.cost_usd, one.accuracy, marked=one.model == best.model)
        for one in singles
    ]
    return series, points


def draw_evaluation(evaluation: Evaluation, path: str | Path) -> Path:
    """:func:`draw_front` of a run."""
    curves = {name: result.curve for name, result in evaluation.methods.items()}
    series, points = fronts_of(curves, evaluation.singles, evaluation.best_single)
    split = evaluation.split
    title = (
        f"{evaluation.dataset}: {len(split.test):,} queries, "
        f"learnt from {len(split.train):,} labelled ones"
    )
    return draw_front(path, series, points, title=title, cost_label="cost of all queries, USD")


def draw_comparison(comparison: Comparison, path: str | Path) -> Path:
    """:func:`draw_front` of a comparison, on its first seed."""
    seed, best = next(iter(comparison.best_single.items()))
    series, points = fronts_of(comparison.curves, comparison.singles, best)
    title = (
        f"{comparison.dataset}: {comparison.n_test:,} queries, "
        f"learnt from {comparison.n_train:,} labelled ones (seed {seed})"
    )
    return draw_front(path, series, points, title=title, cost_label="cost of all queries, USD")


def _render(
    kind: str,
    series: Sequence[Series],
    points: Sequence[Point],
    cap_usd: float | None,
    labels: tuple[str | None, str, str],
) -> bytes:
    matplotlib, new_figure = _matplotlib()
    settings = {
        "font.size": 10.0,
        "svg.hashsalt": "optllm_router",
        "text.color": _INK,
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    }
    with matplotlib.rc_context(settings):
        figure = new_figure(figsize=(8.0, 5.2), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        _dress(axes, *labels)
        if _spans_decades(series, points):
            axes.set_xscale("log")
            _plain_dollars(axes)
        _draw_curves(axes, series)
        if cap_usd is not None:
            axes.axvline(cap_usd, color=_INK, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
        _draw_points(axes, points)
        _legend(figure, axes)
        place_labels(figure, axes, points, cap_usd)
        buffer = io.BytesIO()
        # Without a date the same data gives the same file.
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _check(series: Sequence[Series], points: Sequence[Point]) -> None:
    if not series and not points:
        raise ConfigurationError("a figure needs at least one curve or point")
    curves = sum(not one.reference for one in series)
    if curves > len(_STYLES):
        raise ConfigurationError(
            f"{curves} curves cannot be told apart; draw at most {len(_STYLES)} at once"
        )


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "figures need matplotlib: pip install 'optllm-router[figures]'"
        ) from error

    def new_figure(**settings: Any) -> Any:
        # Without pyplot: no global state and no window, whatever backend is configured.
        figure = Figure(**settings)
        FigureCanvasAgg(figure)
        return figure

    return matplotlib, new_figure


def _dress(axes: Any, title: str | None, cost_label: str, success_label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_xlabel(cost_label)
    axes.set_ylabel(success_label)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.08, y=0.08)
    if title:
        axes.set_title(title, loc="left", fontsize=11)


def _spans_decades(series: Sequence[Series], points: Sequence[Point]) -> bool:
    costs = np.concatenate(
        [np.asarray(one.cost, dtype=np.float64) for one in series]
        + [np.array([point.cost for point in points])]
    )
    return bool(costs.min() > 0 and costs.max() / costs.min() > _LOGARITHMIC_FROM)


def _plain_dollars(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda usd, _: f"{usd:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_curves(axes: Any, series: Sequence[Series]) -> None:
    styles = iter(_STYLES)
    for rank, one in enumerate(series):
        colour, dash, width = _REFERENCE if one.reference else next(styles)
        cost, success = _thinned(axes, one)
        axes.plot(
            cost,
            success,
            color=colour,
            linestyle=dash,
            linewidth=width,
            marker="s" if cost.size == 1 else None,  # a single point has no line
            label=one.label,
            zorder=4 - rank / (len(series) + 1),
        )


def _thinned(axes: Any, one: Series) -> tuple[FloatArray, FloatArray]:
    """At most some hundred vertices, evenly spaced as drawn: a front has tens of thousands."""
    x, y = np.asarray(one.cost, dtype=np.float64), np.asarray(one.success, dtype=np.float64)
    if x.size <= _MOST_VERTICES:
        return x, y
    across = np.log(x) if axes.get_xscale() == "log" else x
    length = np.cumsum(np.hypot(_steps(across), _steps(y)))
    wanted = np.linspace(0.0, length[-1], _MOST_VERTICES)
    keep = np.unique(np.searchsorted(length, wanted).clip(max=x.size - 1))
    return x[keep], y[keep]


def _steps(values: FloatArray) -> FloatArray:
    span = np.ptp(values) or 1.0
    return np.diff(values, prepend=values[:1]) / span


def _draw_points(axes: Any, points: Sequence[Point]) -> None:
    for point in points:
        axes.plot(
            [point.cost],
            [point.success],
            linestyle="none",
            marker="*" if point.marked else "o",
            markersize=13 if point.marked else 5.5,
            markerfacecolor=_INK if point.marked else "white",
            markeredgecolor=_INK,
            zorder=5,
        )


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Below the axes it can cover nothing.
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, handlelength=3.2
        )
