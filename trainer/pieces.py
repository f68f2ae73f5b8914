"""From a rank's batch on the CPU to the pieces that the networks take, on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer import distributed, ibot
from trainer.stream import Batch

Augment = Callable[[Tensor, Tensor], Tensor]
"""From uint8 pixels and their draws to normalised images on the device."""


@dataclass(frozen=True)
class Piece:
    """Some of a rank's captions: n captions of M images with G global and L local crops each."""

    global_images: Tensor
    """[n * M * G, 3, S, S], augmented."""
    mask: Tensor | None
    """bool [n * M * G, P], all False for crops that are not masked; None without iBOT."""
    global_ids: Tensor
    """int64 [n * M * G]: two crops are positives of each other where these are equal."""
    local_images: Tensor
    """[n * M * L, 3, s, s], augmented."""
    local_ids: Tensor
    """int64 [n * M * L]."""
    share: float
    """Its part of the rank's captions."""
    first_key: int
    """Where its first global crop stands among the keys of all ranks."""
    tokens: slice
    """Its masked tokens among the rank's."""


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
) -> Tensor:
    """The patches to hide, bool [N * M * G, P], in the crops that the step chose to mask.

    Crops are chosen by position over the batch of all ranks: any number of ranks masks the same.

    Args:
        batch: A rank's.
        first_position: Of the batch.
        captions_per_batch: Over all ranks.
        share: Of the global crops that are masked.
        seed: Of this step.
    """
    per_caption = len(batch.crops.patch_masks) // len(batch.positions)
    chosen = ibot.choose_masked_images(captions_per_batch * per_caption, share, seed)
    slots = (batch.positions - first_position).numpy()
    mine = torch.from_numpy(chosen.reshape(-1, per_caption)[slots].reshape(-1, 1))
    return batch.crops.patch_masks & mine


def split(
    batch: Batch,
    ids: Tensor,
    masks: Tensor | None,
    num_pieces: int,
    augment: Augment,
    device: torch.device,
) -> list[Piece]:
    """The batch in `num_pieces` pieces of equally many images.

    Args:
        batch: A rank's, on the CPU.
        ids: int64 [N * M] from `image_ids`.
        masks: bool [N * M * G, P] from `step_masks`, or None.
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
        mask = None if masks is None else masks[globals_]
        tokens_after = tokens_before + (0 if mask is None else int(mask.sum()))
        own_ids = ids[first : first + size].to(device)
        pieces.append(
            Piece(
                global_images=augment(crops.global_pixels[globals_], crops.global_draws[globals_]),
                mask=None if mask is None else mask.to(device),
                global_ids=own_ids.repeat_interleave(num_global),
                local_images=augment(crops.local_pixels[locals_], crops.local_draws[locals_]),
                local_ids=own_ids.repeat_interleave(num_local),
                share=size / num_images,
                first_key=keys_before + globals_.start,
                tokens=slice(tokens_before, tokens_after),
            )
        )
        tokens_before = tokens_after
    return pieces
