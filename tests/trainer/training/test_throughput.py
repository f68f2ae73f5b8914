"""Throughput: rates of the interval, waiting as its share, the worst rank in the log."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.support.gradients import tiny_config
from tests.support.ranks import start_ranks
from tests.support.training_runs import command, is_rank, make_run, meeting_point
from trainer import distributed
from trainer.training import loop, session
from trainer.training.throughput import ThroughputMeter


def test_a_lap_measures_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    config = tiny_config("unused", captions_per_batch=4, images_per_caption=2)
    meter = ThroughputMeter(config, torch.device("cpu"), step=10)
    with meter.waiting():
        now += 1.0
    now += 3.0
    throughput = meter.measure(step=15)
    assert throughput.images_per_s == pytest.approx(5 * 8 / 4.0)
    assert throughput.images_per_s_per_device == throughput.images_per_s
    assert throughput.waiting == pytest.approx(0.25)
    assert throughput.utilisation is None
    assert 0.01 < throughput.memory_gib < 100
    assert "mfu" not in throughput.values()
    now += 2.0
    throughput = meter.measure(step=16)
    assert throughput.images_per_s == pytest.approx(4.0)
    assert throughput.waiting == 0.0
    now += 2.0
    with meter.paused():
        now += 60.0
    assert meter.measure(step=17).images_per_s == pytest.approx(4.0), "pauses do not count"


def test_online_knn_does_not_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def look(_: object) -> float:
        now[0] += 60.0
        return 50.0

    config = tiny_config("unused", captions_per_batch=4, images_per_caption=2)
    meter, training = ThroughputMeter(config, torch.device("cpu"), step=0), Mock(step=1)
    now[0] += 2.0
    values = loop._measure(training, meter, Mock(accuracy=look))
    assert (values["knn"], values["images_per_s"]) == (50.0, 4.0)


def test_utilisation_is_work_over_time_and_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several devices it is the utilisation of each one."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    config = tiny_config("unused", captions_per_batch=4, images_per_caption=2)
    meter = ThroughputMeter(config, torch.device("cpu"), step=0)
    meter._peak = 1e9
    now = 2.0
    throughput = meter.measure(step=1)
    assert (throughput.images_per_s, throughput.images_per_s_per_device) == (4.0, 2.0)
    assert throughput.utilisation == pytest.approx(2.0 * meter._flops / 1e9)


def logged(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "train" / "metrics.jsonl").open()]


def _rank(rank: int, port: int, run: str) -> None:
    """Train as one of two ranks; rank 1 waits for data and needs more memory."""
    stream = session.rank_batches

    def slow(*arguments: Any) -> Iterator[Any]:
        for batch in stream(*arguments):
            time.sleep(0.5)
            yield batch

    is_rank(rank, port)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(loop, "rank_batches", slow)
        patch.setattr(ThroughputMeter, "_memory", lambda _: (3 + rank) << 30)
        assert command(Path(run), "num_threads=1", "model.drop_path=0") == 0


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_the_log_of_two_ranks_tells_of_both(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name) for name in ("one", "two"))
    assert command(one, "model.drop_path=0") == 0
    point = meeting_point()
    start_ranks(_rank, 2, point.port, str(two))
    assert all(waiting > 0.3 for waiting in logged(two, "waiting"))
    assert logged(two, "memory_gib") == [4.0] * 4
    assert logged(two, "feature_std") == pytest.approx(logged(one, "feature_std"), rel=1e-3)
