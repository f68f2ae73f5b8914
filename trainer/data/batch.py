"""The batch of one rank: samples of one step, decoded and cropped.

The samples of a step, the part of each rank (see `trainer.data.sampler`) and all crops are pure
functions of the seed, so the batch over all ranks is the same for any number of ranks and workers.
`trainer.data.loader` turns batches into a stream.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.crops import Crops, CropsConfig, concatenate, crop_image, decode
from trainer.data.host_memory import is_memory_error, is_memory_left
from trainer.data.photometric import PhotometricConfig
from trainer.data.sampler import BatchIndices, ShuffleSampler
from trainer.data.shard_reader import BrokenSampleError, Sample, ShardReader
from transforms.core.errors import DamagedFileError
from transforms.core.seeding import derive

MAX_REPLACEMENTS = 20
"""Unusable samples in a row after which the data as a whole is considered wrong."""


Distortion = Callable[[Tensor, int], Tensor]
"""From the pixels of a crop, uint8 [3, S, S], and the seed of its draws to other pixels."""


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step, sorted by shard and by position in the shard."""

    crops: Crops
    caption_ids: Tensor
    """int64 [N], the 64 bits of each caption id; equal for equal captions."""
    positions: Tensor
    """int64 [N], the position of each sample in the training."""
    targets: Tensor
    """int64 [N, W], further input of the objective, such as labels or text tokens; mostly W = 0."""
    num_replaced: int
    """Number of samples that could not be decoded and were replaced."""

    def pin_memory(self) -> "Batch":
        """Return the batch with its pixels in pinned memory, for asynchronous copies."""
        crops = dataclasses.replace(
            self.crops,
            global_pixels=self.crops.global_pixels.pin_memory(),
            local_pixels=self.crops.local_pixels.pin_memory(),
        )
        return dataclasses.replace(self, crops=crops)


@dataclass(frozen=True)
class CropSpec:
    """How samples are cropped."""

    crops: CropsConfig
    photometric: PhotometricConfig
    global_size: int
    patch_size: int
    patch_share: float
    """Share of the patches of a masked crop that are hidden."""
    images_per_caption: int
    """Number of images that each sample must have."""
    one_image: bool = False
    """Take only one of a sample's images, drawn in each epoch."""
    distortion: Distortion | None = None
    """Distortion of global crops before their colours change; None for no distortion."""


class CroppedSamples:
    """Samples, decoded and cropped; the crops depend on the seed and the position.

    Args:
        reader: Reader of the image shards.
        sampler: The sample at each position.
        spec: How samples are cropped.
        seed: Seed of the training.
        target: Returns a sample's row of `Batch.targets`, int64 [W]; None for W = 0.
    """

    def __init__(
        self,
        reader: ShardReader,
        sampler: ShuffleSampler,
        spec: CropSpec,
        seed: int,
        target: Callable[[Sample], Tensor] | None = None,
    ) -> None:
        self.reader = reader
        self.sampler = sampler
        self.spec = spec
        self.seed = seed
        self.target = target

    def batch(self, indices: BatchIndices) -> Batch:
        """Return the batch of these samples.

        Raises:
            StorageError, DamagedFileError: A shard cannot be read.
            MemoryError, RuntimeError: The machine is out of memory; see `host_memory`.
        """
        loaded = map(self._load, indices.positions.tolist(), indices.samples.tolist())
        samples, crops, num_replaced = zip(*loaded, strict=True)
        return Batch(
            crops=concatenate([crop for of_sample in crops for crop in of_sample]),
            caption_ids=torch.tensor([_as_int64(sample.caption_id) for sample in samples]),
            positions=torch.from_numpy(indices.positions),
            targets=torch.stack([self._target(sample) for sample in samples]),
            num_replaced=sum(num_replaced),
        )

    def _load(self, position: int, number: int) -> tuple[Sample, list[Crops], int]:
        """Return a sample, its crops, and the number of unusable samples that it replaces.

        An unusable sample is replaced by the next one in index order, which then occurs twice in
        the epoch. That choice is the same for any number of ranks, and the replacement is mostly in
        the same shard, so no other shard has to be fetched. A sample for which there is no memory
        is not unusable: its error is raised.
        """
        epoch = position // self.sampler.num_samples
        chosen = self._chosen_images(epoch, position)
        seeds = [derive(self.seed, "crops", epoch, position, image) for image in chosen]
        for attempt in range(MAX_REPLACEMENTS):
            with contextlib.suppress(BrokenSampleError):
                sample = self.reader.sample((number + attempt) % self.sampler.num_samples, chosen)
                return sample, self._crops(sample, seeds), attempt
        raise DamagedFileError(
            f"{MAX_REPLACEMENTS} samples in a row of {self.reader.index_path} cannot be decoded or "
            f"do not have {self.spec.images_per_caption} images; check its "
            f"run with {self.reader.shards.folder.verify_command}"
        )

    def _crops(self, sample: Sample, seeds: list[int]) -> list[Crops]:
        """Return the crops of each chosen image.

        Args:
            sample: The sample with these images only.
            seeds: Seed of each image.

        Raises:
            BrokenSampleError: The sample is unusable.
        """
        if sample.num_images != self.spec.images_per_caption:
            raise BrokenSampleError(f"the sample has {sample.num_images} images")
        return list(map(self._crops_of_image, sample.images, seeds))

    def _crops_of_image(self, image: bytes, seed: int) -> Crops:
        """Return the crops of one image.

        Raises:
            BrokenSampleError: It cannot be decoded or cropped.
            MemoryError, RuntimeError: There is no memory for it.
        """
        try:
            crops = crop_image(
                decode(image),
                self.spec.crops,
                self.spec.photometric,
                global_size=self.spec.global_size,
                patch_size=self.spec.patch_size,
                patch_share=self.spec.patch_share,
                seed=seed,
            )
            return self._distorted(crops, seed)
        except (ValueError, RuntimeError) as error:
            if is_memory_error(error):
                raise
            if not is_memory_left():
                raise MemoryError(str(error)) from error
            raise BrokenSampleError(str(error)) from error

    def _distorted(self, crops: Crops, seed: int) -> Crops:
        """Return the crops of an image, with global crops changed as the spec says."""
        if self.spec.distortion is None:
            return crops
        changed = [
            self.spec.distortion(pixels, derive(seed, "distortion", number))
            for number, pixels in enumerate(crops.global_pixels)
        ]
        return dataclasses.replace(crops, global_pixels=torch.stack(changed))

    def _chosen_images(self, epoch: int, position: int) -> list[int]:
        """Return the numbers of the images to crop."""
        num_images = self.spec.images_per_caption
        if not self.spec.one_image:
            return list(range(num_images))
        return [derive(self.seed, "image", epoch, position) % num_images]

    def _target(self, sample: Sample) -> Tensor:
        if self.target is None:
            return torch.empty(0, dtype=torch.int64)
        return self.target(sample)


def hex_ids(caption_ids: Tensor) -> list[str]:
    """Return the caption ids of a batch as strings of 16 hex digits."""
    return [f"{number % (1 << 64):016x}" for number in caption_ids.tolist()]


def _as_int64(caption_id: str) -> int:
    """Return the 64 bits of a caption id as a signed integer; other keys are hashed to 63 bits."""
    try:
        value = int(caption_id, 16)
    except ValueError:
        return derive(caption_id)
    return value - (1 << 64) if (1 << 63) <= value < (1 << 64) else value % (1 << 63)
