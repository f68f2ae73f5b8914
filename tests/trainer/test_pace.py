"""Rates are those of the interval, waiting is a share of it."""

import time

import pytest
import torch

from tests.trainer.gradients import tiny_config
from trainer.pace import Clock


def test_a_lap_measures_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    config = tiny_config("unused", captions_per_batch=4, images_per_caption=2)
    clock = Clock(config, torch.device("cpu"), step=10)
    with clock.waiting():
        now += 1.0
    now += 3.0
    pace = clock.lap(step=15)
    assert pace.images_per_s == pytest.approx(5 * 8 / 4.0)
    assert pace.images_per_s_per_device == pace.images_per_s
    assert pace.waiting == pytest.approx(0.25)
    assert pace.utilisation is None
    assert 0.01 < pace.memory_gib < 100
    assert "mfu" not in pace.values()
    now += 2.0
    pace = clock.lap(step=16)
    assert pace.images_per_s == pytest.approx(4.0)
    assert pace.waiting == 0.0
    now += 2.0
    with clock.paused():
        now += 60.0
    assert clock.lap(step=17).images_per_s == pytest.approx(4.0), "without what is not training"


def test_utilisation_is_work_over_time_and_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    config = tiny_config("unused", captions_per_batch=4, images_per_caption=2)
    clock = Clock(config, torch.device("cpu"), step=0)
    clock._peak = 1e9
    now = 2.0
    utilisation = clock.lap(step=1).utilisation
    assert utilisation == pytest.approx(8 * clock._flops / 2.0 / 1e9)
