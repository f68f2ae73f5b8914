"""Image shards: plain WebDataset tars, one sample per caption.

A sample is `KEY.0.jpg KEY.1.jpg ... KEY.txt KEY.json`, where KEY is the caption_id. The same image
sets give the same bytes: times, owners and the order of the members are fixed.
"""

import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, BinaryIO, ClassVar

import numpy as np

from transforms.core.errors import DAMAGE
from transforms.core.records import Caption, ImageSet, stored_values
from transforms.core.seeding import caption_id, derive
from transforms.core.shards import Contents

MAX_ATTEMPTS = 100
"""Seeds of an image that `check` accepts: an image is painted again a few times at most."""

_END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of every tar."""
_OCTAL = re.compile(rb"[0-7]{11}[ \0]")
"""The size of a file below 8 GiB in a header."""


@dataclass(frozen=True)
class ImageTars:
    """Format of image shards; a `transforms.core.shards.ShardFormat` for `ImageSet`."""

    suffix: ClassVar[str] = ".tar"

    def write(self, path: str, records: Iterable[ImageSet]) -> list[str]:
        """Write a shard to local disk, streaming; return the caption ids in the order of the file.

        Importing WebDataset brings torch, half a gigabyte that stages without images do not need.
        """
        import webdataset

        ids = []
        with webdataset.TarWriter(
            path, mtime=0, user="synclr", group="synclr", mode=0o444
        ) as writer:
            for image_set in records:
                writer.write(image_set_sample(image_set))
                ids.append(image_set.caption.caption_id)
        return ids

    def read_ids(self, path: str) -> list[str]:
        """Return the caption ids of a shard on local disk, in the order of the file.

        Raises:
            tarfile.TarError: The file is damaged or cut off.
        """
        with open(path, "rb") as file:
            check_end(file)
            members = list_members(file.fileno())
        return list(dict.fromkeys(name.partition(".")[0] for name, _, _ in members))

    def check(self, content: bytes, metadata: Mapping[str, str], decode: bool) -> Contents:
        """Check the samples of a shard: text, JSON, seeds, number of images; see `ShardFormat`."""
        samples = read_samples(content)
        faults = [
            f"{key}: {fault}"
            for key, sample in samples.items()
            for fault in _sample_faults(key, sample, metadata, decode)
        ]
        return Contents(list(samples), faults)


def read_samples(content: bytes) -> dict[str, dict[str, bytes]]:
    """Return the samples of a tar: key -> name of a file without the key -> content.

    Raises:
        tarfile.TarError: The content is damaged or cut off.
    """
    samples: dict[str, dict[str, bytes]] = {}
    check_end(io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            key, _, name = member.name.partition(".")
            file = archive.extractfile(member)
            samples.setdefault(key, {})[name] = file.read() if file else b""
    return samples


def read_image_sets(content: bytes) -> list[ImageSet]:
    """Return the image sets of a tar, in the order of the file.

    Raises:
        tarfile.TarError: The content is damaged or cut off.
        LookupError, TypeError, ValueError: A sample is not one that `ImageTars` writes.
    """
    return [_image_set(sample) for sample in read_samples(content).values()]


def _image_set(sample: Mapping[str, bytes]) -> ImageSet:
    described = json.loads(sample["json"])
    columns = [field.name for field in fields(Caption) if field.name in described]
    caption = Caption(**{name: described[name] for name in columns})
    names = sorted((n for n in sample if n[0].isdigit()), key=lambda n: int(n.partition(".")[0]))
    images = tuple(sample[name] for name in names)
    return ImageSet(caption, images, tuple(described["seeds"]), described["generator"])


def _sample_faults(
    key: str, sample: Mapping[str, bytes], metadata: Mapping[str, str], decode: bool
) -> Iterator[str]:
    described: Any = json.loads(sample.get("json", b"{}"))
    if not isinstance(described, dict):
        raise ValueError(f"the JSON of {key} is not an object")
    text = sample.get("txt", b"").decode("utf-8", errors="replace")
    occurrence = described.get("occurrence", 0)
    if not isinstance(occurrence, int) or not 0 <= occurrence < 1 << 63:
        raise ValueError(f"the JSON of {key} has no whole number as occurrence")
    if caption_id(text, occurrence) != key:
        yield "its text is another caption's"
    if (described.get("caption_id"), described.get("text")) != (key, text):
        yield "its JSON is about another caption"
    names = sorted((n for n in sample if n[0].isdigit()), key=lambda n: int(n.partition(".")[0]))
    numbers = [int(name.partition(".")[0]) for name in names]
    if numbers != list(range(int(metadata.get("images_per_caption", len(names))))):
        yield f"it has the images {numbers}"
    seeds = described.get("seeds", [])
    digest = metadata.get("generator_digest")
    if len(seeds) != len(names) or (digest and not _seeds_match(digest, key, seeds)):
        yield "its seeds are not those of its caption"
    if decode:
        yield from (f"image {name} does not decode" for name in names if not _decodes(sample[name]))


def _seeds_match(generator_digest: str, key: str, seeds: Sequence[int]) -> bool:
    return all(
        any(seed == derive(generator_digest, key, number, n) for n in range(MAX_ATTEMPTS))
        for number, seed in enumerate(seeds)
    )


def _decodes(image: bytes) -> bool:
    from PIL import Image

    damage = (*DAMAGE, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
    try:
        Image.open(io.BytesIO(image)).load()
    except damage:
        return False
    return True


def image_set_sample(image_set: ImageSet) -> dict[str, Any]:
    """Return an image set as a WebDataset sample; its values are encoded already."""
    caption = image_set.caption
    sample: dict[str, Any] = {"__key__": caption.caption_id}
    for number, image in enumerate(image_set.images):
        sample[f"{number}.{_extension(image)}"] = image
    described = {
        **stored_values(caption),
        "seeds": list(image_set.seeds),
        "generator": image_set.settings,
    }
    sample["txt"] = caption.text.encode("utf-8")
    sample["json"] = json.dumps(described, ensure_ascii=False, sort_keys=True).encode("utf-8")
    return sample


def list_members(descriptor: int) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each file in a tar, from its headers alone.

    `tarfile` takes six times as long. It is only used for what plain tars do not have: long names,
    folders, links, files of 8 GiB, and damage.

    Args:
        descriptor: File descriptor of the open tar; its position does not matter.

    Raises:
        tarfile.TarError: The file is damaged.
    """
    headers, members, offset = [], [], 0
    while (header := os.pread(descriptor, tarfile.BLOCKSIZE, offset)) != _END[: tarfile.BLOCKSIZE]:
        if len(header) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut off")
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
    """Return the name of a file from its header in the ustar format (POSIX.1-1988)."""
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _can_be_ignored(pax_records: bytes) -> bool:
    """Return whether a file's pax header (POSIX.1-2001) holds only times and owners.

    By default WebDataset's writer stores fractions of a second in one.
    """
    keys = {line.partition(b"=")[0].rpartition(b" ")[2] for line in pax_records.splitlines()}
    return keys <= {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}


def _checksums_fit(headers: list[bytes]) -> bool:
    """Return whether each header holds the sum of its bytes, counting the sum itself as spaces."""
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
        members = [
            (member.name, member.offset_data, member.size) for member in archive if member.isfile()
        ]
        check_end(file)
        return members


def check_end(file: BinaryIO) -> None:
    """Raise `tarfile.ReadError` unless a tar has the end of a whole one.

    Python reads a tar that was cut off between two members as if it were a shorter one.
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
