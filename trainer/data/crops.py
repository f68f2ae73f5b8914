"""Multi-crop on the CPU: from encoded images to uint8 crops and the draws for their colours.

Source: paper appendix and the authors' code (augmentation), StableRep's code (downsampling). All
random choices for a sample are drawn here, from a seed of (run seed, epoch, position), and are
stored with the crops. So a batch is the same for any number of workers and ranks, on any device,
and after any interruption.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2f

from trainer.data.masking import draw_patch_mask
from trainer.data.photometric import (
    DOWNSAMPLE,
    NUM_DRAWS,
    PhotometricConfig,
    draw_global,
    draw_local,
)
from transforms.core.config import Config, Probability

Range = tuple[float, float]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class CropsConfig(Config):
    """Number, sizes and scales of the crops of an image."""

    num_global: PositiveInt = 1
    """Global crops per image (paper: 1; 2 if only crops of the same image are positives)."""
    num_local: NonNegativeInt = 4
    """Local crops per image (paper: 4; 0 without multi-crop)."""
    local_size: PositiveInt = 96
    """Side of a local crop in pixels, a multiple of the patch size (paper: 96; 98 for patch size
    14). Global crops have the encoder's `image_size`."""
    global_scale: tuple[PositiveShare, PositiveShare] | None = None
    """Smallest and largest share of the image's area that a global crop covers; null is the range
    of the authors' code: 0.32 to 1, or 0.14 to 1 without local crops."""
    local_scale: tuple[PositiveShare, PositiveShare] = (0.08, 0.32)
    """Smallest and largest share of the image's area that a local crop covers (the authors' code:
    0.08 to 0.32)."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the covered area (torchvision and the authors'
    code: 3/4 to 4/3)."""
    flip: Probability = 0.5
    """Probability of mirroring a crop left to right (BYOL and the authors' code: 0.5)."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        for name in ("global_scale", "local_scale", "ratio"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} is {bounds}: expected low <= high")
        return self


def global_scale(config: CropsConfig) -> Range:
    """Return the scale of global crops; the default depends on whether there are local crops."""
    if config.global_scale is not None:
        return config.global_scale
    return (0.32, 1.0) if config.num_local else (0.14, 1.0)


@dataclass(frozen=True)
class Crops:
    """Crops of I images, image by image: G global and L local crops each.

    The draws are the input of `photometric.augment`.
    """

    global_pixels: Tensor
    """uint8 [I * G, 3, S, S]."""
    global_draws: Tensor
    """float32 [I * G, number of draws]."""
    local_pixels: Tensor
    """uint8 [I * L, 3, s, s]."""
    local_draws: Tensor
    """float32 [I * L, number of draws]."""
    patch_masks: Tensor
    """bool [I * G, P], the patches to hide if the step masks this global crop."""


def decode(image: bytes) -> Tensor:
    """Return the pixels of an encoded image, uint8 [3, H, W].

    Torchvision's decoder was the fastest of those available. Decoding JPEGs at half the size would
    save only a twentieth of the time (most of it is entropy decoding), and local crops are rarely
    large enough to allow it.

    Raises:
        RuntimeError: It cannot be decoded.
    """
    encoded = torch.frombuffer(bytearray(image), dtype=torch.uint8)
    pixels: Tensor = decode_image(encoded, mode=ImageReadMode.RGB)
    return pixels


def crop_image(
    pixels: Tensor,
    crops: CropsConfig,
    photometric: PhotometricConfig,
    *,
    global_size: int,
    patch_size: int,
    patch_share: float,
    seed: int,
) -> Crops:
    """Return all crops of one image.

    Args:
        pixels: uint8 [3, H, W].
        crops: Number, sizes and scales of the crops.
        photometric: Probabilities and strengths of the colour draws.
        global_size: Side of a global crop in pixels.
        patch_size: Side of a patch in pixels, for the masks.
        patch_share: Share of the patches that a mask hides.
        seed: Seed of this image at this position.
    """
    generator = np.random.default_rng(seed)
    side, scale = pixels.shape[1:], global_scale(crops)
    num_patches = (global_size // patch_size) ** 2
    # The order of the draws is part of every training: no change may move one.
    global_cuts = [_draw_cut(side, scale, crops, generator) for _ in range(crops.num_global)]
    global_draws = [draw_global(photometric, generator) for _ in range(crops.num_global)]
    masks = [draw_patch_mask(num_patches, patch_share, generator) for _ in range(crops.num_global)]
    local_cuts = [
        _draw_cut(side, crops.local_scale, crops, generator) for _ in range(crops.num_local)
    ]
    local_draws = [draw_local(photometric, generator) for _ in range(crops.num_local)]
    global_rows, local_rows = _rows(global_draws), _rows(local_draws)
    images = _Downsampled(pixels, photometric)
    return Crops(
        global_pixels=_cut(images, global_cuts, global_rows, global_size),
        global_draws=global_rows,
        local_pixels=_cut(images, local_cuts, local_rows, crops.local_size),
        local_draws=local_rows,
        patch_masks=torch.from_numpy(np.stack(masks)),
    )


def concatenate(parts: Sequence[Crops]) -> Crops:
    """Return the crops of several images, in order."""
    names = ("global_pixels", "global_draws", "local_pixels", "local_draws", "patch_masks")
    return Crops(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def draw_box(
    height: int, width: int, scale: Range, ratio: Range, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the box of a crop with the distribution of torchvision's `RandomResizedCrop`.

    After ten draws that do not fit, it is the largest centred box with an aspect within `ratio`.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height.
        generator: Source of the draws.

    Returns:
        (top, left, height, width).
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(0, height - box_height + 1))
            left = int(generator.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(1, round(height * aspect)))
    box_height = min(height, max(1, round(width / aspect)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True)
class _Cut:
    """Part of an image that becomes a crop."""

    box: tuple[int, int, int, int]
    """(top, left, height, width)."""
    mirrored: bool


def _draw_cut(
    side: Sequence[int], scale: Range, config: CropsConfig, generator: np.random.Generator
) -> _Cut:
    """Draw a part of an image of (height, width), mirrored with probability `config.flip`."""
    box = draw_box(side[0], side[1], scale, config.ratio, generator)
    return _Cut(box, generator.random() < config.flip)


def _rows(draws: list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, NUM_DRAWS)


class _Downsampled:
    """An image, and the same one downsampled and upsampled again, made when a crop needs it."""

    def __init__(self, pixels: Tensor, config: PhotometricConfig) -> None:
        self._of_size = {0: pixels}
        self._before_crop = config.downsampled == "image"

    def __call__(self, size: int) -> Tensor:
        """Return the image with the detail of one whose shorter side has `size` pixels (0: all)."""
        pixels = self._of_size[0]
        if not self._before_crop or size >= min(pixels.shape[1:]):
            return pixels
        if size not in self._of_size:
            small = v2f.resize(pixels, [size], antialias=True)
            self._of_size[size] = v2f.resize(small, list(pixels.shape[1:]), antialias=True)
        return self._of_size[size]


def _cut(images: _Downsampled, cuts: Sequence[_Cut], draws: Tensor, size: int) -> Tensor:
    """Return crops of an image, uint8 [N, 3, size, size], bicubic.

    Args:
        images: The image.
        cuts: The part of each crop.
        draws: [N, NUM_DRAWS].
        size: Side of a crop in pixels.
    """
    crops = []
    for cut, detail in zip(cuts, draws[:, DOWNSAMPLE].int().tolist(), strict=True):
        crop: Tensor = v2f.resized_crop(
            images(detail),
            *cut.box,
            [size, size],
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        crops.append(crop.flip(-1) if cut.mirrored else crop)
    return torch.stack(crops) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8)
