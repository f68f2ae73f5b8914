"""kNN against a loop over neighbours."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluate.features import Features, FrozenFeatures
from trainer.evaluate.protocols import knn
from trainer.evaluate.protocols.knn import KnnConfig


def votes_by_hand(
    train: np.ndarray, labels: np.ndarray, query: np.ndarray, config: KnnConfig
) -> dict[int, float]:
    similarity = [
        float(query @ row / np.linalg.norm(query) / np.linalg.norm(row))
        for row in train.astype(np.float64)
    ]
    nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[: config.num_neighbours]
    votes = dict.fromkeys(labels.tolist(), 0.0)
    for index in nearest:
        votes[int(labels[index])] += math.exp(similarity[index] / config.temperature)
    return votes


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_train=st.integers(1, 40),
    num_neighbours=st.integers(1, 45),
    temperature=st.sampled_from([0.05, 0.07, 1.0]),
)
def test_predicts_what_a_loop_votes_for(
    seed: int, num_train: int, num_neighbours: int, temperature: float
) -> None:
    generator = np.random.default_rng(seed)
    train = generator.normal(size=(num_train, 5)).astype(np.float32)
    labels = generator.integers(0, 4, num_train)
    test = generator.normal(size=(7, 5)).astype(np.float32)
    config = KnnConfig(num_neighbours=num_neighbours, temperature=temperature)
    predictions = knn.predict(train, labels, test, config)
    for query, predicted in zip(test.astype(np.float64), predictions, strict=True):
        votes = votes_by_hand(train, labels, query, config)
        assert votes[int(predicted)] == pytest.approx(max(votes.values()), rel=1e-4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    train, labels = generator.normal(size=(50, 8)).astype(np.float32), np.arange(50) % 3
    test = generator.normal(size=(20, 8)).astype(np.float32)
    whole = knn.predict(train, labels, test, KnnConfig())
    monkeypatch.setattr(knn, "QUERIES_PER_CHUNK", 3)
    assert (knn.predict(train, labels, test, KnnConfig()) == whole).all()


def test_length_of_features_does_not_count() -> None:
    generator = np.random.default_rng(2)
    train, labels = generator.normal(size=(50, 8)).astype(np.float32), np.arange(50) % 3
    test = generator.normal(size=(20, 8)).astype(np.float32)
    lengths = generator.uniform(0.1, 10, (50, 1)).astype(np.float32)
    expected = knn.predict(train, labels, test, KnnConfig())
    assert (knn.predict(train * lengths, labels, test * 7, KnnConfig()) == expected).all()


def test_tiny_temperature_is_the_nearest_neighbour() -> None:
    generator = np.random.default_rng(3)
    train, labels = generator.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 5
    noise = 1e-3 * generator.normal(size=train.shape).astype(np.float32)
    predictions = knn.predict(train, labels, train + noise, KnnConfig(temperature=1e-4))
    assert (predictions == labels).all()


def test_neighbours_are_training_and_validation_pictures() -> None:
    kinds = np.eye(3, dtype=np.float32)
    train, val = (Features(kinds[labels], labels) for labels in (np.array([0, 1]), np.array([2])))
    frozen = FrozenFeatures(train, val, Features(kinds, np.arange(3)))
    predicted, _ = knn.PROTOCOL.predict(frozen, "accuracy", KnnConfig(), lambda: None)
    assert predicted.tolist() == [0, 1, 2]
