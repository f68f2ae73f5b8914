"""Prediction by a sliding window, at a single scale, and the counts of its pixels.

A picture's shorter side is resized to the window. Windows overlap by a third; where they overlap,
their logits are averaged. The logits are resized to the picture's own size before the class of each
pixel is chosen (mmsegmentation's `slide` mode).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.evaluate.segmentation import iou
from trainer.evaluate.segmentation.pictures import IGNORED, Sample, WholePictures

WINDOWS_PER_PASS = 8
CLASSES_PER_PASS = 16
"""Classes whose logits are resized at once; bounds the memory and changes no result."""

Logits = Callable[[Tensor], Tensor]
"""uint8 or float images [B, 3, S, S] -> logits [B, C, h, w]."""


class Tested(NamedTuple):
    """Counts of pixels of each picture that could be read."""

    counts: NDArray[np.int64]  # [N, 3, C]
    indices: list[int]
    """Their pictures."""
    unreadable: list[str]


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return where the windows start along a side of at least `size` pixels; they cover it."""
    number = -(-(length - size) // stride) + 1
    return [min(index * stride, length - size) for index in range(number)]


def sliding_logits(logits: Logits, image: Tensor, size: int, stride: int) -> Tensor:
    """Return the mean logits of all windows, float32 [C, H, W].

    Args:
        logits: The network.
        image: [3, H, W], of at least the size of a window.
        size: Side of a window.
        stride: Pixels from one window to the next.
    """
    height, width = image.shape[1:]
    corners = [(y, x) for y in starts(height, size, stride) for x in starts(width, size, stride)]
    total = image.new_zeros(1, dtype=torch.float32)
    covered = image.new_zeros(height, width, dtype=torch.float32)
    for first in range(0, len(corners), WINDOWS_PER_PASS):
        some = corners[first : first + WINDOWS_PER_PASS]
        windows = torch.stack([image[:, y : y + size, x : x + size] for y, x in some])
        found = upsampled(logits(windows), size)
        if total.dim() == 1:
            total = total.new_zeros(found.shape[1], height, width)
        for (y, x), values in zip(some, found, strict=True):
            total[:, y : y + size, x : x + size] += values
            covered[y : y + size, x : x + size] += 1
    return total / covered


def upsampled(logits: Tensor, size: int) -> Tensor:
    """Return logits [B, C, size, size] in float32."""
    return functional.interpolate(logits.float(), (size, size), mode="bilinear")


def classes_at(logits: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """Return the class of each pixel [height, width] of a picture of another size.

    Args:
        logits: [C, H, W].
        height: Height of the picture.
        width: Width of the picture.
    """
    best = torch.full((height, width), -torch.inf, device=logits.device)
    chosen = torch.zeros((height, width), dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), CLASSES_PER_PASS):
        some = logits[None, first : first + CLASSES_PER_PASS]
        resized = functional.interpolate(some, (height, width), mode="bilinear")[0]
        values, index = resized.max(0)
        better = values > best
        chosen = torch.where(better, (index + first).to(torch.uint8), chosen)
        best = torch.where(better, values, best)
    found: NDArray[np.uint8] = chosen.cpu().numpy()
    return found


def count_pictures(
    logits: Logits,
    pictures: WholePictures,
    stride: int,
    num_workers: int,
    device: str,
    done: Callable[[int], object],
) -> Tested:
    """Return the counts of the pictures.

    Args:
        logits: The network, on the device and in evaluation mode.
        pictures: The pictures, resized to a window.
        stride: Pixels from one window to the next.
        num_workers: Processes that decode pictures.
        device: Device of the network.
        done: Callback with the number of pictures just done.
    """
    num_classes = pictures.pictures.num_classes
    counts, indices, unreadable = [np.zeros((0, 3, num_classes), dtype=np.int64)], [], []
    for index, sample in zip(pictures.indices, _loaded(pictures, num_workers), strict=True):
        done(1)
        if sample.lost:
            unreadable.append(sample.lost)
            continue
        with torch.no_grad():
            found = sliding_logits(logits, sample.image.to(device), pictures.size, stride)
        labels = sample.labels.numpy()
        predictions = classes_at(found, *labels.shape)
        indices.append(index)
        counts.append(iou.count(predictions, labels, num_classes, IGNORED)[None])
    return Tested(np.concatenate(counts), indices, unreadable)


def _loaded(pictures: WholePictures, num_workers: int) -> Iterator[Sample]:
    from torch.utils.data import DataLoader

    yield from DataLoader(pictures, batch_size=None, num_workers=num_workers)
