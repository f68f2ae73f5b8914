"""From a rank's batch on the CPU to the pieces that the networks take, on the device.

All that has to be counted is counted here on the CPU, so that a step never waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.masking import choose_masked_images
from trainer.data.photometric import to_device
from trainer.losses import ibot

Augment = Callable[[Tensor, Tensor], Tensor]
"""From uint8 pixels and their draws to normalised images on the device."""


@dataclass(frozen=True)
class Masked:
    """The masked patches of a piece."""

    mask: Tensor
    """bool [n * M * G, P], all False for crops that are not masked."""
    patches: Tensor
    """int64 [T], the same patches, counted over all n * M * G * P."""
    weights: Tensor
    """float64 [T], what each adds to the mean over the masked images of an average rank."""
    among: slice
    """Where they stand among the rank's."""


@dataclass(frozen=True)
class Piece:
    """Some of a rank's captions: n captions of M images with G global and L local crops each."""

    global_images: Tensor
    """[n * M * G, 3, S, S], augmented."""
    masked: Masked | None
    """None without iBOT."""
    global_ids: Tensor
    """int64 [n * M * G]: two crops are positives of each other where these are equal."""
    local_images: Tensor | None
    """[n * M * L, 3, s, s], augmented; None where L is 0."""
    local_ids: Tensor
    """int64 [n * M * L]."""
    share: float
    """Its part of the rank's captions."""
    first_key: int
    """Where its first global crop stands among the keys of all ranks."""


@dataclass(frozen=True)
class StepMasks:
    """The patches to hide in a rank's global crops."""

    masks: Tensor
    """bool [N * M * G, P]."""
    images_per_rank: float
    """Masked crops of the batch, over the number of ranks."""


def image_ids(
    batch: Batch, positives: Literal["caption", "image"], images_per_caption: int
) -> Tensor:
    """int64 [N * M], equal for images that are positives: the caption's id, or the image's own."""
    if positives == "caption":
        return batch.caption_ids.repeat_interleave(images_per_caption)
    numbers = torch.arange(images_per_caption)
    return (batch.positions[:, None] * images_per_caption + numbers).flatten()


def step_masks(
    batch: Batch, *, first_position: int, captions_per_batch: int, share: float, seed: int
) -> StepMasks:
    """The patches to hide, in the crops that the step chose to mask.

    Crops are chosen by position over the batch of all ranks: any number of ranks masks the same.

    Args:
        batch: A rank's.
        first_position: Of the batch.
        captions_per_batch: Over all ranks.
        share: Of the global crops that are masked.
        seed: Of this step.
    """
    per_caption = len(batch.crops.patch_masks) // len(batch.positions)
    chosen = choose_masked_images(captions_per_batch * per_caption, share, seed)
    slots = (batch.positions - first_position).numpy()
    mine = torch.from_numpy(chosen.reshape(-1, per_caption)[slots].reshape(-1, 1))
    images_per_rank = int(chosen.sum()) / distributed.world_size()
    return StepMasks(batch.crops.patch_masks & mine, images_per_rank)


def split(
    batch: Batch,
    ids: Tensor,
    masks: StepMasks | None,
    num_pieces: int,
    augment: Augment,
    device: torch.device,
) -> list[Piece]:
    """The batch in `num_pieces` pieces of equally many images.

    Args:
        batch: A rank's, on the CPU.
        ids: int64 [N * M] from `image_ids`.
        masks: From `step_masks`, or None.
        num_pieces: A divisor of the number of captions N.
        augment: Carries out the draws.
        device: Where pieces are wanted.
    """
    crops = batch.crops
    num_images = len(ids)
    num_global = len(crops.global_pixels) // num_images
    num_local = len(crops.local_pixels) // num_images
    size = num_images // num_pieces
    keys_before = distributed.rank() * num_images * num_global
    tokens_before = 0
    pieces = []
    for first in range(0, num_images, size):
        globals_ = slice(first * num_global, (first + size) * num_global)
        locals_ = slice(first * num_local, (first + size) * num_local)
        masked = None
        if masks is not None:
            masked = _masked(masks, globals_, tokens_before, device)
            tokens_before = masked.among.stop
        own_ids = ids[first : first + size]
        local_images = None
        if num_local:
            local_images = augment(crops.local_pixels[locals_], crops.local_draws[locals_])
        pieces.append(
            Piece(
                global_images=augment(crops.global_pixels[globals_], crops.global_draws[globals_]),
                masked=masked,
                global_ids=to_device(own_ids.repeat_interleave(num_global), device),
                local_images=local_images,
                local_ids=to_device(own_ids.repeat_interleave(num_local), device),
                share=size / num_images,
                first_key=keys_before + globals_.start,
            )
        )
    return pieces


def _masked(masks: StepMasks, crops: slice, tokens_before: int, device: torch.device) -> Masked:
    mask = masks.masks[crops]
    image, _ = mask.nonzero(as_tuple=True)
    weights = ibot.token_weights(image, masks.images_per_rank)
    return Masked(
        mask=to_device(mask, device),
        patches=to_device(mask.flatten().nonzero().squeeze(1), device),
        weights=to_device(weights, device),
        among=slice(tokens_before, tokens_before + len(image)),
    )
