"""Views of labelled pictures for protocols that train: random crops, and the centre for tests.

A random view is a pure function of (seed, epoch, picture), and the pictures of a step of (seed,
step): no number of workers or ranks, and no interruption, changes what a training sees.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.crops import draw_box
from trainer.evaluate.datasets import Picture
from trainer.evaluate.features import load_picture, load_square
from transforms.core.errors import DamagedFileError
from transforms.core.seeding import derive

SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
"""Share of the area and aspect of a random crop (torchvision); probability of mirroring it."""

T = TypeVar("T")
Key = tuple[int, int]
"""(epoch, index of a picture)."""


class View(Protocol):
    """What is shown of a picture; it is sent to worker processes."""

    def __call__(self, picture: Picture, key: Key) -> Image.Image:
        """Return an RGB image; all of a view have the same size.

        Raises:
            DamagedFileError: The picture cannot be decoded.
        """


@dataclass(frozen=True)
class RandomCrop:
    """A random part of a picture, resized to a square (bicubic) and mirrored half of the time."""

    size: int
    """Side of the square in pixels."""
    seed: int

    def __call__(self, picture: Picture, key: Key) -> Image.Image:
        """Return the view."""
        image = load_picture(picture)
        generator = np.random.default_rng(derive(self.seed, "random crop", *key))
        top, left, height, width = draw_box(image.height, image.width, SCALE, RATIO, generator)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self.size, self.size), Image.Resampling.BICUBIC)
        mirrored = generator.random() < FLIP
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


@dataclass(frozen=True)
class Centre:
    """The central square of a resized picture."""

    size: int
    """Side of the square in pixels."""
    shorter: int
    """Shorter side of the resized picture in pixels."""

    def __call__(self, picture: Picture, key: Key) -> Image.Image:
        """Return the view."""
        return load_square(picture, self.size, self.shorter)


@dataclass(frozen=True)
class Order:
    """Which pictures each step of a training takes.

    Every epoch takes the pictures in another order; those that do not fill a batch are left out.
    """

    num_pictures: int
    batch_size: int
    num_epochs: int
    seed: int

    @property
    def batch(self) -> int:
        """Pictures of a step: `batch_size`, or all of fewer pictures."""
        return min(self.batch_size, self.num_pictures)

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.num_epochs * (self.num_pictures // self.batch)

    def keys(self, step: int) -> list[Key]:
        """Return the pictures of a step, over all ranks."""
        epoch, number = divmod(step, self.num_pictures // self.batch)
        order = _shuffled(derive(self.seed, "epoch", epoch), self.num_pictures)
        chosen = order[number * self.batch : (number + 1) * self.batch]
        return [(epoch, int(index)) for index in chosen]


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)


def chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield values in order, `size` at a time; the last chunk may be shorter."""
    return (values[first : first + size] for first in range(0, len(values), size))


class Batch(NamedTuple):
    """Views of the pictures that could be decoded."""

    images: Tensor
    """uint8 [B, 3, S, S]."""
    indices: list[int]
    """Index of each picture."""
    unreadable: list[int]
    """Indices of the other pictures."""


def batches(
    pictures: Sequence[Picture],
    view: View,
    keys: Iterable[Sequence[Key]],
    *,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Yield one batch for each entry of `keys`.

    Args:
        pictures: The pictures.
        view: What to show of them.
        keys: The pictures of each batch; read ahead of the batches.
        num_workers: Processes that decode; 0 decodes in this process.
        pin_memory: Whether images are in memory that a GPU copies from directly.
    """
    yield from DataLoader(
        _Views(pictures, view),
        batch_sampler=keys,  # type: ignore[arg-type]  # any iterable of keys serves
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


class _Views(Dataset[tuple[int, NDArray[np.uint8] | None]]):
    def __init__(self, pictures: Sequence[Picture], view: View) -> None:
        self._pictures, self._view = pictures, view

    def __getitem__(self, key: Key) -> tuple[int, NDArray[np.uint8] | None]:
        try:
            return key[1], np.asarray(self._view(self._pictures[key[1]], key))
        except DamagedFileError:
            return key[1], None


def _collate(views: Sequence[tuple[int, NDArray[np.uint8] | None]]) -> Batch:
    images = [image for _, image in views if image is not None]
    stacked = np.stack(images) if images else np.empty((0, 1, 1, 3), np.uint8)
    return Batch(
        torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(),
        [index for index, image in views if image is not None],
        [index for index, image in views if image is None],
    )
