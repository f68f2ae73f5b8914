"""Regressions with many strengths at once, against scikit-learn's one by one."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.protocols import regression

STRENGTHS = np.logspace(5, -6, 13)


def data(
    noise: float, count: int = 150, width: int = 12, classes: int = 4
) -> tuple["np.typing.NDArray[np.float64]", "np.typing.NDArray[np.int64]"]:
    """Standardised features, correlated and of unequal size before, with labels."""
    generator = np.random.default_rng(3)
    labels = np.arange(count) % classes
    centres = generator.normal(size=(classes, width))
    values = centres[labels] + noise * generator.normal(size=(count, width))
    values = values @ (generator.normal(size=(width, width)) * np.logspace(0, -2, width))
    return (values - values.mean(0)) / values.std(0), labels


def loss(
    inputs: "np.typing.NDArray[np.float64]",
    labels: "np.typing.NDArray[np.int64]",
    weights: "np.typing.NDArray[np.float64]",
    bias: "np.typing.NDArray[np.float64]",
    strength: float,
) -> float:
    """The stated objective: the mean cross-entropy and the penalty over the number of rows."""
    logits = inputs @ weights + bias
    top = logits.max(axis=1, keepdims=True)
    logs = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    total = (logs - logits[np.arange(len(labels)), labels]).sum()
    return float((total + strength / 2 * (weights**2).sum()) / len(labels))


def sklearn_fit(
    inputs: "np.typing.NDArray[np.float64]", labels: "np.typing.NDArray[np.int64]", strength: float
) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / strength, tol=1e-12, max_iter=10_000).fit(inputs, labels)


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_losses_are_those_of_scikit_learn(noise: float) -> None:
    inputs, labels = data(noise)
    fits = regression.fit(
        torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(STRENGTHS), 4
    )
    assert fits.converged.all()
    for number, strength in enumerate(STRENGTHS):
        theirs = sklearn_fit(inputs, labels, strength)
        oracle = loss(inputs, labels, theirs.coef_.T, theirs.intercept_, strength)
        ours = loss(
            inputs, labels, fits.weights[number].numpy(), fits.bias[number].numpy(), strength
        )
        assert ours == pytest.approx(float(fits.losses[number]), abs=1e-12), "as it says"
        assert ours == pytest.approx(oracle, abs=1e-6)
        assert ours <= oracle + 1e-9, "scikit-learn is no better"


def test_predictions_are_those_of_scikit_learn() -> None:
    inputs, labels = data(2.0)
    strengths = torch.tensor([10.0, 0.1], dtype=torch.float64)
    fits = regression.fit(torch.from_numpy(inputs), torch.from_numpy(labels), strengths, 4)
    for logits, strength in zip(fits.logits(torch.from_numpy(inputs)), strengths, strict=True):
        theirs = sklearn_fit(inputs, labels, float(strength)).predict_proba(inputs)
        assert np.allclose(logits.softmax(dim=1).numpy(), theirs, atol=1e-4)


def test_several_labels_are_fits_of_each_class_against_the_rest() -> None:
    inputs, labels = data(2.0)
    several = np.stack([np.where(labels == c, 1, -1) for c in range(4)], axis=1)
    several[:10, 1] = 0
    strengths = torch.logspace(2, -2, 5, dtype=torch.float64)
    fits = regression.fit(torch.from_numpy(inputs), torch.from_numpy(several), strengths, 4)
    for number, strength in enumerate(strengths.tolist()):
        for c in range(4):
            counted = several[:, c] != 0
            theirs = sklearn_fit(inputs[counted], several[counted, c], strength)
            assert np.allclose(fits.weights[number, :, c], theirs.coef_[0], atol=2e-4)
            assert fits.bias[number, c] == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_waves_and_interpolated_starts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = (torch.from_numpy(values) for values in data(1.0))
    strengths = torch.from_numpy(np.logspace(5, -6, 45))
    together = regression.fit(inputs, labels, strengths, 4)
    monkeypatch.setattr(regression, "waves", lambda wanted: [list(range(len(wanted)))])
    apart = regression.fit(inputs, labels, strengths, 4)
    assert torch.allclose(together.losses, apart.losses, rtol=0, atol=1e-10)
    saved = together.num_iterations.sum() / apart.num_iterations.sum()
    assert saved < 0.6, "which is why there are waves"


def test_waves_have_every_strength_once() -> None:
    for count in (1, 2, 3, 9, 45):
        waves = regression.waves(torch.logspace(5, -6, count))
        assert sorted(i for wave in waves for i in wave) == list(range(count))
    assert [len(wave) for wave in waves] == [7, 5, 11, 22]


def test_a_limit_of_iterations_is_kept_and_said() -> None:
    inputs, labels = (torch.from_numpy(values) for values in data(1.0))
    fits = regression.fit(
        inputs, labels, torch.tensor([1e3, 1e-6], dtype=torch.float64), 4, max_iterations=5
    )
    assert int(fits.num_iterations.max()) == 5
    assert fits.converged.tolist() == [bool(n < 5) for n in fits.num_iterations]
    assert not fits.converged[1]


def test_fewer_pictures_than_features_and_copied_features() -> None:
    inputs, labels = data(1.0, count=8, width=12)
    inputs[:, 3] = inputs[:, 5]
    strengths = np.array([1.0, 1e-3])
    fits = regression.fit(
        torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(strengths), 4
    )
    for number, strength in enumerate(strengths):
        theirs = sklearn_fit(inputs, labels, strength)
        oracle = loss(inputs, labels, theirs.coef_.T, theirs.intercept_, strength)
        assert float(fits.losses[number]) == pytest.approx(oracle, abs=1e-6)
    assert torch.allclose(fits.weights[:, 3], fits.weights[:, 5], atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_minima() -> None:
    inputs, labels = (torch.from_numpy(values) for values in data(1.0))
    strengths = torch.from_numpy(STRENGTHS)
    here = regression.fit(inputs, labels, strengths, 4)
    there = regression.fit(inputs.cuda(), labels.cuda(), strengths, 4)
    assert torch.allclose(here.losses, there.losses.cpu(), rtol=0, atol=1e-9)
