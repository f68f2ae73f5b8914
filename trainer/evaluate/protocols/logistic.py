"""Multinomial logistic regression on frozen features; the L2 strength is chosen on validation.

Source: paper section 4, fine-grained classification: L-BFGS, at most 1,000 iterations, standardised
features, 45 strengths from 1e-6 to 1e5 evenly spaced in the logarithm, the best one on the
validation split, then a final fit on training and validation pictures together.

The paper does not state what the strength multiplies. Here a fit minimises

    sum over pictures of the cross-entropy + strength / 2 * |W|^2

(scikit-learn's `C` is 1 / strength); the intercept is not regularised. All strengths are fitted at
once, see `regression`. If several strengths score equally on validation, the strongest is taken.
Where a picture has several labels (VOC2007), each class is told from the rest, with one strength
for all.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt, model_validator

from trainer.evaluate import metrics
from trainer.evaluate.features import Features, FrozenFeatures
from trainer.evaluate.metrics import Metric
from trainer.evaluate.protocols.frozen import FrozenProtocol, Prediction
from transforms.core.config import Config, no_fingerprint

if TYPE_CHECKING:
    from trainer.evaluate.protocols.regression import Fits

log = logging.getLogger(__name__)

NUM_FITS = 2
"""Calls of the solver: all strengths, then the chosen one on train and validation."""


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

    tolerance: PositiveFloat = 1e-12
    """Largest component of the gradient of the mean loss at which a fit stops (ref: 1e-12)."""
    device: Literal["auto", "cpu", "cuda"] = no_fingerprint("auto")
    """Where fits are computed; `auto` is CUDA if available."""

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

    predictions: NDArray[Any]
    """Classes [M], or for several labels per picture a logit for each class, [M, C]."""
    strength: float
    """The chosen L2 strength."""
    validation: float
    """The score of that strength on the validation split, in percent."""
    num_iterations: int
    """L-BFGS iterations of the final fit."""
    num_unfinished: int
    """Fits that the limit of iterations ended, of all strengths and the final one."""


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
        tick: Called after each of the `NUM_FITS` calls of the solver.
    """
    from sklearn.preprocessing import StandardScaler

    num_classes = _num_classes(train.labels, val.labels)
    strengths, scaler = config.strengths(), StandardScaler()
    fits = _fit(
        scaler.fit_transform(train.values.astype(np.float64)),
        train.labels,
        strengths,
        num_classes,
        config,
    )
    tick()
    held_out = scaler.transform(val.values.astype(np.float64))
    scores = [
        metrics.value(_predictions(fits, number, held_out, val.labels.ndim), val.labels, metric)
        for number in range(len(strengths))
    ]
    best = int(np.argmax(scores))  # The first of equal ones, which is the strongest.
    inputs = scaler.fit_transform(np.concatenate([train.values, val.values], dtype=np.float64))
    labels = np.concatenate([train.labels, val.labels])
    final = _fit(inputs, labels, strengths[best : best + 1], num_classes, config)
    tick()
    predictions = _predictions(final, 0, scaler.transform(test.astype(np.float64)), labels.ndim)
    unfinished = sum(int((~found.converged).sum()) for found in (fits, final))
    iterations = int(final.num_iterations[0])
    return Fitted(predictions, strengths[best], scores[best], iterations, unfinished)


def _num_classes(*labels: NDArray[np.int64]) -> int:
    if labels[0].ndim == 2:
        return labels[0].shape[1]
    return 1 + max(int(part.max()) for part in labels)


def _fit(
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64],
    strengths: list[float],
    num_classes: int,
    config: LogisticConfig,
) -> "Fits":
    import torch

    from trainer.evaluate.protocols import regression
    from trainer.execution import device_type

    device = device_type(config.device)
    return regression.fit(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(labels).to(device),
        torch.tensor(strengths, dtype=torch.float64),
        num_classes,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
    )


def _predictions(
    fits: "Fits", number: int, inputs: NDArray[np.float64], label_axes: int
) -> NDArray[Any]:
    """Return what the fit of one strength predicts; see `Fitted.predictions`."""
    logits = inputs @ fits.weights[number].cpu().numpy() + fits.bias[number].cpu().numpy()
    return logits if label_axes == 2 else logits.argmax(axis=1)


def _predict(
    features: FrozenFeatures, metric: Metric, config: LogisticConfig, tick: Callable[[], object]
) -> Prediction:
    fitted = fit_and_predict(
        features.train, features.val, features.test.values, metric, config, tick
    )
    if fitted.num_unfinished:
        log.warning(
            "logistic: %d of %d fits ended at max_iterations %d, before they converged",
            fitted.num_unfinished,
            config.num_strengths + 1,
            config.max_iterations,
        )
    details = {
        "strength": fitted.strength,
        "validation": round(fitted.validation, 2),
        "iterations": fitted.num_iterations,
        "unfinished": fitted.num_unfinished,
    }
    return fitted.predictions, details


PROTOCOL = FrozenProtocol(
    "logistic",
    LogisticConfig,
    _predict,
    num_steps=lambda config: NUM_FITS,
    kinds=("classification", "multi-label"),
    version=2,
)
