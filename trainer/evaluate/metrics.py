"""Metrics in percent, with their standard errors and intervals.

Accuracy, the mean of the classes' accuracies, and the 11-point mean average precision of VOC2007.
Every metric takes whole weights of the test rows, so that a bootstrap needs no copies of rows.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.core.seeding import derive

Metric = Literal["accuracy", "mean per-class accuracy", "11-point mAP", "mIoU"]
CLASS_METRICS: tuple[Metric, ...] = ("accuracy", "mean per-class accuracy")
"""Metrics of predictions that are one class per picture."""

NUM_RESAMPLES = 1000
"""Resamples of a bootstrap."""
COVERAGE = 0.95
"""Share of the resamples that an interval holds."""


class Interval(NamedTuple):
    """Interval of a score, in percent."""

    low: float
    high: float
    error: float
    """Standard deviation over the resamples."""


def value(
    predictions: NDArray[Any],
    labels: NDArray[np.int64],
    metric: Metric,
    weights: NDArray[np.int64] | None = None,
) -> float:
    """Return the score of predictions in percent.

    Args:
        predictions: [N] classes; for the mAP [N, C], larger for pictures that show the class.
        labels: As in `Split.labels`. Classes without labels are left out.
        metric: What to compute.
        weights: [N], how often a row counts; None counts each once.
    """
    assert len(predictions) == len(labels) > 0, "one prediction for each of at least one label"
    counts = np.ones(len(labels), dtype=np.int64) if weights is None else weights
    if metric == "11-point mAP":
        return 100 * _mean_average_precision(predictions, labels, counts)
    assert metric in CLASS_METRICS, f"{metric} is not computed from one prediction per picture"
    hits = counts * (predictions == labels)
    if metric == "accuracy":
        return 100 * float(hits.sum() / counts.sum())
    own = np.bincount(labels, counts)
    present = own > 0
    return 100 * float(np.mean(np.bincount(labels, hits)[present] / own[present]))


def score(
    predictions: NDArray[np.int64],  # [N]
    labels: NDArray[np.int64],  # [N]
    metric: Metric,
) -> tuple[float, float]:
    """Return the score of predicted classes and its standard error, both in percent.

    The error is due to the test set being a sample of pictures: binomial, or for the per-class mean
    that of a mean of independent binomial shares. Classes without labels are left out.

    Returns:
        (score, standard error).
    """
    if metric == "accuracy":
        shares, counts = [float(np.mean(predictions == labels))], [len(labels)]
    else:
        present = [labels == label for label in np.unique(labels)]
        shares = [float(np.mean(predictions[own] == labels[own])) for own in present]
        counts = [int(own.sum()) for own in present]
    variances = (p * (1 - p) / n for p, n in zip(shares, counts, strict=True))
    return value(predictions, labels, metric), 100 * math.sqrt(sum(variances)) / len(shares)


def bootstrap(
    predictions: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    metric: Metric,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Return the percentile interval of a score, or of the mean score of several seeds.

    The test rows are drawn anew with replacement; all seeds are scored on the same rows. The draws
    depend on nothing but the number of rows, so intervals can be repeated.

    Args:
        predictions: Predictions of each seed; see `value`.
        labels: Labels of the test rows.
        metric: What to compute.
        num_resamples: Number of draws.
    """
    generator = np.random.default_rng(derive("bootstrap", len(labels)))
    scores = []
    for _ in range(num_resamples):
        rows = generator.integers(len(labels), size=len(labels))
        weights = np.bincount(rows, minlength=len(labels))
        scores.append(np.mean([value(seed, labels, metric, weights) for seed in predictions]))
    low, high = np.quantile(scores, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high), float(np.std(scores)))


def chance(labels: NDArray[np.int64], metric: Metric) -> float:
    """Return the score without any knowledge of the pictures, in percent.

    It is that of the most frequent class; for the mAP that of equal predictions.
    """
    if metric == "11-point mAP":
        positives, counted = (labels == 1).sum(axis=0), (labels != 0).sum(axis=0)
        present = positives > 0
        return 100 * float(np.mean(positives[present] / counted[present]))
    most_frequent = np.bincount(labels).argmax()
    return value(np.full_like(labels, most_frequent), labels, metric)


def _mean_average_precision(
    scores: NDArray[Any], labels: NDArray[np.int64], counts: NDArray[np.int64]
) -> float:
    """Return the mean over classes of VOC2007's average precision, from 0 to 1.

    It averages, over the recalls 0, 0.1, ..., 1, the largest precision at that recall or more.
    """
    found = []
    for own_scores, own_labels in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-own_scores, kind="stable")
        kept = counts[order] * (own_labels[order] != 0)
        hits = np.cumsum(kept * (own_labels[order] == 1))
        if hits[-1] == 0:
            continue  # No picture of the class.
        precision = hits / np.maximum(np.cumsum(kept), 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # At this recall or more.
        # In whole numbers: a recall of 0.3 is 3 / 10 exactly.
        first = np.searchsorted(10 * hits, np.arange(11) * hits[-1])
        found.append(float(best[first].mean()))
    return float(np.mean(found)) if found else 0.0
