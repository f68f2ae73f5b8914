"""Logistic regression: the minimum, the choice of the strength, the final fit."""

import numpy as np
import pytest

from trainer.evaluate import metrics
from trainer.evaluate.features import Features
from trainer.evaluate.protocols import logistic
from trainer.evaluate.protocols.logistic import LogisticConfig, fit_and_predict

FEW = LogisticConfig(num_strengths=6, weakest=1e-3, strongest=1e5, max_iterations=200)


def clusters(count: int, noise: float, seed: int, num_classes: int = 3, width: int = 6) -> Features:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_classes, width))
    labels = np.arange(count) % num_classes
    values = centres[labels] + noise * generator.normal(size=(count, width))
    return Features(values.astype(np.float32), labels)


def test_separable_classes_are_separated() -> None:
    train, val, test = (clusters(60, 0.05, seed) for seed in range(3))
    fitted = fit_and_predict(train, val, test.values, "accuracy", FEW)
    assert (fitted.predictions == test.labels).all()
    assert fitted.validation == 100
    # Validation features are scaled like the training features, whatever they are.
    one_class = Features(val.values[val.labels == 0], val.labels[val.labels == 0])
    assert fit_and_predict(train, one_class, test.values, "accuracy", FEW).validation == 100


def test_finds_the_minimum_of_the_stated_objective() -> None:
    strength = 3.0
    config = LogisticConfig(num_strengths=1, weakest=strength, strongest=strength)
    train, val = clusters(40, 1.5, 0), clusters(20, 1.5, 1)
    fitted = fit_and_predict(train, val, val.values, "accuracy", config)

    values = np.concatenate([train.values, val.values]).astype(np.float64)
    labels = np.concatenate([train.labels, val.labels])
    inputs = (values - values.mean(0)) / values.std(0)
    weights, bias = np.zeros((3, inputs.shape[1])), np.zeros(3)
    for _ in range(20_000):  # Plain gradient descent on the sum of cross-entropies.
        logits = inputs @ weights.T + bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares[np.arange(len(labels)), labels] -= 1
        weights -= 0.01 * (shares.T @ inputs + strength * weights)
        bias -= 0.01 * shares.sum(0)
    by_hand = ((inputs[40:] @ weights.T) + bias).argmax(1)
    assert fitted.strength == pytest.approx(strength)
    assert (fitted.predictions == by_hand).all()


def test_strength_is_chosen_by_validation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    value = metrics.value

    def spy(predictions: np.ndarray, labels: np.ndarray, metric: metrics.Metric) -> float:
        seen.append(labels)
        return value(predictions, labels, metric)

    monkeypatch.setattr(metrics, "value", spy)
    train, val, test = (clusters(count, 2.0, seed) for seed, count in enumerate((45, 24, 33)))
    fitted = fit_and_predict(train, val, test.values, "accuracy", FEW)
    assert len(seen) == FEW.num_strengths
    assert all(labels is val.labels for labels in seen)
    # The choice does not depend on the test pictures.
    other = fit_and_predict(train, val, -5 * test.values, "accuracy", FEW)
    assert (other.strength, other.validation) == (fitted.strength, fitted.validation)


def test_equal_strengths_go_to_the_strongest() -> None:
    train, val = clusters(60, 0.01, 0), clusters(30, 0.01, 1)
    config = LogisticConfig(num_strengths=4, weakest=1e-4, strongest=1e-1)
    assert fit_and_predict(train, val, val.values, "accuracy", config).strength == config.strongest


def test_scale_and_offset_of_a_feature_do_not_count() -> None:
    train, val, test = (clusters(60, 1.0, seed) for seed in range(3))
    scale = np.array([1e-3, 1e3, 1, 10, 0.1, 5], dtype=np.float32)
    moved = [Features(part.values * scale + scale, part.labels) for part in (train, val, test)]
    plain = fit_and_predict(train, val, test.values, "accuracy", FEW)
    scaled = fit_and_predict(moved[0], moved[1], moved[2].values, "accuracy", FEW)
    assert np.mean(plain.predictions == scaled.predictions) > 0.98


