"""Online kNN: a sample of a data set, the protocol of the score sheet, an unchanged encoder."""

from pathlib import Path

import pytest
import torch

from tests.support.evaluation import save_pictures
from tests.support.gradients import tiny_config
from trainer.models.vit import build_encoder
from trainer.monitor.online_knn import OnlineKNN
from transforms.core.errors import ConfigError


@pytest.fixture
def knn(tmp_path: Path) -> OnlineKNN:
    pictures = save_pictures(tmp_path / "colours", {"train": 10, "test": 8})
    model = tiny_config("unused").model
    return OnlineKNN(f"folder:{pictures}", 12, model, torch.device("cpu"))


def test_pictures_are_sampled_over_the_whole_split(knn: OnlineKNN) -> None:
    assert len(knn.dataset.train) == 12
    for name, split in (("train", knn.dataset.train), ("test", knn.dataset.test)):
        assert all(f"/{name}/" in str(picture) for picture in split.pictures)
    assert set(knn.dataset.train.labels) == set(range(len(knn.dataset.classes)))


def test_accuracy_is_a_percentage_and_the_mode_stays(knn: OnlineKNN) -> None:
    encoder = build_encoder(tiny_config("unused").model, seed=0, drop_path=0.5)
    encoder.train()
    first = knn.accuracy(encoder)
    assert 0.0 <= first <= 100.0
    assert encoder.training
    assert knn.accuracy(encoder) == first, "without drop path"
    encoder.eval()
    knn.accuracy(encoder)
    assert not encoder.training


def test_an_encoder_that_sees_nothing_is_at_chance(knn: OnlineKNN) -> None:
    encoder = build_encoder(tiny_config("unused").model, seed=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert knn.accuracy(encoder) == pytest.approx(100 / len(knn.dataset.classes), abs=1)


def test_an_unknown_data_set_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'pictures'"):
        OnlineKNN("pictures", 10, tiny_config("unused").model, torch.device("cpu"))
