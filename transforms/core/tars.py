"""Image shards: plain WebDataset tars, one sample per caption.

A sample is `KEY.0.jpg KEY.1.jpg ... KEY.txt KEY.json`, KEY being the caption_id. The same image
sets give the same bytes: times, owners and the order of the members are fixed.
"""

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterable
from typing import Any, BinaryIO

from transforms.core.records import ImageSet

_END_BYTES = 2 * tarfile.BLOCKSIZE
"""Zeros at the end of every tar."""


def image_set_sample(image_set: ImageSet) -> dict[str, Any]:
    """An image set as a WebDataset sample (already encoded values)."""
    caption = image_set.caption
    sample: dict[str, Any] = {"__key__": caption.caption_id}
    for number, image in enumerate(image_set.images):
        sample[f"{number}.{_extension(image)}"] = image
    described = {
        **dataclasses.asdict(caption),
        "seeds": list(image_set.seeds),
        "generator": image_set.settings,
    }
    sample["txt"] = caption.text.encode("utf-8")
    sample["json"] = json.dumps(described, ensure_ascii=False, sort_keys=True).encode("utf-8")
    return sample


def write_tar(path: str, image_sets: Iterable[ImageSet]) -> list[str]:
    """Write a shard to local disk, streaming.

    Returns:
        The record ids (caption ids) in the order of the file.
    """
    ids = []
    # It brings torch, half a gigabyte that stages without images do not need.
    import webdataset

    with webdataset.TarWriter(path, mtime=0, user="synclr", group="synclr", mode=0o444) as writer:
        for image_set in image_sets:
            writer.write(image_set_sample(image_set))
            ids.append(image_set.caption.caption_id)
    return ids


def read_tar_ids(path: str) -> list[str]:
    """The record ids of a shard on local disk, in order.

    Raises:
        tarfile.TarError: The file is damaged or cut off.
    """
    ids: dict[str, None] = {}
    with open(path, "rb") as file:
        check_end(file)
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            ids.setdefault(member.name.partition(".")[0])
    return list(ids)


def check_end(file: BinaryIO) -> None:
    """Raise `tarfile.ReadError` unless the tar ends as a whole one does.

    Python reads one that was cut off between two members as if it were a shorter one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES))
    if file.read() != bytes(_END_BYTES):
        raise tarfile.ReadError("it is cut off")


def _extension(image: bytes) -> str:
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"an image starts with {image[:8]!r}: expected JPEG, PNG or WebP bytes")
