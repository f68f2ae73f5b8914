"""Batches of small image shards for tests of the data pipeline."""

from pathlib import Path

import torch

from trainer.data.batch import Batch, CroppedSamples, CropSpec
from trainer.data.crops import CropsConfig
from trainer.data.loader import LoaderConfig, batches
from trainer.data.photometric import PhotometricConfig
from trainer.data.sampler import ShuffleSampler
from trainer.data.shard_reader import ShardReader


def cropped(
    folder: Path | str, seed: int = 5, *, cache: Path = Path("unused"), window: int = 2
) -> CroppedSamples:
    """Return the crops of the images stage in `folder`, with two images of each caption.

    Args:
        folder: Folder or URL of the images stage.
        seed: Seed of order and crops.
        cache: Local copies of remote shards.
        window: Number of shards whose samples are shuffled together.
    """
    reader = ShardReader(f"{folder}/index.parquet", cache_folder=str(cache))
    spec = CropSpec(
        crops=CropsConfig(num_local=2, local_size=8),
        photometric=PhotometricConfig(),
        global_size=16,
        patch_size=8,
        patch_share=0.5,
        images_per_caption=2,
    )
    return CroppedSamples(reader, ShuffleSampler(reader.shard_sizes, seed, window), spec, seed)


def read(folder: Path, first: int, last: int, workers: int = 0, **ranks: int) -> list[Batch]:
    """Return the batches of steps `first` to `last` of four captions; `ranks` as in `batches`."""
    config = LoaderConfig(num_workers=workers)
    found = batches(
        cropped(folder),
        config,
        first_step=first,
        last_step=last,
        captions_per_batch=4,
        **ranks,
    )
    return list(found)


def same(first: Batch, second: Batch) -> bool:
    """Return whether two batches have the same crops and captions."""
    return all(
        torch.equal(getattr(first.crops, name), getattr(second.crops, name))
        for name in first.crops.__dataclass_fields__
    ) and torch.equal(first.caption_ids, second.caption_ids)
