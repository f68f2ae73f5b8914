"""Multinomial logistic regression on frozen features, its L2 strength chosen on validation.

Source: paper section 4, fine-grained classification: L-BFGS, at most 1,000 iterations, standardised
features, 45 strengths from 1e-6 to 1e5 evenly spaced in the logarithm, the best one on the
validation split, then a last fit on training and validation pictures together.

What the strength multiplies is not stated there. Here a fit minimises

    sum over pictures of the cross-entropy + strength / 2 * |W|^2

(scikit-learn's `C` is 1 / strength); the intercept is free. Strengths are tried from the strongest
to the weakest, each fit starting where the last one ended, which saves most iterations. Between
strengths that do equally well on validation, the strongest wins.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from trainer.evaluate import metrics
from trainer.evaluate.metrics import Metric
from transforms.core.config import Config

ONE_THREAD_WORK = 50_000_000
"""Multiplications per iteration below which a second thread costs more time than it saves."""


class LogisticConfig(Config):
    """Settings of the logistic-regression protocol."""

    num_strengths: int = Field(45, ge=1)
    """How many L2 strengths are tried (paper: 45)."""
    weakest: float = Field(1e-6, gt=0)
    """Smallest strength (paper: 1e-6)."""
    strongest: float = Field(1e5, gt=0)
    """Largest strength (paper: 1e5)."""
    max_iterations: int = Field(1000, ge=1)
    """L-BFGS iterations per fit, at most (paper: 1,000)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.weakest > self.strongest:
            raise ValueError(f"weakest {self.weakest} is larger than strongest {self.strongest}")
        return self

    def strengths(self) -> list[float]:
        """The strengths in the order they are tried: from the strongest down."""
        ends = (np.log10(self.strongest), np.log10(self.weakest))
        return [float(strength) for strength in np.logspace(*ends, self.num_strengths)]


@dataclass(frozen=True)
class Fitted:
    """Predictions for the test pictures and how they came about."""

    predictions: NDArray[np.int64]  # [M]
    strength: float
    """The chosen L2 strength."""
    validation: float
    """Its score on the validation split, in percent."""
    num_iterations: int
    """L-BFGS iterations of the last fit."""


@dataclass(frozen=True)
class Features:
    """Features of one split and their labels."""

    values: NDArray[np.float32]  # [N, D]
    labels: NDArray[np.int64]  # [N]


def fit_and_predict(
    train: Features,
    val: Features,
    test: NDArray[np.float32],  # [M, D]
    metric: Metric,
    config: LogisticConfig,
    tick: Callable[[], object] = lambda: None,
) -> Fitted:
    """Choose the strength on `val`, fit on both, predict the test pictures.

    Args:
        train: What the candidates are fitted on.
        val: What they are compared on; never seen while they are fitted.
        test: Features to predict.
        metric: What the candidates are compared by.
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
        # The weakest strengths need not converge: validation judges them as they are.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, labels)
