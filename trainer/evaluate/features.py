"""Frozen features: the cls token of the last block for every picture of a data set.

Source: paper section 4. Pictures are resized so that the shorter side is the encoder's image size
(bicubic), cropped to the central square and normalised with the mean and std that the encoder was
trained with; the reference uses CLIP's for all encoders.

Whatever is scored is a `Subject`. A score sheet has three kinds: the trained encoder, the same
architecture with fresh weights (the difference is what training adds), and raw pixels.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.evaluate.datasets import Picture, Split
from transforms.core.errors import DamagedFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.models.vit import EncoderConfig

PIXELS_SIDE = 16
"""Side in pixels of the pictures in the pixel baseline."""

Extract = Callable[[Split, Callable[[int], object]], NDArray[np.float32]]
"""(split, callback with the number of pictures just done) -> features [N, D]."""


@dataclass(frozen=True)
class Subject:
    """A way to turn pictures into features, which is scored."""

    kind: str
    """Column of the score sheet: "trained", "untrained" or "pixels"."""
    extract: Extract
    encoder: "nn.Module | None" = None
    """The network, for protocols that need more than frozen features; None for pixels."""


@dataclass(frozen=True)
class Features:
    """Features of one split and their labels."""

    values: NDArray[np.float32]  # [N, D]
    labels: NDArray[np.int64]  # [N]


@dataclass(frozen=True)
class FrozenFeatures:
    """One subject's features of the three splits of a data set."""

    train: Features
    val: Features
    test: Features


@dataclass(frozen=True)
class Extraction:
    """How features are computed; affects the speed, and scores only by rounding."""

    device: str
    batch_size: int
    num_workers: int


def encoder_subject(
    kind: str, encoder: "nn.Module", config: "EncoderConfig", extraction: Extraction
) -> Subject:
    """Return an encoder as a subject; moves it to the device and into evaluation mode."""
    import torch

    network: Any = encoder.to(extraction.device).eval()
    mean = torch.tensor(config.mean, device=extraction.device).view(3, 1, 1)
    std = torch.tensor(config.std, device=extraction.device).view(3, 1, 1)

    @torch.no_grad()  # Not inference mode: a sharded network continues its training.
    def extract(split: Split, done: Callable[[int], object]) -> NDArray[np.float32]:
        features = []
        for batch in _batches(split, config.image_size, extraction):
            pixels = batch.to(extraction.device, non_blocking=True).float() / 255
            tokens = network.forward_features((pixels - mean) / std)  # [B, 1 + patches, D]
            features.append(tokens[:, 0].float().cpu().numpy())
            done(len(batch))
        return np.concatenate(features)

    return Subject(kind, extract, encoder)


def pixels_subject() -> Subject:
    """Return the baseline that any encoder should beat: small pictures as features."""

    def extract(split: Split, done: Callable[[int], object]) -> NDArray[np.float32]:
        features = []
        for picture in split.pictures:
            square = load_square(picture, PIXELS_SIDE)
            features.append(np.asarray(square, dtype=np.float32).ravel() / 255)
            done(1)
        return np.stack(features)

    return Subject("pixels", extract)


def load_square(picture: Picture, size: int) -> Image.Image:
    """Return a picture as an RGB square: the shorter side resized (bicubic), the centre cropped.

    Args:
        picture: An encoded image, the file that holds it, or its pixels.
        size: Side of the square in pixels.

    Raises:
        DamagedFileError: It cannot be decoded; a test set must not shrink silently.
    """
    try:
        image = _decode(picture)
    except (UnidentifiedImageError, OSError) as error:
        where = str(picture) if isinstance(picture, Path) else "a picture of a built-in test set"
        raise DamagedFileError(
            f"{where} cannot be decoded as an image: repair or remove it"
        ) from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _decode(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture).convert("RGB")
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        return opened.convert("RGB")


def _batches(split: Split, size: int, extraction: Extraction) -> "Iterator[Tensor]":
    """Yield the pictures in order, uint8 [B, 3, size, size]."""
    from torch.utils.data import DataLoader

    yield from DataLoader(
        split.pictures,  # type: ignore[arg-type]  # a sequence serves as a dataset
        batch_size=extraction.batch_size,
        num_workers=extraction.num_workers,
        collate_fn=partial(_collate, size=size),
        pin_memory=extraction.device.startswith("cuda"),
    )


def _collate(pictures: Sequence[Picture], size: int) -> "Tensor":
    import torch

    squares = np.stack([np.asarray(load_square(picture, size)) for picture in pictures])
    return torch.from_numpy(squares).permute(0, 3, 1, 2)
