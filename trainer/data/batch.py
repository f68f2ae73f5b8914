"""A rank's batch: the samples of its share of a step, decoded and cropped.

Which samples a step has, and which of them a rank takes, is a pure function of the seed (see
`trainer.data.sampler`), and so is how they are cropped: the batch of all ranks is the same for any
number of ranks and workers. `trainer.data.loader` makes a stream of them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.crops import Crops, CropsConfig, concatenate, crop_image, decode
from trainer.data.photometric import PhotometricConfig
from trainer.data.sampler import BatchIndices, ShuffleSampler
from trainer.data.shard_reader import Sample, ShardReader
from transforms.core.errors import DamagedFileError
from transforms.core.seeding import derive

MAX_REPLACEMENTS = 20
"""In a row, before the data is taken for another than the training's."""


@dataclass(frozen=True)
class Batch:
    """A rank's samples of one step, sorted by shard and place in the shard."""

    crops: Crops
    caption_ids: Tensor
    """int64 [N]: the caption ids' 64 bits, equal where captions are."""
    positions: Tensor
    """int64 [N]."""
    targets: Tensor
    """int64 [N, W]: what else the objective has to know of each sample; W is 0 for most."""
    num_replaced: int
    """Samples that could not be read or decoded, over these positions."""

    def pin_memory(self) -> "Batch":
        """The batch with its pixels where a GPU can copy them while the CPU goes on."""
        crops = dataclasses.replace(
            self.crops,
            global_pixels=self.crops.global_pixels.pin_memory(),
            local_pixels=self.crops.local_pixels.pin_memory(),
        )
        return dataclasses.replace(self, crops=crops)


@dataclass(frozen=True)
class CropSpec:
    """All that says how a sample is cropped."""

    crops: CropsConfig
    photometric: PhotometricConfig
    global_size: int
    patch_size: int
    patch_share: float
    images_per_caption: int
    """That a sample must have."""
    one_image: bool = False
    """Take one of a sample's images, drawn anew each epoch."""


class CroppedSamples:
    """Samples, decoded and cropped as their positions say.

    Args:
        reader: Of the shards.
        sampler: The sample at each position.
        spec: How samples are cropped.
        seed: Of the training.
        target: What goes into `Batch.targets`, int64 [W] of a sample; None for W = 0.
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
        """
        found = map(self._sample, indices.positions.tolist(), indices.samples.tolist())
        samples, crops, num_replaced = zip(*found, strict=True)
        return Batch(
            crops=concatenate([crop for of_sample in crops for crop in of_sample]),
            caption_ids=torch.tensor([_as_int64(sample.caption_id) for sample in samples]),
            positions=torch.from_numpy(indices.positions),
            targets=torch.stack([self._target(sample) for sample in samples]),
            num_replaced=sum(num_replaced),
        )

    def _sample(self, position: int, number: int) -> tuple[Sample, list[Crops], int]:
        """The sample of a position, its crops, and how many were tried in vain before it.

        One that cannot be used is replaced by the next in its shard (after the shard's last: in the
        next shard), which the epoch has a second time then: the same one for any number of ranks,
        and no other shard has to be fetched for it.
        """
        for attempt in range(MAX_REPLACEMENTS):
            try:
                sample = self.reader[(number + attempt) % self.sampler.num_samples]
                return sample, self._crops(sample, position), attempt
            except DamagedFileError:
                raise  # Not this sample's fault.
            except (ValueError, RuntimeError):
                continue
        raise DamagedFileError(
            f"{MAX_REPLACEMENTS} samples in a row of {self.reader.index_path} cannot be decoded or "
            f"have not {self.spec.images_per_caption} images; run `verify` on the run"
        )

    def _crops(self, sample: Sample, position: int) -> list[Crops]:
        """The crops of each of the sample's images.

        Raises:
            ValueError, RuntimeError: It is not a sample that can be used.
        """
        if len(sample.images) != self.spec.images_per_caption:
            raise ValueError(f"{len(sample.images)} images")
        epoch = position // self.sampler.num_samples
        return [
            crop_image(
                decode(sample.images[number]),
                self.spec.crops,
                self.spec.photometric,
                global_size=self.spec.global_size,
                patch_size=self.spec.patch_size,
                patch_share=self.spec.patch_share,
                seed=derive(self.seed, "crops", epoch, position, number),
            )
            for number in self._images(epoch, position)
        ]

    def _images(self, epoch: int, position: int) -> list[int]:
        """Numbers of the images that are taken."""
        number = self.spec.images_per_caption
        if not self.spec.one_image:
            return list(range(number))
        return [derive(self.seed, "image", epoch, position) % number]

    def _target(self, sample: Sample) -> Tensor:
        if self.target is None:
            return torch.empty(0, dtype=torch.int64)
        return self.target(sample)


def hex_ids(caption_ids: Tensor) -> list[str]:
    """The caption ids of a batch as they are written: 16 hex digits each."""
    return [f"{number % (1 << 64):016x}" for number in caption_ids.tolist()]


def _as_int64(caption_id: str) -> int:
    """The 64 bits of a caption id as a signed integer; other keys are hashed to 63 bits."""
    try:
        value = int(caption_id, 16)
    except ValueError:
        return derive(caption_id)
    return value - (1 << 64) if (1 << 63) <= value < (1 << 64) else value % (1 << 63)
