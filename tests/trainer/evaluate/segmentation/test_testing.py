"""Sliding windows: they cover a picture once or more, and change no pointwise model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from trainer.evaluate.segmentation.testing import classes_at, sliding_logits, starts


@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 60))
def test_windows_cover_a_side_and_stay_in_it(size: int, more: int, stride: int) -> None:
    length, stride = size + more, min(stride, size)
    found = starts(length, size, stride)
    covered = {pixel for start in found for pixel in range(start, start + size)}
    assert covered == set(range(length))
    assert len(set(found)) == len(found) == max(-(-more // stride), 0) + 1


@pytest.mark.parametrize("shape", [(12, 12), (12, 31), (45, 17)])
def test_a_pointwise_model_gives_the_result_of_the_whole_picture(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, weights = torch.randn(3, *shape), torch.randn(5, 3, 1, 1)
    sizes = []

    def linear(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(windows.shape[2:])
        return functional.conv2d(windows, weights)

    found = sliding_logits(linear, image, 12, 8)
    torch.testing.assert_close(found, functional.conv2d(image, weights))
    assert set(sizes) == {(12, 12)}


def test_overlapping_windows_are_averaged() -> None:
    numbers = iter((1.0, 4.0))

    def numbered(windows: torch.Tensor) -> torch.Tensor:
        values = [next(numbers) for _ in windows]
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    found = sliding_logits(numbered, torch.zeros(3, 4, 6, dtype=torch.uint8), 4, 2)
    assert found.shape == (1, 4, 6)
    assert found[0, 0].tolist() == [1, 1, 2.5, 2.5, 4, 4]


def test_classes_at_the_size_of_the_picture() -> None:
    torch.manual_seed(0)
    logits = torch.randn(37, 6, 9)  # More classes than are resized at once.
    resized = functional.interpolate(logits[None], (13, 20), mode="bilinear")[0]
    assert np.array_equal(classes_at(logits, 13, 20), resized.argmax(0).numpy())
