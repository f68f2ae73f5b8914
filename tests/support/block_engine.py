"""Image engine without a model: its black and white blocks encode caption and seed."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from transforms.core.counters import Count
from transforms.engines.image.base import (
    GeneratorConfig,
    ImageEngineConfig,
    ImageEngineSpec,
    Painted,
    Pixels,
)
from transforms.engines.model_refs import FindBuiltin, Model
from transforms.images.encoding import EncodingConfig
from transforms.images.producer import PaintPlan

_BLOCK = 8


class BlockConfig(ImageEngineConfig):
    """Registration of `BlockEngine`."""

    name: Literal["blocks"] = "blocks"
    batch_size: int = 8

    def find_model(self, name: str, revision: str | None, find_builtin: FindBuiltin) -> Model:
        return Model(name, None, name)

    def open(self, model: Model, generator: GeneratorConfig) -> "BlockEngine":
        return BlockEngine(self.batch_size)


def block_spec(batch_size: int = 8) -> ImageEngineSpec:
    """Return the spec of a `BlockEngine`."""
    model = Model("blocks", None, "blocks")
    return ImageEngineSpec(model, BlockConfig(batch_size=batch_size), GeneratorConfig())


class BlockEngine:
    """An engine whose captions choose the faults.

    "raise": the engine raises on every batch that holds the caption; "blank N" and "broken N": the
    caption's first N images are of one colour, or not finite.
    """

    def __init__(self, batch_size: int = 8) -> None:
        self.batch_size = batch_size
        self.dead = False
        self.batches: list[int] = []
        self._painted: Counter[str] = Counter()

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        assert 0 < len(texts) == len(seeds) <= self.batch_size
        self.batches.append(len(texts))
        if self.dead or any("raise" in text for text in texts):
            raise RuntimeError("no such colour")
        pixels, rejects = [], []
        for text, seed in zip(texts, seeds, strict=True):
            self._painted[text] += 1
            word, _, number = text.partition(" ")
            bad = number.isdigit() and self._painted[text] <= int(number)
            image = blocks(text, seed)
            pixels.append(np.full_like(image, 200) if bad and word == "blank" else image)
            rejects.append(Count.IMAGE_NOT_FINITE if bad and word == "broken" else None)
        return Painted(np.stack(pixels), tuple(rejects))


def blocks(text: str, seed: int) -> Pixels:
    """Return the picture of a caption and a seed: 64 bits as 8x8 blocks, which JPEG keeps."""
    digest = hashlib.blake2b(f"{text}|{seed}".encode(), digest_size=8).digest()
    bits = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(8, 8) * np.uint8(255)
    plane = bits.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    return np.repeat(plane[:, :, None], 3, axis=2)


def paint_plan(**changes: object) -> PaintPlan:
    """Return a plan for painting with blocks; `changes` are other fields of `PaintPlan`."""
    fields = {
        "captions_per_shard": 6,
        "images_per_caption": 4,
        "generator_digest": "generator",
        "settings": {"model": "blocks"},
        "encoding": EncodingConfig(threads=2),
        "max_repaints": 3,
        "min_contrast": 8,
        "batch_timeout_s": 60.0,
    }
    return PaintPlan(**{**fields, **changes})  # type: ignore[arg-type]
