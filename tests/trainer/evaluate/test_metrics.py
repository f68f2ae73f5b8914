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


def average_precision_by_hand(scores: list[float], labels: list[int]) -> float:
    """The loop of VOC2007's development kit; 0 is a difficult picture."""
    ranked = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda p: -p[0])]
    ranked = [label for label in ranked if label != 0]
    hits, points = 0, []
    for position, label in enumerate(ranked, 1):
        hits += label == 1
        points.append((hits / ranked.count(1), hits / position))
    return sum(max(p for r, p in points if r >= t / 10 - 1e-12) for t in range(11)) / 11


def test_average_precision_by_hand() -> None:
    labels = np.array([[1, -1], [-1, 1], [0, 1], [1, 0], [-1, -1]])
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.95, 0.2], [0.3, 0.99], [0.1, 0.5]])
    # Class 0: + - +, precisions 1, 1/2, 2/3. Class 1: + - +, the same.
    expected = 100 * (6 * 1 + 5 * 2 / 3) / 11
    assert metrics.value(scores, labels, "11-point mAP") == pytest.approx(expected)
    assert metrics.value(labels.astype(float), labels, "11-point mAP") == pytest.approx(100)
    # Class 0: 2 of 4 counted pictures, class 1: 2 of 4.
    assert metrics.chance(labels, "11-point mAP") == pytest.approx(50)


@pytest.mark.parametrize("seed", range(8))
def test_mean_average_precision_is_that_of_a_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, 2, (40, 5))
    labels[:, 4] = -1  # A class that no picture shows does not count.
    scores = generator.normal(size=(40, 5)) + labels
    found = [
        average_precision_by_hand(scores[:, c].tolist(), labels[:, c].tolist()) for c in range(4)
    ]
    by_loop = 100 * float(np.mean(found))
    assert metrics.value(scores, labels, "11-point mAP") == pytest.approx(by_loop)


@pytest.mark.parametrize("metric", ["accuracy", "mean per-class accuracy", "11-point mAP"])
def test_weights_are_repeated_rows(metric: metrics.Metric) -> None:
    generator = np.random.default_rng(1)
    weights = generator.integers(0, 4, 30)
    labels, guesses = generator.integers(0, 4, 30), generator.integers(0, 4, 30)
    if metric == "11-point mAP":
        labels, guesses = generator.integers(-1, 2, (30, 3)), generator.permutation(90)
        guesses = guesses.reshape(30, 3)
    repeated = metrics.value(guesses.repeat(weights, 0), labels.repeat(weights, 0), metric)
    assert metrics.value(guesses, labels, metric, weights) == pytest.approx(repeated)


def test_intervals_hold_the_score_and_shrink_with_rows() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for count in (100, 1600):
        labels = generator.integers(0, 5, count)
        guesses = np.where(generator.random(count) < 0.7, labels, (labels + 1) % 5)
        found = metrics.bootstrap([guesses], labels, "accuracy")
        value, error = metrics.score(guesses, labels, "accuracy")
        assert found.low < value < found.high
        assert found.error == pytest.approx(error, rel=0.15), "as the binomial formula says"
        assert metrics.bootstrap([guesses], labels, "accuracy") == found, "it can be repeated"
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)
    perfect = metrics.bootstrap([labels], labels, "mean per-class accuracy", num_resamples=20)
    assert perfect == (100, 100, 0)
