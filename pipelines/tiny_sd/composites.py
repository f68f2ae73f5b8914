"""Training pictures: batches of drawings pasted on backgrounds, 64x64.

All randomness comes from the given generator, so a seed determines the pictures. The objects are
large and nearly centred: a small model learns what a thing is long before where it may be.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.tiny_sd.drawings import Drawing
from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS, SIZE, paint_background

OBJECT_SIDES = (52, 56)
"""Longer side of a pasted drawing, in pixels."""

MAX_SHIFT = 1
"""Largest distance of a drawing from the centre along each axis, in pixels."""

VARIANTS = 48
"""Number of painted variants of every background."""

COLOUR_SHARE = 0.45
"""Share of pictures on a plain colour; the others are on a painted scene."""


@dataclass(frozen=True)
class Batch:
    """Composites with their concepts, backgrounds and icon sets."""

    pictures: NDArray[np.uint8]  # [N, SIZE, SIZE, 3]
    concepts: NDArray[np.int64]  # [N], index into the composer's concepts
    backgrounds: NDArray[np.int64]  # [N], index into BACKGROUNDS
    vendors: list[str]


class Composer:
    """Source of random composites of the drawings of some concepts."""

    def __init__(self, drawings: list[Drawing], concepts: list[str], seed: int) -> None:
        """Scale every drawing and paint every background once.

        Args:
            drawings: Cut-outs; each concept needs at least one.
            concepts: Names; their order defines the concept index.
            seed: Seed of the painted backgrounds.
        """
        rng = np.random.default_rng([seed, 1])
        self.concepts = concepts
        self._cutouts = [[_scaled(d.rgba, side) for side in OBJECT_SIDES] for d in drawings]
        self._vendors = [d.vendor for d in drawings]
        self._of_concept = [
            [i for i, d in enumerate(drawings) if d.concept == name] for name in concepts
        ]
        missing = [n for n, found in zip(concepts, self._of_concept, strict=True) if not found]
        if missing:
            raise ValueError(f"No drawing of {missing}: every concept needs at least one.")
        self._backgrounds = np.stack(
            [[paint_background(name, rng) for _ in range(VARIANTS)] for name in BACKGROUNDS]
        )  # [B, VARIANTS, SIZE, SIZE, 3]

    def sample(
        self, size: int, rng: np.random.Generator, concepts: NDArray[np.int64] | None = None
    ) -> Batch:
        """Return `size` composites, of the given concept indices or of random ones."""
        if concepts is None:
            concepts = rng.integers(len(self.concepts), size=size)
        plain = rng.random(size) < COLOUR_SHARE
        backgrounds = np.where(
            plain,
            rng.integers(len(COLOURS), size=size),
            rng.integers(len(COLOURS), len(BACKGROUNDS), size=size),
        )
        pictures = self._backgrounds[backgrounds, rng.integers(VARIANTS, size=size)]
        flip = rng.random(size) < 0.5
        pictures[flip] = pictures[flip, :, ::-1]
        vendors = []
        for picture, concept in zip(pictures, concepts, strict=True):
            members = self._of_concept[concept]
            drawing = members[rng.integers(len(members))]
            cutout = self._cutouts[drawing][rng.integers(len(OBJECT_SIDES))]
            paste(picture, cutout, rng)
            vendors.append(self._vendors[drawing])
        return Batch(pictures, np.asarray(concepts), backgrounds, vendors)


def paste(picture: NDArray[np.uint8], cutout: NDArray[np.uint16], rng: np.random.Generator) -> None:
    """Paste a premultiplied cut-out near the centre of `picture`, in place.

    Args:
        picture: uint8 [SIZE, SIZE, 3].
        cutout: uint16 [H, W, 4], colour times alpha (0 to 65025) and alpha (0 to 255).
        rng: Random generator of the shift.
    """
    height, width = cutout.shape[:2]
    room_y, room_x = SIZE - height, SIZE - width
    top, left = (
        int(np.clip(room // 2 + rng.integers(-MAX_SHIFT, MAX_SHIFT + 1), 0, room))
        for room in (room_y, room_x)
    )
    region = picture[top : top + height, left : left + width]
    under = region.astype(np.uint32) * (255 - cutout[..., 3:].astype(np.uint32))
    region[:] = ((under + cutout[..., :3] + 127) // 255).astype(np.uint8)


def _scaled(rgba: NDArray[np.uint8], side: int) -> NDArray[np.uint16]:
    """Scale the longer side of a cut-out to `side` pixels, premultiplied to keep edges clean."""
    height, width = rgba.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    alpha = rgba[..., 3:].astype(np.float32)
    layers = np.concatenate([rgba[..., :3] * alpha / 255, alpha], axis=2)
    scaled = [
        np.asarray(Image.fromarray(layers[..., c]).resize(size, Image.Resampling.BOX))
        for c in range(4)
    ]
    stacked = np.stack(scaled, axis=2).clip(0, 255)
    stacked[..., :3] = np.minimum(stacked[..., :3], stacked[..., 3:]) * 255
    return stacked.round().astype(np.uint16)
