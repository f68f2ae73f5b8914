"""CLIP's learned temperature: it has a bound and can leave it again."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gradients import tiny_config
from tests.support.image_shards import write_images
from tests.support.ranks import run_on_ranks
from trainer.config import TrainConfig
from trainer.execution import unsharded
from trainer.objectives.clip import LOWEST_TEMPERATURE, ImageText
from trainer.training.session import open_samples, rank_batches
from trainer.training.step import Training

BOUND = -math.log(LOWEST_TEMPERATURE)
CLIP: dict[str, Any] = {
    "crops": {"num_local": 0},
    "objective": {
        "kind": "clip",
        "text": {"context": 24, "width": 8, "depth": 2, "num_heads": 2, "out": 6},
    },
    "optim": {"learning_rate": 0.1, "warmup": 0},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path


def scales(config: TrainConfig) -> list[float]:
    """Return the log of 1 / temperature after each of two steps that start far beyond the bound."""
    training = Training(config, torch.device("cpu"))
    assert isinstance(training.student, ImageText)
    with torch.no_grad():
        training.student.log_scale.fill_(BOUND + 1.0)
    found = []
    for batch in rank_batches(config, open_samples(config), range(2)):
        training.update(batch)
        found.append(float(unsharded(training.student.log_scale.detach())))
    return found


def test_the_temperature_is_bounded_and_comes_back_from_the_bound(run: Path) -> None:
    """The loss of untrained networks increases the temperature."""
    first, second = scales(tiny_config(run, **CLIP))
    assert first == pytest.approx(BOUND)
    assert second < BOUND - 0.01


def scales_of_shardings(run: str) -> list[list[float]]:
    executions = [{"sharding": sharding} for sharding in ("replicate", "shard")]
    return [scales(tiny_config(run, **CLIP, execution=execution)) for execution in executions]


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_so_it_is_on_every_rank_spread_or_not(run: Path) -> None:
    ranks = run_on_ranks(scales_of_shardings, 2, run, str(run))
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 2
    for first, second in ranks[0]:
        assert first == pytest.approx(BOUND)
        assert second < BOUND - 0.01
