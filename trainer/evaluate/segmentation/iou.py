"""The mean over classes of intersection over union (mIoU), from counts of pixels.

Pixels of no class do not count. A class that is neither in the labels nor in the predictions is
left out of the mean; one that is only predicted has an IoU of 0, as in mmsegmentation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.metrics import COVERAGE, NUM_RESAMPLES, Interval
from transforms.core.seeding import derive

Counts = NDArray[np.int64]
"""[3, C]: pixels of each class that are labelled and predicted so, predicted so, labelled so."""


class Shares(NamedTuple):
    """Scores of pixels, in percent."""

    miou: float
    accuracy: float
    """Share of the pixels that are predicted as labelled."""
    class_accuracy: float
    """Mean of that share over the classes with labels."""


def count(
    predictions: NDArray[np.uint8], labels: NDArray[np.uint8], num_classes: int, ignored: int
) -> Counts:
    """Return the pixels of each class.

    Args:
        predictions: [H, W], indices of classes.
        labels: [H, W], indices of classes, or `ignored`.
        num_classes: C.
        ignored: Label of pixels that do not count.
    """
    counted = labels != ignored
    predicted, labelled = predictions[counted], labels[counted]
    both = predicted[predicted == labelled]
    found = [np.bincount(v, minlength=num_classes) for v in (both, predicted, labelled)]
    return np.stack(found).astype(np.int64)


def mean_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mIoU in percent of counts [..., 3, C]; 0 if no pixel has a class."""
    both, predicted, labelled = np.moveaxis(counts, -2, 0)
    union = predicted + labelled - both
    present = union > 0
    ratios = np.where(present, both / np.maximum(union, 1), 0.0)
    mean: NDArray[np.float64] = 100 * ratios.sum(-1) / np.maximum(present.sum(-1), 1)
    return mean


def shares(counts: Counts) -> Shares:
    """Return the scores of counts over all pictures."""
    both, _, labelled = counts
    own = labelled > 0
    accuracy = 100 * float(both.sum() / max(labelled.sum(), 1))
    of_classes = 100 * float(np.mean(both[own] / labelled[own])) if own.any() else 0.0
    return Shares(float(mean_iou(counts)), accuracy, of_classes)


def bootstrap(of_subjects: Sequence[NDArray[np.int64]]) -> Interval:
    """Return the interval of the mean mIoU of several subjects, by resampling the pictures.

    Args:
        of_subjects: Counts of each picture for each subject, each [N, 3, C].
    """
    number = len(of_subjects[0])
    generator = np.random.default_rng(derive("bootstrap", number))
    scores = []
    for _ in range(NUM_RESAMPLES):
        weights = np.bincount(generator.integers(number, size=number), minlength=number)
        resampled = [np.tensordot(weights, counts, 1) for counts in of_subjects]
        scores.append(np.mean([mean_iou(counts) for counts in resampled]))
    low, high = np.quantile(scores, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high), float(np.std(scores)))


def chance(counts: Counts) -> float:
    """Return the mIoU in percent if every pixel is predicted as the most frequent class."""
    labelled = counts[2]
    constant = np.zeros_like(counts)
    constant[2] = labelled
    constant[1, labelled.argmax()] = labelled.sum()
    constant[0, labelled.argmax()] = labelled.max()
    return float(mean_iou(constant))
