"""The stream of batches: the samples of each step's positions, cropped.

What is at a position is a pure function of the seed (see `trainer.order`), so the state of the
stream is one integer. Step s takes the next `captions_per_batch` positions and the
ranks take turns on them; the batch holds the same samples for any number of ranks and workers.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.crops import Crops, CropsConfig, concatenate, crop_image, decode
from trainer.data import DataConfig, Sample, ShardReader
from trainer.order import SampleOrder
from trainer.photometric import PhotometricConfig
from trainer.prefetch import Prefetcher
from transforms.core import storage
from transforms.core.seeding import derive
from transforms.core.shards import DamagedFileError

MAX_REPLACEMENTS = 20


def positions_of_step(step: int, batch: int, rank: int, ranks: int) -> range:
    """The positions that a rank takes in a step; `batch` positions over all ranks."""
    return range(step * batch + rank, (step + 1) * batch, ranks)


@dataclass(frozen=True)
class Batch:
    """A rank's samples of one step; images in the order of the positions."""

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
class Failed:
    """Passed on by a worker in place of a sample: a sentence to stop the training with."""

    sentence: str


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


class CroppedSamples(Dataset[Any]):
    """The sample of each position, decoded and cropped; map-style, indexed by position.

    Args:
        reader: Of the shards.
        order: Which sample each position has.
        spec: How samples are cropped.
        seed: Of the training.
        target: What goes into `Batch.targets`, int64 [W] of a sample; None for W = 0.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: SampleOrder,
        spec: CropSpec,
        seed: int,
        target: Callable[[Sample], Tensor] | None = None,
    ) -> None:
        self.reader = reader
        self.order = order
        self.spec = spec
        self.seed = seed
        self.target = target

    def __getitem__(self, position: int) -> Batch | Failed:
        try:
            return self._batch_of_one(position)
        except (storage.StorageError, DamagedFileError) as error:
            return Failed(str(error))

    def _batch_of_one(self, position: int) -> Batch:
        epoch, number = self.order(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                sample = self.reader[number]
                crops = self._crops(sample, epoch, position)
            except DamagedFileError:
                raise  # Not this sample's fault.
            except (ValueError, RuntimeError):
                seed = derive(self.seed, "replacement", epoch, position, attempt)
                number = seed % self.order.num_samples
                continue
            return Batch(
                crops=crops,
                caption_ids=torch.tensor([_as_int64(sample.caption_id)]),
                positions=torch.tensor([position]),
                targets=self._target(sample)[None],
                num_replaced=attempt,
            )
        raise DamagedFileError(
            f"{MAX_REPLACEMENTS} samples in a row of {self.reader.index_path} cannot be decoded or "
            f"have not {self.spec.images_per_caption} images; run `verify` on the run"
        )

    def _crops(self, sample: Sample, epoch: int, position: int) -> Crops:
        """The crops of the sample's images.

        Raises:
            ValueError, RuntimeError: It is not a sample that can be used.
        """
        if len(sample.images) != self.spec.images_per_caption:
            raise ValueError(f"{len(sample.images)} images")
        crops = [
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
        return concatenate(crops)

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


def collate(parts: list[Batch | Failed]) -> Batch | Failed:
    """Join the samples of a step."""
    good: list[Batch] = []
    for part in parts:
        if isinstance(part, Failed):
            return part
        good.append(part)
    return Batch(
        crops=concatenate([part.crops for part in good]),
        caption_ids=torch.cat([part.caption_ids for part in good]),
        positions=torch.cat([part.positions for part in good]),
        targets=torch.cat([part.targets for part in good]),
        num_replaced=sum(part.num_replaced for part in good),
    )


def batches(
    samples: CroppedSamples,
    config: DataConfig,
    *,
    first_step: int,
    last_step: int,
    captions_per_batch: int,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """A rank's batches of steps `first_step` to `last_step` - 1.

    Raises:
        storage.StorageError: A shard cannot be read.
    """
    steps = (
        list(positions_of_step(step, captions_per_batch, rank, ranks))
        for step in range(first_step, last_step)
    )
    workers = config.num_workers
    # A process that has spoken to a server must not be forked.
    context = "spawn" if samples.reader.is_remote else "fork"
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=config.prefetch if workers else None,
        multiprocessing_context=context if workers else None,
    )
    ahead = Prefetcher(samples.reader, samples.order)
    try:
        ahead.reach(first_step * captions_per_batch)
        for step, batch in enumerate(loader, start=first_step + 1):
            if isinstance(batch, Failed):
                raise storage.StorageError(None, batch.sentence)
            ahead.reach(step * captions_per_batch)
            yield batch
    finally:
        ahead.close()


def _start_worker(_: int) -> None:
    """Leave stop signals to the training process, which ends its workers itself, by SIGTERM.

    `torchrun` signals the whole process group of a rank, so workers have one of their own. One
    whose training process is gone notices within seconds (torch's watchdog) and leaves.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