def test_a_constant_feature_is_harmless() -> None:
    train, val, test = (clusters(60, 0.05, seed) for seed in range(3))
    wide = [np.hstack([p.values, np.full((60, 1), 0.1, np.float32)]) for p in (train, val, test)]
    fitted = fit_and_predict(
        Features(wide[0], train.labels), Features(wide[1], val.labels), wide[2], "accuracy", FEW
    )
    assert (fitted.predictions == test.labels).all()


def test_iterations_are_limited_as_asked() -> None:
    train, val = clusters(90, 2.0, 0, width=20), clusters(30, 2.0, 1, width=20)
    counts = []
    for limit in (3, 1000):
        config = LogisticConfig(num_strengths=1, weakest=1e-4, strongest=1e-4, max_iterations=limit)
        counts.append(fit_and_predict(train, val, val.values, "accuracy", config).num_iterations)
    assert counts[0] == 3
    assert counts[1] > 3


def test_refit_sees_validation_pictures_too() -> None:
    train, val, test = (clusters(60, 0.05, seed) for seed in range(3))
    kept = train.labels != 2
    lacking = Features(train.values[kept], train.labels[kept])
    config = LogisticConfig(num_strengths=1, weakest=1e-2, strongest=1e-2)
    fitted = fit_and_predict(lacking, val, test.values, "accuracy", config)
    assert (fitted.predictions == test.labels).all()


def test_default_strengths_are_the_papers() -> None:
    strengths = LogisticConfig().strengths()
    assert len(strengths) == 45
    assert strengths[0] == pytest.approx(1e5)
    assert strengths[-1] == pytest.approx(1e-6)
    assert np.allclose(np.diff(np.log10(strengths)), -11 / 44)
    assert LogisticConfig().max_iterations == 1000


def test_ticks_once_per_call_of_the_solver() -> None:
    ticks: list[int] = []
    train, val = clusters(30, 1.0, 0), clusters(30, 1.0, 1)
    fit_and_predict(train, val, val.values, "accuracy", FEW, lambda: ticks.append(1))
    assert len(ticks) == logistic.NUM_FITS == logistic.PROTOCOL.num_steps(FEW)


def test_several_labels_per_picture_give_a_logit_per_class() -> None:
    parts = [clusters(60, 0.05, seed) for seed in range(3)]
    several = [
        Features(p.values, np.stack([np.where(p.labels == c, 1, -1) for c in range(3)], axis=1))
        for p in parts
    ]
    several[0].labels[:3] = 0  # Do not count.
    fitted = fit_and_predict(several[0], several[1], parts[2].values, "11-point mAP", FEW)
    assert fitted.predictions.shape == (60, 3)
    assert fitted.validation == 100
    assert metrics.value(fitted.predictions, several[2].labels, "11-point mAP") == 100


def test_shuffled_labels_are_chance() -> None:
    generator = np.random.default_rng(0)
    parts = [
        Features(clusters(count, 0.5, seed).values, generator.integers(0, 3, count))
        for seed, count in enumerate((300, 150, 600))
    ]
    fitted = fit_and_predict(parts[0], parts[1], parts[2].values, "accuracy", FEW)
    assert metrics.value(fitted.predictions, parts[2].labels, "accuracy") < 33.3 + 7


def test_a_class_of_one_picture_works() -> None:
    train, val = clusters(31, 0.05, 0), clusters(30, 0.05, 1)
    labels = train.labels.copy()
    labels[-1] = 3
    fitted = fit_and_predict(
        Features(train.values, labels), val, val.values, "mean per-class accuracy", FEW
    )
    assert (fitted.predictions == val.labels).mean() > 0.95


def test_strengths_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"weakest 10\.0 is larger than strongest 1\.0"):
        logistic.LogisticConfig(weakest=10, strongest=1)
