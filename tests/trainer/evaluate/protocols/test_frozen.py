"""Protocols on frozen features: the score of several seeds, and how to add a protocol."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.evaluation import read_scores, save_job, save_pictures
from trainer.evaluate import __main__ as command
from trainer.evaluate.datasets import LabelledSet, Split
from trainer.evaluate.features import Features, FrozenFeatures
from trainer.evaluate.metrics import Metric
from trainer.evaluate.protocols import PROTOCOLS, config_class
from trainer.evaluate.protocols.base import FeatureSet
from trainer.evaluate.protocols.frozen import FrozenProtocol, Prediction, Trial, mean_score
from transforms.core.config import Config


def test_a_row_says_what_the_test_pictures_and_the_seeds_say() -> None:
    train, val, test = (
        Split((b"",) * len(labels), np.array(labels)) for labels in ([0, 0, 0], [0, 1], [0, 1, 1])
    )
    dataset = LabelledSet("own", ("cat", "dog"), "accuracy", train, val, test, "its identity")
    parts = (Features(np.zeros((len(p), 1), np.float32), p.labels) for p in (train, val, test))
    features = FeatureSet([FrozenFeatures(*parts)], ["test: 1.png"], {"untrained": 2.5})
    guesses = (np.array([0, 1, 0]), np.array([1, 1, 1]), np.array([0, 1, 1]))
    trials = [Trial(guess, {}, 1.0) for guess in guesses]
    row = mean_score("untrained", "knn", dataset, features, trials)
    assert row.values == pytest.approx([200 / 3, 200 / 3, 100])
    assert row.value == pytest.approx(700 / 9)
    assert row.spread == pytest.approx(100 / 3 / 3**0.5)
    assert row.interval is not None
    assert row.interval[0] < row.value < row.interval[1] <= 100
    assert row.chance == pytest.approx(200 / 3)
    assert (row.num_classes, row.num_train, row.num_test) == (2, 5, 3)
    assert (row.unreadable, row.features_s, row.protocol_s) == (["test: 1.png"], 2.5, 3.0)


class NearestMeanConfig(Config):
    """Settings of a toy protocol."""

    order: int = 2
    """Order of the norm."""


def nearest_mean(
    features: FrozenFeatures, _: Metric, config: NearestMeanConfig, tick: Callable[[], object]
) -> Prediction:
    """Predict the class with the nearest mean of training features."""
    values, labels = features.train.values, features.train.labels
    means = np.stack([values[labels == label].mean(axis=0) for label in np.unique(labels)])
    offsets = features.test.values[:, None] - means
    predictions = np.linalg.norm(offsets, config.order, axis=2).argmin(axis=1)
    tick()
    return predictions, {"order": config.order}


def test_a_protocol_is_a_module_and_a_registry_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = save_pictures(tmp_path / "colours", {"train": 5, "test": 4})
    run, config = save_job(tmp_path, [f"folder:{pictures}"], device="auto")
    assert command.main(["knn", str(config)]) == 0
    before = (run / "scores" / "knn-colours.json").read_bytes()

    toy = FrozenProtocol("nearest_mean", NearestMeanConfig, nearest_mean)
    protocols = {**PROTOCOLS, toy.name: toy}
    monkeypatch.setattr(command, "PROTOCOLS", protocols)
    monkeypatch.setattr(command, "config_class", lambda: config_class(protocols))
    assert command.main(["nearest_mean", str(config), "nearest_mean.order=1"]) == 0
    found = {s["encoder"]: s for s in read_scores(run) if s["protocol"] == "nearest_mean"}
    assert found.keys() == {"trained", "untrained", "pixels"}
    assert found["pixels"]["value"] == 100
    assert found["untrained"]["details"] == [{"order": 1}] * 2

    capsys.readouterr()
    assert command.main(["nearest_mean", str(config), "nearest_mean.order=2"]) == 0
    assert "Scored already" not in capsys.readouterr().out, "its settings have changed"
    assert command.main(["knn", str(config)]) == 0
    assert "Scored already" in capsys.readouterr().out, "other protocols do not matter to it"
    assert (run / "scores" / "knn-colours.json").read_bytes() == before
