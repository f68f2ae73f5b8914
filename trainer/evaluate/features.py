"""Frozen features: the cls token of the last block for every picture of a data set.

Source: paper section 4. Pictures are resized so that the shorter side is the encoder's image size
(bicubic), cropped to the central square and normalised with the mean and std that the encoder was
trained with. Bicubic is from the authors' code, which uses CLIP's mean and std for all encoders.

Pictures that cannot be decoded are left out, counted and named.

Whatever is scored is a `Subject`. A score sheet has three kinds: the trained encoder, the same
architecture with fresh weights (the difference is what training adds), and raw pixels.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.evaluate.datasets import Picture
from trainer.evaluate.models import Input
from transforms.core.errors import ConfigError, DamagedFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.models.vit import EncoderConfig

Precision = Literal["fp32", "bf16"]

PIXELS_SIDE = 16
"""Side in pixels of the pictures in the pixel baseline."""


class Extracted(NamedTuple):
    """Features of pictures; rows of pictures that cannot be decoded are 0."""

    values: NDArray[np.float32]  # [N, D]
    readable: NDArray[np.bool_]  # [N]


Extract = Callable[[Sequence[Picture], Callable[[int], object]], Extracted]
"""(pictures, callback with the number of pictures just done) -> features."""


@dataclass(frozen=True)
class Subject:
    """A way to turn pictures into features, which is scored."""

    kind: str
    """Column of the score sheet: "trained", "untrained" or "pixels"."""
    extract: Extract
    encoder: "nn.Module | None" = None
    """The network, for protocols that need more than frozen features; None for pixels."""
    input: Input | None = None
    """The images that the network takes; None for pixels."""
    digest: str = ""
    """Digest of what the features of a picture depend on; empty: they are not cached."""
    embed: "Callable[[Tensor], Tensor] | None" = None
    """uint8 images [B, 3, S, S] of the encoder's size -> float32 features [B, D] on the encoder's
    device, without gradients; None for pixels."""


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
    precision: Precision = "fp32"


def encoder_subject(
    kind: str,
    encoder: "nn.Module",
    shape: "Input | EncoderConfig",
    extraction: Extraction,
    digest: str = "",
) -> Subject:
    """Return an encoder as a subject; moves it to the device and into evaluation mode.

    Args:
        kind: Column of the score sheet.
        encoder: A model of timm, or a network with timm's `forward_features`.
        shape: Size and normalisation of its input.
        extraction: How to compute features.
        digest: Digest of the weights; empty: features are not cached.
    """
    import torch

    network: Any = encoder.to(extraction.device).eval()
    mean = torch.tensor(shape.mean, device=extraction.device).view(3, 1, 1)
    std = torch.tensor(shape.std, device=extraction.device).view(3, 1, 1)
    device_type = torch.device(extraction.device).type
    reduced = extraction.precision == "bf16"

    @torch.no_grad()  # Not inference mode: a sharded network continues its training.
    def embed(images: "Tensor") -> "Tensor":
        pixels = images.to(extraction.device, non_blocking=True).float() / 255
        with torch.autocast(device_type, torch.bfloat16, enabled=reduced):
            found = _features(network, (pixels - mean) / std)
        return found.float()

    def extract(pictures: Sequence[Picture], done: Callable[[int], object]) -> Extracted:
        features, readable = [], []
        for batch, decoded in _batches(pictures, shape.image_size, extraction):
            features.append(embed(batch).cpu().numpy())
            readable.append(decoded)
            done(len(batch))
        return _extracted(features, readable)

    taken = Input(shape.image_size, tuple(shape.mean), tuple(shape.std))
    made_from = digest and f"{digest} {taken} {extraction.precision}"
    return Subject(kind, extract, encoder, taken, made_from, embed)


def _features(network: Any, images: "Tensor") -> "Tensor":
    """Return what timm's own call returns without a classifier, [B, D].

    A network of a training has `forward_features` alone, which may be sharded over ranks.
    """
    if hasattr(network, "forward_head"):
        pooled: Tensor = network(images)
        return pooled
    first: Tensor = network.forward_features(images)[:, 0]
    return first


def _extracted(features: list[Any], readable: list[Any]) -> Extracted:
    rows, decoded = np.concatenate(features).astype(np.float32), np.concatenate(readable)
    if not np.isfinite(rows[decoded]).all():
        raise ConfigError("the features of some pictures are not finite: the encoder is broken")
    rows[~decoded] = 0
    return Extracted(rows, decoded)


def pixels_subject(side: int = PIXELS_SIDE) -> Subject:
    """Return the baseline that any encoder should beat: small pictures as features.

    Args:
        side: Their side in pixels.
    """

    def extract(pictures: Sequence[Picture], done: Callable[[int], object]) -> Extracted:
        features, readable = [], []
        for picture in pictures:
            squares, decoded = _decoded([picture], side)
            features.append(squares.reshape(1, -1).astype(np.float32) / 255)
            readable.append(decoded)
            done(1)
        return _extracted(features, readable)

    return Subject("pixels", extract, digest=f"pixels {side}")


def load_square(picture: Picture, size: int, shorter: int | None = None) -> Image.Image:
    """Return a picture as an RGB square: the shorter side resized (bicubic), the centre cropped.

    Args:
        picture: An encoded image, the file that holds it, or its pixels.
        size: Side of the square in pixels.
        shorter: Shorter side in pixels before the crop; None is `size`.

    Raises:
        DamagedFileError: It cannot be decoded.
    """
    image = load_picture(picture)
    scale = (shorter or size) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load_picture(picture: Picture) -> Image.Image:
    """Return a picture as an RGB image.

    Raises:
        DamagedFileError: It cannot be decoded.
    """
    try:
        return _decode(picture)
    except (UnidentifiedImageError, OSError) as error:
        where = str(picture) if isinstance(picture, Path) else "a picture of a built-in test set"
        raise DamagedFileError(
            f"{where} cannot be decoded as an image: repair or remove it"
        ) from error


def _decode(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture).convert("RGB")
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        return opened.convert("RGB")


def _batches(
    pictures: Sequence[Picture], size: int, extraction: Extraction
) -> "Iterator[tuple[Tensor, NDArray[np.bool_]]]":
    """Yield the pictures in order, uint8 [B, 3, size, size], and which could be decoded, [B]."""
    from torch.utils.data import DataLoader

    yield from DataLoader(
        pictures,  # type: ignore[arg-type]  # a sequence serves as a dataset
        batch_size=extraction.batch_size,
        num_workers=extraction.num_workers,
        collate_fn=partial(_collate, size=size),
        pin_memory=extraction.device.startswith("cuda"),
    )


def _collate(pictures: Sequence[Picture], size: int) -> "tuple[Tensor, NDArray[np.bool_]]":
    import torch

    squares, readable = _decoded(pictures, size)
    return torch.from_numpy(squares).permute(0, 3, 1, 2), readable


def _decoded(pictures: Sequence[Picture], size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return squares [N, size, size, 3] and which could be decoded; the others are black."""
    squares = np.zeros((len(pictures), size, size, 3), dtype=np.uint8)
    readable = np.ones(len(pictures), dtype=bool)
    for index, picture in enumerate(pictures):
        try:
            squares[index] = np.asarray(load_square(picture, size))
        except DamagedFileError:
            readable[index] = False
    return squares, readable
