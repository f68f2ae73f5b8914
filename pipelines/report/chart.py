"""Geometry of the page's charts: a curve, or the columns of a histogram.

Coordinates are in the units of the SVG's view box, `WIDTH` x `HEIGHT`, with y growing downwards.
The template `chart.html` draws them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.formats import count, significant

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24
FLOOR = HEIGHT - BOTTOM
MAX_POINTS = 240
NUM_LABELS = 8
"""Columns of a histogram that have a label, about."""

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class GridLine:
    """A horizontal line with the value that it marks."""

    y: float
    text: str


@dataclass(frozen=True)
class AxisLabel:
    """A text below the chart."""

    x: float
    anchor: str
    """SVG `text-anchor`: start, middle or end."""
    text: str


@dataclass(frozen=True)
class Column:
    """A column of a histogram."""

    x: float
    y: float
    width: float
    height: float
    text: str
    """Label and count, shown on hover."""


@dataclass(frozen=True)
class Chart:
    """Everything that is drawn."""

    description: str
    """Content of the chart in words, for screen readers."""
    grid: Sequence[GridLine]
    labels: Sequence[AxisLabel]
    curve: Sequence[tuple[float, float]] = ()
    """(x, y) of the curve, from left to right."""
    columns: Sequence[Column] = ()


def line_chart(name: str, points: Points) -> Chart | None:
    """Return the chart of a value over the steps; None without a finite value.

    Args:
        name: Name of the value, for the description.
        points: (step, value), ascending; values that are not finite are left out.
    """
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return None
    shown = thin(finite, MAX_POINTS)
    ticks = nice_ticks(min(y for _, y in shown), max(y for _, y in shown))
    (first, start), (last, end) = finite[0], finite[-1]

    def x_of(step: float) -> float:
        return _rounded(LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT))

    def y_of(value: float) -> float:
        return _rounded(FLOOR - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (FLOOR - TOP))

    anchors = {first: "start", last: "end"}
    return Chart(
        f"{name}: from {significant(start)} at step {first} to {significant(end)} at step {last}",
        grid=[GridLine(y_of(tick), significant(tick)) for tick in ticks],
        labels=[AxisLabel(x_of(step), anchor, str(step)) for step, anchor in anchors.items()],
        curve=[(x_of(step), y_of(value)) for step, value in shown],
    )


def column_chart(name: str, labels: Sequence[str], numbers: Sequence[int]) -> Chart | None:
    """Return a histogram; None if every number is 0.

    Args:
        name: Name of what is counted, for the description.
        labels: [N] labels of the columns; about `NUM_LABELS` of them are written.
        numbers: [N] counts.
    """
    if not any(numbers):
        return None
    ticks = nice_ticks(0, max(numbers))
    step = (WIDTH - LEFT - RIGHT) / len(numbers)
    scale = (FLOOR - TOP) / ticks[-1]
    peak = labels[max(range(len(numbers)), key=numbers.__getitem__)]
    every = max(1, len(labels) // NUM_LABELS)
    return Chart(
        f"{name}: most at {peak}, from {labels[0]} to {labels[-1]}",
        grid=[GridLine(_rounded(FLOOR - tick * scale), significant(tick)) for tick in ticks],
        labels=[
            AxisLabel(_rounded(LEFT + (i + 0.5) * step), "middle", labels[i])
            for i in range(0, len(labels), every)
        ],
        columns=[
            Column(
                x=_rounded(LEFT + i * step),
                y=_rounded(FLOOR - number * scale),
                width=_rounded(max(step - 1, 0.5)),
                height=_rounded(number * scale),
                text=f"{label}: {count(number)}",
            )
            for i, (label, number) in enumerate(zip(labels, numbers, strict=True))
            if number
        ],
    )


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of a run of neighbours."""
    if len(points) <= most:
        return [(float(step), value) for step, value in points]
    thinned = []
    for number in range(most):
        part = points[number * len(points) // most : (number + 1) * len(points) // most]
        steps, values = zip(*part, strict=True)
        thinned.append((sum(steps) / len(part), sum(values) / len(part)))
    return thinned


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers at equal distances that span a range: two to seven of them."""
    # A constant must not be magnified into its rounding errors.
    spread = max(high - low, 1e-6 * max(abs(low), abs(high)))
    if spread < 1e-12:
        spread = 1.0
    unit = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if spread / (unit * factor) <= 4.0)
    start, stop = math.floor(low / step), math.ceil(high / step)
    if start == stop:
        stop += 1
    return [float(f"{number * step:.10g}") for number in range(start, stop + 1)]


def _rounded(coordinate: float) -> float:
    return round(coordinate, 1)
