"""Micro-batches: parts of a rank's batch, as the networks take them on the device.

All counting is done here, on the CPU, so that a step never waits for the device.
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
from trainer.models.drop_path import image_seeds

Augment = Callable[[Tensor, Tensor], Tensor]
"""From uint8 pixels and their draws to normalised images on the device."""

Positives = Literal["caption", "image"]
"""Which images are positives of each other: those of a caption, or the crops of one image."""


@dataclass(frozen=True)
class MaskedPatches:
    """The masked patches of a micro-batch."""

    mask: Tensor
    """bool [n * M * G, P], all False for crops that are not masked."""
    patches: Tensor
    """int64 [T], the same patches as indices into all n * M * G * P."""
    weights: Tensor
    """float64 [T], weight of each in the mean over the masked images of an average rank."""
    rows: slice
    """Position of these T patches among all masked patches of the rank."""


@dataclass(frozen=True)
class MicroBatch:
    """Some captions of a rank: n captions of M images with G global and L local crops each."""

    global_images: Tensor
    """[n * M * G, 3, S, S], augmented."""
    masked: MaskedPatches | None
    """None without iBOT."""
    global_ids: Tensor
    """int64 [n * M * G]: crops with the same id are positives of each other."""
    local_images: Tensor | None
    """[n * M * L, 3, s, s], augmented; None if L is 0."""
    local_ids: Tensor
    """int64 [n * M * L]."""
    global_seeds: Tensor | None
    """int64 [n * M * G], seeds of the student's drop path; None without it."""
    local_seeds: Tensor | None
    """int64 [n * M * L]; None without drop path or local crops."""
    share: float
    """Share of the rank's captions that are in this micro-batch."""
    first_key: int
    """Index of its first global crop among the keys of all ranks."""


@dataclass(frozen=True)
class StepMasks:
    """The patches to hide in a rank's global crops."""

    masks: Tensor
    """bool [N * M * G, P]."""
    images_per_rank: float
    """Number of masked crops in the whole batch, divided by the number of ranks."""


def image_ids(batch: Batch, positives: Positives, images_per_caption: int) -> Tensor:
    """Return int64 [N * M], the id of each image; images with the same id are positives.

    Args:
        batch: Captions of this rank.
        positives: With `caption` the id is the caption's, with `image` each image has its own.
        images_per_caption: M.
    """
    if positives == "caption":
        return batch.caption_ids.repeat_interleave(images_per_caption)
    return numbers_of_parts(batch.positions, images_per_caption)


def numbers_of_parts(numbers: Tensor, parts: int) -> Tensor:
    """Return the numbers of all parts, int64 [N * parts], of things with these numbers [N]."""
    return (numbers[:, None] * parts + torch.arange(parts)).flatten()


def step_masks(
    batch: Batch, *, first_position: int, captions_per_batch: int, share: float, seed: int
) -> StepMasks:
    """Return the patches to hide in the crops that are masked in this step.

    The crops are chosen by position over the batch of all ranks, so the same crops are masked with
    any number of ranks.

    Args:
        batch: Captions of this rank.
        first_position: First position of the whole batch.
        captions_per_batch: Number of captions over all ranks.
        share: Share of the global crops that are masked.
        seed: Seed of this step.
    """
    per_caption = len(batch.crops.patch_masks) // len(batch.positions)
    chosen = choose_masked_images(captions_per_batch * per_caption, share, seed)
    slots = (batch.positions - first_position).numpy()
    mine = torch.from_numpy(chosen.reshape(-1, per_caption)[slots].reshape(-1, 1))
    images_per_rank = int(chosen.sum()) / distributed.world_size()
    return StepMasks(batch.crops.patch_masks & mine, images_per_rank)


def split_batch(
    batch: Batch,
    ids: Tensor,
    masks: StepMasks | None,
    num_micro_batches: int,
    augment: Augment,
    device: torch.device,
    *,
    seed: int | None,
) -> list[MicroBatch]:
    """Return a batch as micro-batches with equally many images.

    Args:
        batch: Captions of this rank, on the CPU.
        ids: int64 [N * M] from `image_ids`.
        masks: Result of `step_masks`, None without iBOT.
        num_micro_batches: A divisor of the number of captions N.
        augment: Function that carries out the draws.
        device: Device of the networks.
        seed: Seed of drop path; None without it.
    """
    crops = batch.crops
    num_images = len(ids)
    num_global = len(crops.global_pixels) // num_images
    num_local = len(crops.local_pixels) // num_images
    global_seeds = _drop_path_seeds(batch, len(crops.global_pixels), seed, "global")
    local_seeds = _drop_path_seeds(batch, len(crops.local_pixels), seed, "local")
    size = num_images // num_micro_batches
    keys_before = distributed.rank() * num_images * num_global
    patches_before = 0
    micro_batches = []
    for first in range(0, num_images, size):
        globals_ = slice(first * num_global, (first + size) * num_global)
        locals_ = slice(first * num_local, (first + size) * num_local)
        masked = None
        if masks is not None:
            masked = _masked_patches(masks, globals_, patches_before, device)
            patches_before = masked.rows.stop
        own_ids = ids[first : first + size]
        local_images = None
        if num_local:
            local_images = augment(crops.local_pixels[locals_], crops.local_draws[locals_])
        micro_batches.append(
            MicroBatch(
                global_images=augment(crops.global_pixels[globals_], crops.global_draws[globals_]),
                masked=masked,
                global_ids=to_device(own_ids.repeat_interleave(num_global), device),
                local_images=local_images,
                local_ids=to_device(own_ids.repeat_interleave(num_local), device),
                global_seeds=_part(global_seeds, globals_, device),
                local_seeds=_part(local_seeds, locals_, device),
                share=size / num_images,
                first_key=keys_before + globals_.start,
            )
        )
    return micro_batches


def _drop_path_seeds(
    batch: Batch, num_crops: int, seed: int | None, kind: Literal["global", "local"]
) -> Tensor | None:
    """Return the seeds of a rank's crops, int64 [num_crops]; None if there are none.

    They depend on the position in the training and the number of the crop, so they are the same for
    any number of ranks and micro-batches.
    """
    if seed is None or not num_crops:
        return None
    numbers = numbers_of_parts(batch.positions, num_crops // len(batch.positions))
    return image_seeds(numbers, seed, "drop path", kind)


def _part(seeds: Tensor | None, crops: slice, device: torch.device) -> Tensor | None:
    return None if seeds is None else to_device(seeds[crops], device)


def _masked_patches(
    masks: StepMasks, crops: slice, patches_before: int, device: torch.device
) -> MaskedPatches:
    mask = masks.masks[crops]
    image, _ = mask.nonzero(as_tuple=True)
    weights = ibot.token_weights(image, masks.images_per_rank)
    return MaskedPatches(
        mask=to_device(mask, device),
        patches=to_device(mask.flatten().nonzero().squeeze(1), device),
        weights=to_device(weights, device),
        rows=slice(patches_before, patches_before + len(image)),
    )
