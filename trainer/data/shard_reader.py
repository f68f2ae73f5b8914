"""Random access to the image shards of a run, by the number of the sample.

The index holds the number of samples of each shard. The tar headers of a shard are read once and
remembered while its window lasts. Shards are plain WebDataset tars: any tool can write them (and an
index).
"""

import contextlib
import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from trainer.data.shard_cache import ShardCache
from trainer.data.tar_index import TarIndex, read_tar_index
from transforms.core import storage
from transforms.core.config import Config, Place, added, no_fingerprint
from transforms.core.errors import ConfigError, MissingFileError, reading
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES

MAX_OPEN_SHARDS = 64
DEFAULT_CACHE_FOLDER = ".cache/shards"
DEFAULT_CACHE_BYTES = 50 << 30


@dataclass(frozen=True)
class SampleMeta:
    """What the JSON of a sample says about its caption and its images.

    Shards of other tools may lack keys, which are None or empty here.
    """

    ordinal: int | None = None
    concept: str | None = None
    source: str | None = None
    template: str | None = None
    background: str | None = None
    relation: str | None = None
    occurrence: int = 0
    """Number of captions before it with the same text, if curation kept them."""
    seeds: list[int] = field(default_factory=list)
    """Seed of each image."""
    generator: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the image generator."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """All other keys, and keys whose value has another type than here."""


@dataclass(frozen=True)
class Sample:
    """A caption and its images, still encoded."""

    caption_id: str
    text: str
    images: list[bytes]
    """Files of the images that were read: all, in the order of their numbers, or those chosen."""
    num_images: int
    """Number of images that the sample has."""
    meta: SampleMeta


_META_TYPES = {
    **dict.fromkeys(("ordinal", "occurrence"), int),
    **dict.fromkeys(("concept", "source", "template", "background", "relation"), str),
    "seeds": list,
    "generator": dict,
}


class DataConfig(Config):
    """The images that are trained on."""

    images: Place | None = no_fingerprint(None)
    """Folder or URL of a complete images stage; null is `images` of the run."""
    num_captions: PositiveInt | None = added(None)
    """Train on this number of captions only: the first ones, in the order of the shards. Curation
    has put them in random order, so they are a random part of the run, and a smaller number takes a
    part of them (paper, scaling plots: 1M, 3M, 10M, 40M of 150M). Null takes all."""


class BrokenSampleError(ValueError):
    """One sample cannot be used, because of its content; the shard itself is whole."""


class ShardReader:
    """The samples of a complete images stage: `reader[i]` for i from 0 to `len(reader)` - 1.

    It can be pickled and forked; each process opens its own files.

    Args:
        index_path: Path or URL of `index.parquet`.
        images_per_caption: Images that each caption must have; None accepts any number.
        cache_folder: Folder for copies of remote shards.
        cache_bytes: Largest size of that folder.
        remembered_shards: Shards whose tar headers are kept. With fewer than a window has shards,
            the headers are read again for most samples.

    Raises:
        MissingFileError: There is no index: the stage is not complete.
        ConfigError: There is no images stage, or it has another number of images per caption.
    """

    def __init__(
        self,
        index_path: str,
        *,
        images_per_caption: int | None = None,
        cache_folder: str = DEFAULT_CACHE_FOLDER,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        remembered_shards: int = 200,
    ) -> None:
        self.index_path = index_path
        folder = StageFolder(os.path.dirname(index_path) or ".", STAGES["images"])
        shards = CommittedShards.open(folder, "data.images")
        held = shards.metadata.get("images_per_caption")
        if images_per_caption is not None and held not in (None, str(images_per_caption)):
            raise ConfigError(
                f"images_per_caption is {images_per_caption}, but the shards of {index_path} "
                f"hold {held} images per caption"
            )
        # Arrow columns: lists of 600,000 strings would take half a gigabyte in each worker.
        self.shards = shards
        self.shard_sizes = shards.sizes
        self.shard_bytes = np.asarray(shards.table["num_bytes"], dtype=np.int64)
        self.is_remote = not storage.is_local(folder.url)
        self.cache_bytes = cache_bytes
        self._ends = np.cumsum(self.shard_sizes)
        self._cache = ShardCache(cache_folder, cache_bytes)
        self._remembered_shards = remembered_shards
        self._headers: OrderedDict[int, TarIndex] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()

    @property
    def checksum(self) -> str:
        """Hash of the content and the order of all shards, 32 hex digits."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards.table["sha256"]:
            digest.update(shard.as_buffer())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        """Return a sample with all of its images; see `sample`."""
        return self.sample(number)

    def sample(self, number: int, images: Sequence[int] | None = None) -> Sample:
        """Return a sample by its number: shards in index order, samples in file order.

        Args:
            number: Number of the sample.
            images: Numbers of the images to read, without those that the sample does not have; None
                reads all.

        Raises:
            StorageError: The shard is gone or cannot be read.
            DamagedFileError: The shard does not agree with the index.
            BrokenSampleError: The text or the JSON of the sample is broken.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        within = number - int(self._ends[shard] - self.shard_sizes[shard])
        with self._translated(shard):
            headers = self._shard_headers(shard)
            places = {name: place for name, *place in headers.files(within)}
            names = sorted(filter(_is_image, places), key=_image_number)
            chosen = range(len(names)) if images is None else images
            files = [self._read(shard, *places[names[n]]) for n in chosen if n < len(names)]
            described = {
                name: self._read(shard, *place)
                for name, place in places.items()
                if name in ("txt", "json")
            }
        key = headers.keys[within]
        text, meta = _text_and_meta(described, key)
        return Sample(key, text, files, len(names), meta)

    def shards_of(self, numbers: NDArray[np.int64]) -> set[int]:
        """Return the numbers of the shards that hold some samples.

        Args:
            numbers: Numbers of the samples, [N].
        """
        return set(np.searchsorted(self._ends, numbers, side="right").tolist())

    def fetch(self, shard: int) -> None:
        """Download a remote shard into the cache, unless it is there.

        Raises:
            StorageError: It cannot be downloaded.
            DamagedFileError: It does not agree with the index.
        """
        with self._translated(shard):
            os.close(self._open_file(shard))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": OrderedDict(), "_open": OrderedDict()}

    def close(self) -> None:
        """Close the files that are open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Return a file of a shard by its place."""
        content = os.pread(self._descriptor(shard), size, offset)
        if len(content) != size:
            raise tarfile.ReadError("it was cut off while it was read")
        return content

    def _shard_headers(self, shard: int) -> TarIndex:
        if shard not in self._headers:
            self._descriptor(shard)
            try:
                self._headers[shard] = self._scan(shard)
            except tarfile.TarError:
                if not self.is_remote:
                    raise
                # The copy may have been damaged on this disk; a download is checked.
                os.close(self._open.pop(shard))
                self._cache.discard(self.shards[shard].sha256)
                self._headers[shard] = self._scan(shard)
            if len(self._headers) > self._remembered_shards:
                self._headers.popitem(last=False)
        self._headers.move_to_end(shard)
        return self._headers[shard]

    def _descriptor(self, shard: int) -> int:
        """Return the descriptor of the open file of a shard."""
        if shard not in self._open:
            self._open[shard] = self._open_file(shard)
            if len(self._open) > MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_file(self, shard: int) -> int:
        committed = self.shards[shard]
        if self.is_remote:
            return self._cache.open(committed.url, committed.sha256)
        return os.open(committed.url, os.O_RDONLY)

    def _scan(self, shard: int) -> TarIndex:
        headers = read_tar_index(self._descriptor(shard))
        if len(headers.keys) != self.shard_sizes[shard]:
            raise tarfile.ReadError(
                f"it holds {len(headers.keys)} samples, but {self.index_path} says "
                f"{self.shard_sizes[shard]}"
            )
        return headers

    @contextlib.contextmanager
    def _translated(self, shard: int) -> Iterator[None]:
        """Translate errors of a shard into sentences."""
        committed = self.shards[shard]
        url = committed.url
        folder = committed.folder or self.shards.folder
        try:
            with storage.accessing("read", url):
                yield
        except MissingFileError as error:
            raise MissingFileError(
                error.errno,
                f"shard {url} is gone, though {self.index_path} lists it; restore it, or run "
                f"{folder.commands} to make it again",
            ) from error
        except tarfile.TarError:
            with reading(f"shard {url}", f"check its run with {folder.verify_command}"):
                raise


def _text_and_meta(content: Mapping[str, bytes], key: str) -> tuple[str, SampleMeta]:
    try:
        text = content.get("txt", b"").decode("utf-8")
        described = json.loads(content.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"the text or JSON of sample {key} is broken: {error}") from error
    if not isinstance(described, dict):
        raise BrokenSampleError(f"the JSON of sample {key} is not an object")
    own = {"caption_id": key, "text": text}
    known: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for name, value in described.items():
        if name in _META_TYPES and isinstance(value, _META_TYPES[name]):
            known[name] = value
        elif name in _META_TYPES and value is None:
            continue
        elif name not in own or own[name] != value:
            other[name] = value
    return text, SampleMeta(**known, other=other)


def _is_image(name: str) -> bool:
    return name.partition(".")[0].isdigit()


def _image_number(name: str) -> int:
    return int(name.partition(".")[0])
