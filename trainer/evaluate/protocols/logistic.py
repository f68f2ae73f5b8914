"""Multinomial logistic regression on frozen features; the L2 strength is chosen on validation.

Source: paper section 4, fine-grained classification: L-BFGS, at most 1,000 iterations, standardised
features, 45 strengths from 1e-6 to 1e5 evenly spaced in the logarithm, the best one on the
validation split, then a final fit on training and validation pictures together.

The paper does not state what the strength multiplies. Here a fit minimises

    sum over pictures of the cross-entropy + strength / 2 * |W|^2

(scikit-learn's `C` is 1 / strength); the intercept is not regularised. Strengths are tried from the
strongest to the weakest; each fit starts where the last one ended, which saves most iterations. If
several strengths score equally on validation, the strongest is taken.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt, model_validator

from trainer.evaluate import metrics
from trainer.evaluate.features import Features, FrozenFeatures
from trainer.evaluate.metrics import Metric
from trainer.evaluate.protocols.frozen import FrozenProtocol, Prediction
from transforms.core.config import Config

ONE_THREAD_WORK = 50_000_000
"""Multiplications per iteration below which one thread is faster than several."""


class LogisticConfig(Config):
    """Settings of the logistic-regression protocol."""

    num_strengths: PositiveInt = 45
    """Number of L2 strengths to try (paper: 45)."""
    weakest: PositiveFloat = 1e-6
    """Smallest strength (paper: 1e-6)."""
    strongest: PositiveFloat = 1e5
    """Largest strength (paper: 1e5)."""
    max_iterations: PositiveInt = 1000
    """Maximum number of L-BFGS iterations per fit (paper: 1,000)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.weakest > self.strongest:
            raise ValueError(f"weakest {self.weakest} is larger than strongest {self.strongest}")
        return self

    def strengths(self) -> list[float]:
        """Return the strengths in the order they are tried: from the strongest down."""
        ends = (np.log10(self.strongest), np.log10(self.weakest))
        return [float(strength) for strength in np.logspace(*ends, self.num_strengths)]


@dataclass(frozen=True)
class Fitted:
    """Predictions for the test pictures, and the fit they come from."""

    predictions: NDArray[np.int64]  # [M]
    strength: float
    """The chosen L2 strength."""
    validation: float
    """The score of that strength on the validation split, in percent."""
    num_iterations: int
    """L-BFGS iterations of the final fit."""


def fit_and_predict(
    train: Features,
    val: Features,
    test: NDArray[np.float32],  # [M, D]
    metric: Metric,
    config: LogisticConfig,
    tick: Callable[[], object] = lambda: None,
) -> Fitted:
    """Choose the strength on `val`, fit on both splits and predict the test pictures.

    Args:
        train: Features that every strength is fitted on.
        val: Features that strengths are compared on; not used in those fits.
        test: Features of the test pictures.
        metric: Metric that strengths are compared by.
        config: Strengths and iterations.
        tick: Called after each of the `num_strengths` + 1 fits.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    inputs = scaler.fit_transform(train.values.astype(np.float64))
    held_out = scaler.transform(val.values)
    model = _regression(config)
    best_strength, best = 0.0, -1.0
    for strength in config.strengths():
        model.set_params(C=1 / strength)
        _fit(model, inputs, train.labels)
        reached, _ = metrics.score(model.predict(held_out), val.labels, metric)
        if reached > best:
            best_strength, best = strength, reached
        tick()
    inputs = scaler.fit_transform(np.concatenate([train.values, val.values], dtype=np.float64))
    model = _regression(config).set_params(C=1 / best_strength)
    _fit(model, inputs, np.concatenate([train.labels, val.labels]))
    tick()
    predictions = model.predict(scaler.transform(test)).astype(np.int64)
    return Fitted(predictions, best_strength, best, int(model.n_iter_.max()))


def _regression(config: LogisticConfig) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="lbfgs", max_iter=config.max_iterations, warm_start=True)


def _fit(model: Any, inputs: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    work = inputs.size * (int(labels.max()) + 1)
    with threadpool_limits(1 if work < ONE_THREAD_WORK else None), warnings.catch_warnings():
        # Weak strengths may not converge; validation compares them as they are.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, labels)


def _predict(
    features: FrozenFeatures, metric: Metric, config: LogisticConfig, tick: Callable[[], object]
) -> Prediction:
    fitted = fit_and_predict(
        features.train, features.val, features.test.values, metric, config, tick
    )
    details = {
        "strength": fitted.strength,
        "validation": round(fitted.validation, 2),
        "iterations": fitted.num_iterations,
    }
    return fitted.predictions, details


PROTOCOL = FrozenProtocol(
    "logistic", LogisticConfig, _predict, num_steps=lambda config: config.num_strengths + 1
)
