"""Small image shards for tests of the trainer, written with plain webdataset and PIL."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from tests.support.captions import caption, write_captions
from transforms.core import storage
from transforms.core.index import write_index
from transforms.core.seeding import caption_id
from transforms.core.shards import CommitRecord, StageFolder, file_sha256
from transforms.core.stages import STAGES

TINY_TRAINING: Mapping[str, Any] = {
    "seed": 3,
    "images_per_caption": 2,
    "captions_per_batch": 4,
    "steps": 4,
    "device": "cpu",
    "precision": "fp32",
    "log_every": 1,
    "model": {
        "image_size": 16,
        "patch_size": 8,
        "width": 12,
        "depth": 2,
        "num_heads": 2,
        "drop_path": 0.1,
    },
    "crops": {"num_local": 1, "local_size": 8},
    "photometric": {"downsample_sizes": [8]},
    "objective": {
        "contrastive_head": {"hidden": 16, "out": 8},
        "prototype_head": {"hidden": 16, "bottleneck": 8, "num_prototypes": 12},
        "teacher_temperature_steps": 2,
    },
    "optim": {"warmup": 1},
    "loader": {"num_workers": 0, "shuffle_shards": 2},
}
"""Config of a training of one second that uses all parts of the method; lacks `run`."""

UNCHANGED: Mapping[str, Any] = {
    "jitter": 0,
    "grey": 0,
    "global_blur_only": 0,
    "global_blur": 0,
    "global_solarise": 0,
    "local_blur": 0,
    "downsample": 0,
}
"""Section `photometric` that changes no colour."""


def picture(number: int, side: int = 20) -> bytes:
    """Return a PNG of one colour with a little noise, different for every number."""
    generator = np.random.default_rng(number)
    colour = generator.integers(40, 216, size=(1, 1, 3))
    pixels = colour + generator.integers(-30, 30, size=(side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def text_of(sample: int) -> str:
    """Return the caption of a sample."""
    return f"thing number {sample}"


def concept_of(sample: int) -> str:
    """Return the concept of a sample's caption."""
    return ("cat", "dog", "tree")[sample % 3]


def write_images(
    url: Path | str,
    sizes: tuple[int, ...] = (3, 5, 4),
    *,
    images_per_caption: int = 2,
    broken: tuple[int, ...] = (),
    broken_text: tuple[int, ...] = (),
    broken_json: tuple[int, ...] = (),
    paint: Callable[[int, int], bytes] = lambda sample, number: picture(1000 * sample + number),
) -> StageFolder:
    """Commit an images stage of `len(sizes)` shards to local disk.

    Args:
        url: Folder of the stage.
        sizes: Number of samples of each shard.
        images_per_caption: Number of images of each sample.
        broken: Numbers of samples, over all shards, whose first image is cut off.
        broken_text: Samples whose caption is not UTF-8.
        broken_json: Samples whose metadata is not JSON.
        paint: (sample, number of the image) -> its file.
    """
    folder = StageFolder(str(url), STAGES["images"])
    records = []
    sample = 0
    for shard, size in enumerate(sizes):
        path = Path(folder.shard_url(shard))
        path.parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for _ in range(size):
                text = text_of(sample)
                images = [paint(sample, n) for n in range(images_per_caption)]
                if sample in broken:
                    images[0] = images[0][:60]
                writer.write(
                    {
                        "__key__": caption_id(text),
                        **{f"{n}.png": image for n, image in enumerate(images)},
                        "txt": b"\xff" if sample in broken_text else text,
                        "json": b"{"
                        if sample in broken_json
                        else {"ordinal": sample, "concept": concept_of(sample)},
                    }
                )
                sample += 1
        records.append(_record(folder, shard, size))
    write_index(folder, records, {"images_per_caption": str(images_per_caption)})
    return folder


def write_image_captions(
    url: Path | str, size: int = 12, concept: Callable[[int], str] = concept_of
) -> StageFolder:
    """Commit the captions of the images of `write_images`, in one shard; return the folder.

    Args:
        url: Folder of the captions stage.
        size: Number of captions.
        concept: Number of a sample -> concept of its caption.
    """
    rows = [caption(n, text_of(n), concept=concept(n)) for n in range(size)]
    return write_captions(str(url), [rows])


def _record(folder: StageFolder, shard: int, size: int) -> CommitRecord:
    path = folder.shard_url(shard)
    return CommitRecord(
        shard=shard,
        path=folder.shard_path(shard),
        sha256=file_sha256(path),
        num_bytes=Path(path).stat().st_size,
        num_samples=size,
        num_failures=0,
        fingerprint="made by a test",
        seconds=0.0,
        counts={},
        versions={},
    )


def upload(local: str, remote: str) -> None:
    """Copy the files of a local folder to a URL."""
    for name in storage.list_files(local):
        storage.publish_file(f"{local}/{name}", f"{remote}/{name}")
