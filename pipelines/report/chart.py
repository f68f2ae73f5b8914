"""Charts as inline SVG, drawn in the page's own colours: a curve, or columns."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24
MAX_POINTS = 240

Points = Sequence[tuple[int, float]]


def line_chart(name: str, points: Points) -> str:
    """A chart of a value over the steps.

    Args:
        name: What the value is, for people who hear the page.
        points: (step, value), ascending; values that are not finite are left out.
    """
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return '<p class="quiet">No finite values.</p>'
    shown = thin(finite, MAX_POINTS)
    ticks = nice_ticks(min(y for _, y in shown), max(y for _, y in shown))
    low, high = ticks[0], ticks[-1]
    first, last = finite[0][0], finite[-1][0]

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / max(last - first, 1)
        up = (value - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in shown))
    grid = "".join(_grid_line(tick, place(first, tick)[1]) for tick in ticks)
    steps = "".join(
        f'<text x="{place(step, low)[0]:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step}</text>'
        for step, anchor in {first: "start", last: "end"}.items()
    )
    label = f"{name}: from {finite[0][1]:.4g} at step {first} to {finite[-1][1]:.4g} at step {last}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{grid}{steps}<polyline class="curve" points="{path}"/></svg>'
    )


def column_chart(name: str, labels: Sequence[str], numbers: Sequence[int]) -> str:
    """A histogram.

    Args:
        name: What is counted, for people who hear the page.
        labels: [N] of the columns; a few of them are written.
        numbers: [N], at least 0.
    """
    if not any(numbers):
        return '<p class="quiet">Nothing was counted.</p>'
    ticks = nice_ticks(0, max(numbers))
    step = (WIDTH - LEFT - RIGHT) / len(numbers)
    scale = (HEIGHT - TOP - BOTTOM) / ticks[-1]
    floor = HEIGHT - BOTTOM
    columns = "".join(
        f'<rect class="column" x="{LEFT + i * step:.1f}" y="{floor - number * scale:.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" height="{number * scale:.1f}">'
        f"<title>{escape(label)}: {number:,}</title></rect>"
        for i, (label, number) in enumerate(zip(labels, numbers, strict=True))
        if number
    )
    every = max(1, len(labels) // 8)
    written = "".join(
        f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(labels[i])}</text>"
        for i in range(0, len(labels), every)
    )
    grid = "".join(_grid_line(tick, floor - tick * scale) for tick in ticks)
    peak = labels[max(range(len(numbers)), key=numbers.__getitem__)]
    label = f"{name}: most at {peak}, from {labels[0]} to {labels[-1]}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{grid}{written}{columns}</svg>"
    )


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a run of neighbours."""
    if len(points) <= most:
        return [(float(step), value) for step, value in points]
    thinned = []
    for number in range(most):
        part = points[number * len(points) // most : (number + 1) * len(points) // most]
        steps, values = zip(*part, strict=True)
        thinned.append((sum(steps) / len(part), sum(values) / len(part)))
    return thinned


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that span the range."""
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


def _grid_line(value: float, y: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    )
