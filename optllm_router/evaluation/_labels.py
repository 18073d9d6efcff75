"""Labels beside points, moved until none covers another label, a point or a curve."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.figures import Point

_SIZE = 8.5
_INK = "#222222"
# Distances to try, in points of 1/72 inch; from the second on a thin line leads to the point.
_DISTANCES = (7.0, 15.0, 25.0, 37.0, 52.0)
_ANGLES = np.deg2rad([0, 180, -45, 45, -135, 135, -90, 90, -20, 20, 160, 200])
_MARKER = 5.0
_STAR = 3.0  # how much further a star reaches than a circle
# Costs of covering something, in points of distance that one would rather move away.
_COVERS_LABEL, _COVERS_MARKER, _LEAVES_AXES, _COVERS_VERTEX = 1000.0, 300.0, 1000.0, 12.0


def place_labels(
    figure: Any, axes: Any, points: Sequence[Point], cap_usd: float | None = None
) -> None:
    """Write the label of every point, and of the cap line, where it covers least.

    Greedy, dearest points first (they tend to be the crowded end): each label takes the
    position with the lowest penalty given those already placed. Deterministic.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is placed now must stay where it is
    obstacles = _Obstacles(axes, points)
    if cap_usd is not None:
        obstacles.add(_box(figure, _label_cap(axes, cap_usd)))
    for point in sorted(points, key=lambda one: (-one.cost, one.label)):
        _place(figure, axes, point, obstacles)


def _label_cap(axes: Any, cap_usd: float) -> Any:
    """At the upper end of the cap's line, on the side with more room."""
    x, _ = axes.transAxes.inverted().transform(axes.transData.transform((cap_usd, 0.0)))
    side = -1 if x > 0.5 else 1
    return axes.annotate(
        f"cap {cap_usd:.4g} USD",
        (cap_usd, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 * side, -2),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="top",
        fontsize=_SIZE,
        color=_INK,
    )


def _place(figure: Any, axes: Any, point: Point, obstacles: _Obstacles) -> None:
    text = axes.annotate(
        point.label,
        (point.cost, point.success),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=_SIZE,
        fontweight="bold" if point.marked else "normal",
        color=_INK,
        zorder=6,
    )
    size = _size(figure, text)
    anchor = axes.transData.transform((point.cost, point.success))
    pixel = figure.dpi / 72.0
    best: tuple[float, float, FloatArray] | None = None
    room = _STAR if point.marked else 0.0
    for distance, offset in _positions(size / pixel, room):
        corner = anchor + offset * pixel
        box = np.concatenate([corner, corner + size])
        penalty = distance + obstacles.penalty(box, own=anchor)
        if best is None or penalty < best[0]:
            best = (penalty, distance, offset)
    assert best is not None  # there are always positions
    _, distance, offset = best
    text.set_position(tuple(offset))
    corner = anchor + offset * pixel
    obstacles.add(np.concatenate([corner, corner + size]))
    if distance > _DISTANCES[0]:
        _lead(axes, anchor, corner, size)


def _lead(axes: Any, anchor: FloatArray, corner: FloatArray, size: FloatArray) -> None:
    """A thin line from the point to the nearest place of its label."""
    nearest = np.clip(anchor, corner, corner + size)
    ends = axes.transData.inverted().transform(np.array([anchor, nearest]))
    axes.plot(
        ends[:, 0], ends[:, 1], color="#999999", linewidth=0.6, zorder=3, scalex=False, scaley=False
    )


def _positions(size: FloatArray, room: float) -> Iterator[tuple[float, FloatArray]]:
    """Lower left corners of the label relative to its point, nearest first."""
    for distance in _DISTANCES:
        away = distance + room
        for angle in _ANGLES:
            centre = np.array([np.cos(angle), np.sin(angle)]) * (away + size / 2)
            yield distance, centre - size / 2


class _Obstacles:
    """What is already on the axes, in pixels."""

    def __init__(self, axes: Any, points: Sequence[Point]) -> None:
        self._axes = np.array(axes.bbox.extents)
        self._labels: list[FloatArray] = []
        markers = [(point.cost, point.success) for point in points]
        self._markers = axes.transData.transform(np.array(markers, dtype=np.float64).reshape(-1, 2))
        paths = [
            line.get_transform().transform(line.get_xydata())
            for line in axes.lines
            if line.get_linestyle() != "None"
        ]
        self._vertices = np.concatenate([np.empty((0, 2)), *(_dense(path) for path in paths)])

    def add(self, box: FloatArray) -> None:
        self._labels.append(box)

    def penalty(self, box: FloatArray, *, own: FloatArray) -> float:
        left, bottom, right, top = box
        a_left, a_bottom, a_right, a_top = self._axes
        penalty = 0.0
        if left < a_left or bottom < a_bottom or right > a_right or top > a_top:
            penalty += _LEAVES_AXES
        for other in self._labels:
            if left < other[2] and other[0] < right and bottom < other[3] and other[1] < top:
                penalty += _COVERS_LABEL
        others = self._markers[(self._markers != own).any(axis=1)]
        penalty += _COVERS_MARKER * _inside(others, box, margin=2 * _MARKER)
        penalty += _COVERS_VERTEX * min(_inside(self._vertices, box, margin=2.0), 8)
        return penalty


def _inside(xy: FloatArray, box: FloatArray, *, margin: float) -> int:
    left, bottom, right, top = box + np.array([-margin, -margin, margin, margin])
    x, y = xy[:, 0], xy[:, 1]
    return int(((x > left) & (x < right) & (y > bottom) & (y < top)).sum())


def _dense(path: FloatArray, step: float = 6.0) -> FloatArray:
    """Points every few pixels along a path, so that long straight pieces count too."""
    pieces = [path[:1]]
    for start, end in pairwise(path):
        count = int(np.hypot(*(end - start)) // step) + 1
        pieces.append(start + (end - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(pieces)


def _size(figure: Any, text: Any) -> FloatArray:
    box = _box(figure, text)
    return box[2:] - box[:2]


def _box(figure: Any, text: Any) -> FloatArray:
    extent = text.get_window_extent(figure.canvas.get_renderer())
    return np.array(extent.extents, dtype=np.float64)
