import io
import sys
from itertools import combinations

import numpy as np
import pytest

from optllm_router._errors import ConfigurationError
from optllm_router.evaluation import (
    Point,
    Series,
    draw_evaluation,
    draw_front,
    evaluate,
    evaluation_table,
    load_recorded,
)
from optllm_router.evaluation._labels import place_labels
from optllm_router.evaluation.figures import fronts_of

CURVES = [
    Series("ours", np.linspace(1, 3, 5000), np.linspace(0.4, 0.8, 5000)),
    Series("oracle", [1, 2], [0.4, 0.9], reference=True),
]
CROWD = [Point(f"model-{i}", 1 + i * 0.02, 0.5 + (i % 3) * 0.004) for i in range(8)]


def test_the_ending_decides_the_format(tmp_path):
    png = draw_front(tmp_path / "front.png", CURVES, CROWD, cap_usd=2.0, title="a title")
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = draw_front(tmp_path / "front.svg", CURVES, CROWD)
    assert "<svg" in svg.read_text("utf-8")
    assert svg.stat().st_size < 300_000  # thousands of points are not thousands of vertices


def test_names_are_written_as_they_are(tmp_path):
    odd = [Point("a$b$_{c", 1.5, 0.6), Point("\\frac", 1.2, 0.5)]
    one = [Series("only one point", [2.0], [0.7])]
    assert draw_front(tmp_path / "odd.svg", one, odd, title="100 $ of $x_").is_file()


def test_the_same_data_gives_the_same_file(tmp_path):
    first = draw_front(tmp_path / "one.svg", CURVES, CROWD, cap_usd=2.0)
    second = draw_front(tmp_path / "two.svg", CURVES, CROWD, cap_usd=2.0)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_of_a_crowd_do_not_overlap_and_stay_inside(scale):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale=scale)
    axes.plot([1, 3], [0.4, 0.8])
    place_labels(figure, axes, CROWD, cap_usd=2.5)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == len(CROWD) + 1
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    left, bottom, right, top = axes.bbox.extents
    for box in boxes:
        assert left <= box.x0
        assert box.x1 <= right + 1
        assert bottom <= box.y0
        assert box.y1 <= top + 1


def test_a_run_is_drawn_with_every_method_and_model(toy_folder, tmp_path):
    run = evaluate(load_recorded(toy_folder), labels=0, methods=())
    curves = {name: result.curve for name, result in run.methods.items()}
    series, points = fronts_of(curves, run.singles, run.best_single)
    assert [(one.label, one.reference) for one in series] == [("static", False), ("oracle", True)]
    assert points == [Point("cheap", 4.0, 0.25), Point("dear", 12.0, 0.75, marked=True)]
    assert draw_evaluation(run, tmp_path / "run.svg").is_file()


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'optllm-router\[figures\]'"):
        draw_front(tmp_path / "front.svg", CURVES)


@pytest.mark.parametrize(
    ("name", "series", "says"),
    [
        ("front.gif", CURVES, r"must end in \.svg or \.png"),
        ("front.svg", [], "at least one curve or point"),
        ("front.svg", CURVES[:1] * 19, "at most 18"),
        ("nowhere/front.svg", CURVES, "there is no folder"),
    ],
)
def test_figures_that_cannot_be_drawn_are_refused(tmp_path, name, series, says):
    with pytest.raises(ConfigurationError, match=says):
        draw_front(tmp_path / name, series)


def test_the_table_shows_every_method_and_the_reference(toy_folder):
    from rich.console import Console

    run = evaluate(load_recorded(toy_folder), labels=0, methods=())
    console = Console(width=140, file=io.StringIO())
    console.print(evaluation_table(run))
    text = console.file.getvalue()
    for word in ("static", "oracle", "best single", "dear", "0.5625", "33.3%", "–"):
        assert word in text
