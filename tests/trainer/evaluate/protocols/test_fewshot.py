"""Few-shot classification against a loop, and on features with a known answer."""

from itertools import pairwise

import numpy as np
import pytest

from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import LabelledSet, Split
from trainer.evaluate.features import Extracted, Subject
from trainer.evaluate.protocols.base import Evaluation
from trainer.evaluate.protocols.fewshot import (
    PROTOCOL,
    FewshotConfig,
    draw,
    interval_over_draws,
    nearest_mean,
)
from transforms.core.scores import Score


def scores_of(features: np.ndarray, labels: np.ndarray, config: FewshotConfig) -> list[Score]:
    """Return the scores of features [N, D]; the last half of the rows are test pictures."""
    bounds = (0, len(labels) // 4, len(labels) // 2, len(labels))
    splits = [
        Split(tuple(np.full((1, 1), row % 256, np.uint8) for row in range(a, b)), labels[a:b])
        for a, b in pairwise(bounds)
    ]
    train, val, test = splits
    classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    dataset = LabelledSet("own", classes, "accuracy", train, val, test, "identity")
    rows = {id(p): features[a + i] for a, s in zip(bounds, splits, strict=False)
            for i, p in enumerate(s.pictures)}  # fmt: skip

    def extract(pictures: object, _: object) -> Extracted:
        assert isinstance(pictures, tuple)
        found = np.stack([rows[id(picture)] for picture in pictures]).astype(np.float32)
        return Extracted(found, np.ones(len(found), bool))

    settings = EvaluateConfig(run="unused")
    evaluation = Evaluation(settings, [dataset], [Subject("trained", extract)])
    return PROTOCOL.scores(evaluation, config)


def test_predicts_the_mean_that_a_loop_finds() -> None:
    generator = np.random.default_rng(0)
    train, labels = generator.normal(size=(30, 5)).astype(np.float32), 2 * (np.arange(30) % 4)
    test = generator.normal(size=(20, 5)).astype(np.float32)
    found = nearest_mean(train, labels, test)
    for query, predicted in zip(test.astype(float), found, strict=True):
        distances = {}
        for own in (0, 2, 4, 6):
            unit = [row / np.linalg.norm(row) for row in train[labels == own].astype(float)]
            distances[own] = np.linalg.norm(query / np.linalg.norm(query) - np.mean(unit, axis=0))
        assert predicted == min(distances, key=lambda own: distances[own])


def test_draws_are_nested_and_take_as_many_as_there_are() -> None:
    labels = np.array([0] * 20 + [1] * 3 + [2])
    few, many = draw(labels, 2, 0), draw(labels, 5, 0)
    assert np.bincount(labels[few]).tolist() == [2, 2, 1]
    assert np.bincount(labels[many]).tolist() == [5, 3, 1]
    assert set(few) < set(many)
    assert set(draw(labels, 2, 1)) != set(few)
    assert draw(labels, 5, 0).tolist() == many.tolist()


def test_separable_features_are_right_from_one_shot_on() -> None:
    labels = np.arange(120) % 3
    rows = scores_of(np.eye(3)[labels], labels, FewshotConfig())
    assert [row.metric for row in rows] == [
        "accuracy, 1 shot", *(f"accuracy, {n} shots" for n in (2, 5, 10))
    ]  # fmt: skip
    for row in rows:
        assert (row.value, row.interval, row.spread) == (100, [100, 100], 0)
        assert len(row.values) == 10
        assert "note" not in row.details[0]


def test_noise_is_chance_and_more_shots_help() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(800) % 4
    noise = generator.normal(size=(800, 8))
    for row in scores_of(noise, labels, FewshotConfig()):
        assert row.value == pytest.approx(25, abs=6)
    one, ten = scores_of(noise + 2 * np.eye(8)[labels], labels, FewshotConfig(shots=(1, 10)))
    assert one.interval is not None and ten.interval is not None
    assert one.interval[1] < ten.interval[0]


def test_the_interval_is_that_of_student_over_the_draws() -> None:
    # Means of the draws 50, 52, 54: standard deviation 2; 4.303 is the quantile of 2 degrees.
    low, high, error = interval_over_draws([40, 52, 60, 60, 52, 48], draws=3)
    assert error == pytest.approx(2 / 3**0.5)
    assert (low, high) == pytest.approx((52 - 4.3027 * error, 52 + 4.3027 * error), abs=1e-3)
    assert interval_over_draws([0, 100], draws=2)[:2] == (0, 100), "no score is outside"


def test_classes_with_fewer_pictures_are_said() -> None:
    labels = np.arange(24) % 3
    one, ten = scores_of(np.eye(3)[labels], labels, FewshotConfig(shots=(1, 10)))
    assert "note" not in one.details[0]
    assert ten.details[0]["note"].startswith("3 classes have fewer than 10 pictures")
