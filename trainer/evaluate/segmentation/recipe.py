"""Settings of the segmentation protocol, and what they are for one encoder.

Source: paper appendix. The paper's numbers depend on the size of the encoder: a setting of null
takes those of ViT-B for encoders of up to 12 blocks, and those of ViT-L for deeper ones.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import ConfigError

Head = Literal["upernet", "linear"]
BASE_DEPTH = 12
"""Blocks of the deepest encoder that is trained as ViT-B is."""


class SegmentationConfig(Config):
    """Settings of the segmentation protocol."""

    head: Head = "upernet"
    """What predicts the classes: `upernet` (paper) from four blocks; `linear`, a batch
    normalisation and one linear layer on the last block. The encoder is trained with either."""
    untrained: bool = False
    """Whether the untrained encoders are trained and scored as well, one after another."""
    num_steps: PositiveInt | None = None
    """Optimiser steps; null is the paper's 60,000 for B and 160,000 for L."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Pictures per step, over all ranks; null is the paper's 32 for B and 16 for L."""
    learning_rate: PositiveFloat = 8e-5
    """Peak learning rate of AdamW (paper: 8e-5; authors' code: 1e-4)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from a block to the one before; null is the paper's 0.6 for B
    and 0.8 for L."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW (paper: 0.05)."""
    warmup_steps: NonNegativeInt = 1500
    """Steps in which the learning rate rises; it then falls to 0 linearly (paper: 1,500)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth rate of the last block; null is the paper's 0.1 for B and 0.2 for L."""
    crop_size: PositiveInt = 512
    """Side of a training crop and of a test window in pixels, rounded up to whole patches (paper:
    512, which is 518 for patches of 14)."""
    blocks: tuple[NonNegativeInt, ...] | None = None
    """Four blocks, counted from 0, that UperNet reads; null is the paper's 3, 5, 7, 11 for 12
    blocks and 7, 11, 15, 23 for 24, and the last of each quarter for other encoders."""
    channels: PositiveInt | None = None
    """Channels of UperNet; null is the width of the encoder, as BEiT does it."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the loss of UperNet's auxiliary head (mmsegmentation: 0.4); 0 leaves it out."""
    save_every_s: NonNegativeFloat = no_fingerprint(600.0)
    """Seconds between two states on disk, from which a killed evaluation continues."""


@dataclass(frozen=True)
class Recipe:
    """The settings of the protocol for one encoder."""

    head: Head
    num_steps: int
    batch_size: int
    learning_rate: float
    layer_decay: float
    weight_decay: float
    warmup_steps: int
    drop_path: float
    size: int
    """Side of a crop and of a window in pixels."""
    blocks: tuple[int, ...]
    channels: int
    auxiliary_weight: float
    save_every_s: float

    @property
    def stride(self) -> int:
        """Pixels from one test window to the next (mmsegmentation: two thirds of a window)."""
        return self.size * 2 // 3

    def learning_rate_factor(self, step: int) -> float:
        """Return what the learning rates are multiplied with at a step, counted from 0."""
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return rising * (1 - step / self.num_steps)


def is_plain(encoder: Any) -> bool:
    """Return whether an encoder is a plain vision transformer of timm, as is needed here."""
    needed = ("forward_intermediates", "set_input_size", "no_weight_decay", "blocks", "patch_embed")
    return all(hasattr(encoder, name) for name in needed)


def recipe_for(settings: SegmentationConfig, encoder: Any) -> Recipe:
    """Return the settings for an encoder.

    Args:
        settings: Section of the config.
        encoder: A vision transformer of timm, see `is_plain`.

    Raises:
        ConfigError: The settings do not fit the encoder.
    """
    depth, base = len(encoder.blocks), len(encoder.blocks) <= BASE_DEPTH
    patch = max(encoder.patch_embed.patch_size)

    def or_papers(value: Any, small: Any, large: Any) -> Any:
        return (small if base else large) if value is None else value

    recipe = Recipe(
        head=settings.head,
        num_steps=or_papers(settings.num_steps, 60_000, 160_000),
        batch_size=or_papers(settings.batch_size, 32, 16),
        learning_rate=settings.learning_rate,
        layer_decay=or_papers(settings.layer_decay, 0.6, 0.8),
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        drop_path=or_papers(settings.drop_path, 0.1, 0.2),
        size=-(-settings.crop_size // patch) * patch,
        blocks=_blocks(depth) if settings.blocks is None else settings.blocks,
        channels=settings.channels or encoder.embed_dim,
        auxiliary_weight=settings.auxiliary_weight,
        save_every_s=settings.save_every_s,
    )
    if recipe.warmup_steps >= recipe.num_steps:
        raise ConfigError(
            f"segmentation.warmup_steps {recipe.warmup_steps} is not below "
            f"segmentation.num_steps {recipe.num_steps}"
        )
    if len(recipe.blocks) != 4 or max(recipe.blocks) >= depth:
        raise ConfigError(
            f"key 'segmentation.blocks' has value {list(recipe.blocks)}: expected four numbers "
            f"below {depth}, the number of blocks"
        )
    return recipe


def _blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks that UperNet reads; the paper's for 12 and 24 blocks."""
    papers = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
    evenly = tuple(max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4))
    return papers.get(depth, evenly)
