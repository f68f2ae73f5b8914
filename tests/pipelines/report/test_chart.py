import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report.chart import HEIGHT, LEFT, WIDTH, column_chart, line_chart, nice_ticks, thin

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
    drawn = re.search(r'points="([^"]*)"', chart)
    if drawn is None:
        assert not any(math.isfinite(value) for value in curve)
        return
    for point in drawn[1].split():
        x, y = map(float, point.split(","))
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
    drawn = re.findall(r'x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', chart)
    columns = [tuple(map(float, column)) for column in drawn]
    shown = [number for number in numbers if number]
    assert len(columns) == len(shown)
    for x, y, width, height in columns:
        assert x >= LEFT and x + width <= WIDTH and y >= 0 and y + height <= HEIGHT
    for (*_, height), number in zip(columns, shown, strict=True):
        tallest = max(column[3] for column in columns)
        assert abs(height / tallest - number / max(shown)) < 0.01
