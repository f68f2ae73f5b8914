"""Metrics: accuracy and mean per-class accuracy in percent, with their standard errors."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["accuracy", "mean per-class accuracy"]


def score(
    predictions: NDArray[np.int64],  # [N]
    labels: NDArray[np.int64],  # [N]
    metric: Metric,
) -> tuple[float, float]:
    """Return the score of predictions and its standard error, both in percent.

    The error is due to the test set being a sample of pictures: binomial, or for the per-class mean
    that of a mean of independent binomial shares. Classes without labels are left out.

    Returns:
        (score, standard error).
    """
    assert len(predictions) == len(labels) > 0, "one prediction for each of at least one label"
    if metric == "accuracy":
        shares, counts = [float(np.mean(predictions == labels))], [len(labels)]
    else:
        present = [labels == label for label in np.unique(labels)]
        shares = [float(np.mean(predictions[own] == labels[own])) for own in present]
        counts = [int(own.sum()) for own in present]
    variances = (p * (1 - p) / n for p, n in zip(shares, counts, strict=True))
    error = math.sqrt(sum(variances)) / len(shares)
    return 100 * float(np.mean(shares)), 100 * error


def chance(labels: NDArray[np.int64], metric: Metric) -> float:
    """Return the score of always predicting the most frequent class, in percent."""
    most_frequent = np.bincount(labels).argmax()
    return score(np.full_like(labels, most_frequent), labels, metric)[0]
