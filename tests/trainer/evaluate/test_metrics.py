"""Metrics and their standard errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate import metrics

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(PAIRS)
def test_per_class_mean_weighs_classes_alike(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    shares = []
    for label in set(labels.tolist()):
        own = [p == label for p, truth in pairs if truth == label]
        shares.append(sum(own) / len(own))
    value, error = metrics.score(predictions, labels, "mean per-class accuracy")
    assert value == pytest.approx(100 * sum(shares) / len(shares))
    assert 0 <= error <= 50


@given(PAIRS)
def test_accuracy_weighs_pictures_alike(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    value, _ = metrics.score(predictions, labels, "accuracy")
    assert value == pytest.approx(100 * sum(p == truth for p, truth in pairs) / len(pairs))


def test_metrics_differ_on_unbalanced_classes() -> None:
    labels = np.array([0] * 9 + [1])
    guess = np.zeros(10, dtype=np.int64)
    assert metrics.score(guess, labels, "accuracy")[0] == pytest.approx(90)
    assert metrics.score(guess, labels, "mean per-class accuracy")[0] == pytest.approx(50)
    assert metrics.chance(labels, "accuracy") == pytest.approx(90)
    assert metrics.chance(labels, "mean per-class accuracy") == pytest.approx(50)


@pytest.mark.parametrize("metric", ["accuracy", "mean per-class accuracy"])
def test_error_is_the_spread_over_test_sets(metric: metrics.Metric) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 100, 150])
    chances = np.array([0.9, 0.6, 0.3])[labels]
    draws = [np.where(generator.random(300) < chances, labels, -1) for _ in range(2000)]
    values, errors = zip(*(metrics.score(draw, labels, metric) for draw in draws), strict=True)
    # For accuracy, the binomial error treats all pictures alike, which overstates it a little here.
    assert np.std(values) <= np.mean(errors) * 1.05
    assert np.std(values) >= np.mean(errors) * (0.95 if metric != "accuracy" else 0.8)
