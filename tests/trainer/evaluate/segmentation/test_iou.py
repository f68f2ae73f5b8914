"""mIoU: counts by hand, classes without pixels, intervals."""

import numpy as np
import pytest

from trainer.evaluate.segmentation import iou

LABELS = np.array([[0, 0, 1, 1], [0, 2, 1, 255]], dtype=np.uint8)
PREDICTED = np.array([[0, 1, 1, 1], [0, 0, 1, 3]], dtype=np.uint8)


def test_miou_by_hand() -> None:
    counts = iou.count(PREDICTED, LABELS, 5, 255)
    # The pixel of no class does not count, whatever is predicted there.
    assert counts.tolist() == [[2, 3, 0, 0, 0], [3, 4, 0, 0, 0], [3, 3, 1, 0, 0]]
    # Class 0: 2 of 4; class 1: 3 of 4; class 2: 0 of 1; classes 3 and 4 have no pixels.
    found = iou.shares(counts)
    assert found.miou == pytest.approx(100 * (2 / 4 + 3 / 4 + 0) / 3)
    assert found.accuracy == pytest.approx(100 * 5 / 7)
    assert found.class_accuracy == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)


def test_counts_of_pictures_are_added_before_they_are_divided() -> None:
    first = iou.count(PREDICTED, LABELS, 3 + 1, 255)
    second = iou.count(LABELS % 255, LABELS, 4, 255)
    assert iou.mean_iou(first + second) == pytest.approx(100 * (5 / 7 + 6 / 7 + 1 / 2) / 3)


def test_a_class_that_is_only_predicted_has_no_iou() -> None:
    labels, predicted = np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8)
    assert iou.mean_iou(iou.count(predicted, labels, 3, 255)) == pytest.approx(100 * (3 / 4) / 2)


def test_no_pixel_with_a_class_is_a_score_of_0() -> None:
    labels = np.full((2, 2), 255, np.uint8)
    assert iou.shares(iou.count(labels * 0, labels, 3, 255)) == (0, 0, 0)


def test_chance_is_the_most_frequent_class() -> None:
    counts = iou.count(PREDICTED, LABELS, 5, 255)
    constant = np.zeros_like(LABELS)  # Three pixels each are of class 0 and of class 1.
    expected = iou.mean_iou(iou.count(constant, LABELS, 5, 255))
    assert iou.chance(counts) == pytest.approx(float(expected)) == pytest.approx(100 * 3 / 7 / 3)


def test_interval_holds_the_score_and_shrinks_with_the_pictures() -> None:
    generator = np.random.default_rng(0)

    def of_pictures(number: int) -> "np.typing.NDArray[np.int64]":
        labels = generator.integers(0, 3, (number, 8, 8)).astype(np.uint8)
        kept = generator.random((number, 1, 1)) < 0.7  # Some pictures are all wrong.
        predictions = np.where(kept, labels, (labels + 1) % 3).astype(np.uint8)
        return np.stack(
            [iou.count(p, own, 3, 255) for p, own in zip(predictions, labels, strict=True)]
        )

    few, many = of_pictures(20), of_pictures(320)
    widths = []
    for counts in (few, many):
        interval = iou.bootstrap([counts])
        assert interval.low <= iou.mean_iou(counts.sum(0)) <= interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.5 * widths[0]
    assert iou.bootstrap([few]) == iou.bootstrap([few, few])
