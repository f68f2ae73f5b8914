import math

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report.chart import (
    FLOOR,
    HEIGHT,
    LEFT,
    WIDTH,
    column_chart,
    line_chart,
    nice_ticks,
    thin,
)

values = st.floats(-1e9, 1e9, allow_subnormal=False)


@settings(deadline=None)
@given(values, values)
def test_ticks_are_few_round_and_span_the_range(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * max(1e-6, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=600))
def test_a_curve_stays_inside_its_chart(curve: list[float]) -> None:
    chart = line_chart("loss", list(enumerate(curve)))
    if chart is None:
        assert not any(math.isfinite(value) for value in curve)
        return
    assert chart.curve
    for x, y in chart.curve:
        assert LEFT <= x <= WIDTH
        assert 0 <= y <= HEIGHT


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500), st.integers(1, 100))
def test_thinning_keeps_the_range_and_the_order(curve: list[float], most: int) -> None:
    thinned = thin(list(enumerate(curve)), most)
    assert len(thinned) == min(len(curve), most)
    steps = [step for step, _ in thinned]
    assert steps == sorted(set(steps))
    assert all(min(curve) - 1e-9 <= value <= max(curve) + 1e-9 for _, value in thinned)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=80))
def test_columns_are_as_high_as_their_numbers_and_stay_inside(numbers: list[int]) -> None:
    chart = column_chart("words", [str(i) for i in range(len(numbers))], numbers)
    shown = [number for number in numbers if number]
    if chart is None:
        assert not shown
        return
    assert len(chart.columns) == len(shown)
    tallest = max(column.height for column in chart.columns)
    for column, number in zip(chart.columns, shown, strict=True):
        assert column.x >= LEFT and column.x + column.width <= WIDTH
        assert column.y >= 0 and column.y + column.height <= HEIGHT
        assert abs(column.y + column.height - FLOOR) < 0.11, "it stands on the axis"
        assert abs(column.height / tallest - number / max(shown)) < 0.01


def test_a_description_says_what_the_chart_shows() -> None:
    curve = line_chart("loss", [(0, math.nan), (10, 5.0), (20, 1.25)])
    assert curve is not None
    assert curve.description == "loss: from 5 at step 10 to 1.25 at step 20"
    columns = column_chart("words", ["a", "b", "c"], [1, 1200, 3])
    assert columns is not None
    assert columns.description == "words: most at b, from a to c"
    assert [column.text for column in columns.columns] == ["a: 1", "b: 1,200", "c: 3"]
