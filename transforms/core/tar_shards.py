"""Image shards: plain WebDataset tars, one sample per caption.

A sample is `KEY.0.jpg KEY.1.jpg ... KEY.txt KEY.json`, KEY being the caption_id. The same image
sets give the same bytes: times, owners and the order of the members are fixed.
"""

import dataclasses
import json
import os
import re
import tarfile
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from transforms.core.records import ImageSet

_END = bytes(2 * tarfile.BLOCKSIZE)
"""Of every tar."""
_OCTAL = re.compile(rb"[0-7]{11}[ \0]")
"""The size of a file, but for 8 GiB and more."""


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
    with open(path, "rb") as file:
        check_end(file)
        members = list_members(file.fileno())
    return list(dict.fromkeys(name.partition(".")[0] for name, _, _ in members))


def list_members(descriptor: int) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar, from its headers alone.

    `tarfile` takes six times as long, and is left what plain tars do not have: long names, folders,
    links, files of 8 GiB, and damage.

    Args:
        descriptor: Of the open file; where it stands does not matter.

    Raises:
        tarfile.TarError: The file is damaged.
    """
    headers, members, offset = [], [], 0
    while (header := os.pread(descriptor, tarfile.BLOCKSIZE, offset)) != _END[: tarfile.BLOCKSIZE]:
        if not _OCTAL.fullmatch(header, 124, 136):
            return _list_any_members(descriptor)
        content, size, kind = offset + len(header), int(header[124:135], 8), header[156:157]
        if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) and (name := _name(header))[-1:] != "/":
            members.append((name, content, size))
        elif kind != tarfile.XHDTYPE or not _can_be_ignored(os.pread(descriptor, size, content)):
            return _list_any_members(descriptor)
        headers.append(header)
        offset = content + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members if _checksums_fit(headers) else _list_any_members(descriptor)


def _name(header: bytes) -> str:
    """Of a file in the ustar format (POSIX.1-1988)."""
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _can_be_ignored(pax_records: bytes) -> bool:
    """Whether a file's pax header (POSIX.1-2001) is about times and owners alone.

    WebDataset's writer, left to itself, puts the second's fraction into one.
    """
    keys = {line.partition(b"=")[0].rpartition(b" ")[2] for line in pax_records.splitlines()}
    return keys <= {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}


def _checksums_fit(headers: list[bytes]) -> bool:
    """Whether each header has the sum of its bytes in it, the sum itself taken for spaces."""
    fields = [header[148:156].strip(b" \0") for header in headers]
    blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, tarfile.BLOCKSIZE)
    sums = blocks.sum(1) - blocks[:, 148:156].sum(1) + 8 * ord(" ")
    try:
        return [int(field, 8) for field in fields] == sums.tolist()
    except ValueError:
        return False


def _list_any_members(descriptor: int) -> list[tuple[str, int, int]]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with (
        os.fdopen(os.dup(descriptor), "rb") as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        return [
            (member.name, member.offset_data, member.size) for member in archive if member.isfile()
        ]


def check_end(file: BinaryIO) -> None:
    """Raise `tarfile.ReadError` unless the tar ends as a whole one does.

    Python reads one that was cut off between two members as if it were a shorter one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_END)))
    if file.read() != _END:
        raise tarfile.ReadError("it is cut off")


def _extension(image: bytes) -> str:
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"an image starts with {image[:8]!r}: expected JPEG, PNG or WebP bytes")
