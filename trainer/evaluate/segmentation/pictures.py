"""Pictures with masks: random crops to train on, and whole pictures to test on.

The crops are those of mmsegmentation for ADE20k: the shorter side is resized to 0.5 to 2 times the
crop, a crop is taken in which no class has more than 75 % of the pixels (if one of ten has), it is
flipped with probability 0.5, and its colours are changed. Every draw is a function of the seed and
the number of the sample. Colours are changed by torchvision, not by OpenCV.

Labels are uint8: the index of a class, or `IGNORED` for pixels of no class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from transforms.core.errors import DamagedFileError
from transforms.core.seeding import derive

IGNORED = 255
"""Label of a pixel of no class."""
SCALES = (0.5, 2.0)
LONGEST = 4
"""The longer side is at most so many times the shorter side's target (512 x 2048)."""
CROPS, LARGEST_SHARE = 10, 0.75
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 0.1


class Sample(NamedTuple):
    """A picture and its labels, of the same size in training."""

    image: Tensor  # uint8 [3, H, W]
    labels: Tensor  # uint8 [h, w]
    lost: str
    """Why the picture cannot be used; empty if it can."""


@dataclass(frozen=True)
class Masked:
    """Pictures with masks."""

    pictures: Sequence[Path]
    masks: Sequence[Path]
    num_classes: int

    def load(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Return a picture and its labels as images of one size.

        Raises:
            DamagedFileError: One of the two cannot be used; the message says why.
        """
        picture, mask = self.pictures[index], self.masks[index]
        image = _opened(picture).convert("RGB")
        values = np.asarray(_opened(mask))
        if values.shape != (image.height, image.width):
            raise DamagedFileError(f"{mask} (not of the size of its picture)")
        if values.max(initial=0) > self.num_classes:
            raise DamagedFileError(f"{mask} (a class above {self.num_classes})")
        # In a mask, 0 is no class: it becomes 255.
        return image, Image.fromarray(values.astype(np.uint8) - np.uint8(1))


class RandomCrops(torch.utils.data.Dataset[Sample]):
    """The samples of a training, by their numbers 0, 1, 2, ...; each epoch has its own order."""

    def __init__(self, pictures: Masked, size: int, fill: tuple[int, ...], seed: int) -> None:
        """Keep what the samples are made of.

        Args:
            pictures: Training pictures.
            size: Side of a crop in pixels.
            fill: Colour where a picture is smaller than a crop.
            seed: Seed of the order and the crops.
        """
        self.pictures, self.size, self.fill, self.seed = pictures, size, fill, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def index(self, number: int) -> int:
        """Return the picture of a sample."""
        count = len(self.pictures.pictures)
        epoch = number // count
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng(derive(self.seed, "order", epoch))
            self._order = epoch, generator.permutation(count)
        return int(self._order[1][number % count])

    def __getitem__(self, number: int) -> Sample:
        """Return a sample; a picture that cannot be used is one without labels."""
        try:
            image, labels = self.pictures.load(self.index(number))
        except DamagedFileError as error:
            empty = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return Sample(empty, torch.full_like(empty[0], IGNORED), str(error))
        generator = np.random.default_rng(derive(self.seed, "crop", number))
        return random_crop(image, labels, self.size, self.fill, generator)


class WholePictures(torch.utils.data.Dataset[Sample]):
    """Pictures to test on: the shorter side resized, the labels as they are."""

    def __init__(self, pictures: Masked, size: int, indices: Sequence[int]) -> None:
        self.pictures, self.size, self.indices = pictures, size, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        """Return the sample of `indices[number]`."""
        try:
            image, labels = self.pictures.load(self.indices[number])
        except DamagedFileError as error:
            nothing = torch.zeros(3, 0, 0, dtype=torch.uint8)
            return Sample(nothing, nothing[0], str(error))
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return Sample(_tensor(resized), torch.from_numpy(np.array(labels)), "")


def random_crop(
    image: Image.Image,
    labels: Image.Image,
    size: int,
    fill: tuple[int, ...],
    generator: np.random.Generator,
) -> Sample:
    """Return a random crop of a picture and its labels, [size, size]."""
    ratio = generator.uniform(*SCALES)
    scale = size * ratio * min(1 / min(image.size), LONGEST / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    labels = labels.resize((width, height), Image.Resampling.NEAREST)
    box = _box(np.asarray(labels), size, generator)
    cropped = image.resize((width, height), Image.Resampling.BILINEAR).crop(box)
    pixels, values = _tensor(cropped), torch.from_numpy(np.array(labels.crop(box)))
    if generator.random() < 0.5:
        pixels, values = pixels.flip(2), values.flip(1)
    pixels = _recoloured(pixels, generator)
    image_out = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)
    labels_out = torch.full((size, size), IGNORED, dtype=torch.uint8)
    image_out[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    labels_out[: values.shape[0], : values.shape[1]] = values
    return Sample(image_out, labels_out, "")


def _box(
    labels: NDArray[np.uint8], size: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a crop that shows more than one class, if one can."""
    height, width = labels.shape
    for _ in range(CROPS):
        top = int(generator.integers(max(height - size, 0) + 1))
        left = int(generator.integers(max(width - size, 0) + 1))
        box = left, top, min(left + size, width), min(top + size, height)
        counts = np.bincount(labels[top : box[3], left : box[2]].ravel(), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < LARGEST_SHARE * counts.sum():
            break
    return box


def _recoloured(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Return pixels with other brightness, contrast, saturation and hue, each half of the time."""
    chances, draws = generator.random(4) < 0.5, generator.uniform(-1, 1, 4)
    changes = [
        lambda image: functional.adjust_brightness(image, 1 + BRIGHTNESS * draws[0]),
        lambda image: functional.adjust_contrast(image, 1 + CONTRAST * draws[1]),
        lambda image: functional.adjust_saturation(image, 1 + SATURATION * draws[2]),
        lambda image: functional.adjust_hue(image, HUE * draws[3]),
    ]
    order = (0, 1, 2, 3) if generator.random() < 0.5 else (0, 2, 3, 1)  # Contrast first or last.
    for number in order:
        if chances[number]:
            pixels = changes[number](pixels)
    return pixels


def _opened(path: Path) -> Image.Image:
    """Return the decoded image of a file.

    Raises:
        DamagedFileError: It cannot be decoded; the message is its name.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DamagedFileError(str(path)) from error


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
