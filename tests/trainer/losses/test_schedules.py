"""End points and shapes of the schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.losses import schedules


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [schedules.learning_rate(step, 100, 20, 2e-3) for step in range(101)]
    assert rates[0] == 0.0
    assert rates[10] == pytest.approx(1e-3)
    assert rates[20] == max(rates) == 2e-3
    assert rates[40] == pytest.approx(2e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[60] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 10])
def test_learning_rate_is_defined_for_any_warmup(warmup: int) -> None:
    assert schedules.learning_rate(warmup, 10, warmup, 1.0) == 1.0


def test_weight_decay_and_momentum_are_cosines_between_their_ends() -> None:
    assert schedules.weight_decay(0, 50) == pytest.approx(0.04)
    assert schedules.weight_decay(25, 50) == pytest.approx(0.12)
    assert schedules.weight_decay(50, 50) == pytest.approx(0.2)
    assert schedules.ema_momentum(0, 50) == pytest.approx(0.994)
    assert schedules.ema_momentum(25, 50) == pytest.approx(0.997)
    assert schedules.ema_momentum(50, 50) == 1.0


def test_teacher_temperature_is_linear_then_constant() -> None:
    assert schedules.teacher_temperature(0) == pytest.approx(0.04)
    assert schedules.teacher_temperature(2000) == pytest.approx(0.055)
    assert schedules.teacher_temperature(4000) == pytest.approx(0.07)
    assert schedules.teacher_temperature(99_000) == pytest.approx(0.07)
    assert schedules.teacher_temperature(0, num_steps=0) == pytest.approx(0.07)


@given(step=st.integers(0, 1000), total=st.integers(1, 1000))
def test_schedules_stay_between_their_ends(step: int, total: int) -> None:
    assert 0.994 <= schedules.ema_momentum(step, total) <= 1.0
    assert 0.04 <= schedules.weight_decay(step, total) <= 0.2 + 1e-12
