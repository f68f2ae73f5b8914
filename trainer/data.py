"""Random access to the image shards of a run, by the number of the sample.

The index says how many samples each shard has; the tar headers of a shard are read once and
remembered for as long as its window lasts. Shards are plain WebDataset tars, so any tool that
writes those (and an index) will do.
"""

import hashlib
import json
import os
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from trainer.shard_cache import ShardCache
from transforms.core import storage
from transforms.core.config import Config, ConfigError, no_fingerprint
from transforms.core.shards import DamagedFileError, Index, read_index

MAX_OPEN_SHARDS = 64
DEFAULT_CACHE_FOLDER = ".cache/shards"
DEFAULT_CACHE_BYTES = 50 << 30


class DataConfig(Config):
    """How the shards are read."""

    shuffle_shards: PositiveInt = 100
    """Samples are shuffled inside a window of this many shards, which are shuffled themselves."""
    num_workers: NonNegativeInt = no_fingerprint(2)
    """Processes per rank that decode and crop; 0 does it in the training process."""
    prefetch: PositiveInt = no_fingerprint(2)
    """Batches that each worker prepares ahead."""
    cache_folder: str = no_fingerprint(DEFAULT_CACHE_FOLDER)
    """Where copies of remote shards are kept; local shards are read in place."""
    cache_gib: PositiveFloat = no_fingerprint(50.0)
    """Bound of that folder in GiB; a window of shards should fit."""


@dataclass(frozen=True)
class Sample:
    """A caption and its images, still encoded."""

    caption_id: str
    text: str
    images: list[bytes]
    meta: dict[str, Any]


class BrokenSampleError(ValueError):
    """A sample's caption or metadata cannot be read, while the shard around it is whole."""


@dataclass(frozen=True)
class _Headers:
    """Where the samples of a shard are, in a few bytes a member: many shards are remembered."""

    keys: list[str]
    """Of each sample."""
    ends: NDArray[np.int64]
    """[samples], the number of the member after the sample's last one."""
    names: list[str]
    """Of each member, what follows the key: "0.jpg", "txt", "json"."""
    places: NDArray[np.int64]
    """[members, 2], offset and size."""


class ShardReader:
    """The samples of a complete images stage: `reader[i]` for i from 0 to `len(reader)` - 1.

    It can be pickled and forked; each process opens its own files.

    Args:
        index_path: Path or URL of `index.parquet`.
        images_per_caption: How many there must be; None accepts any number.
        cache_folder: For copies of remote shards.
        cache_bytes: Bound of that folder.
        remembered_shards: Tar headers that are kept; where fewer are kept than a window has
            shards, most samples have theirs read again.

    Raises:
        storage.MissingFileError: There is no index, so the stage is not complete.
        ConfigError: The shards hold another number of images per caption.
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
        self._index = read_stage_index(index_path, "images", "data")
        held = self._index.metadata.get("images_per_caption")
        if images_per_caption is not None and held not in (None, str(images_per_caption)):
            raise ConfigError(
                f"images_per_caption is {images_per_caption}, but the shards of {index_path} "
                f"hold {held} images per caption"
            )
        self.shard_sizes = np.asarray(self._index.table["num_samples"], dtype=np.int64)
        self.shard_bytes = np.asarray(self._index.table["num_bytes"], dtype=np.int64)
        self.is_remote = not storage.is_local(self._index.folder)
        self.cache_bytes = cache_bytes
        self._paths: list[str] = self._index.table["path"].to_pylist()
        self._checksums: list[str] = self._index.table["sha256"].to_pylist()
        self._ends = np.cumsum(self.shard_sizes)
        self._cache = ShardCache(cache_folder, cache_bytes)
        self._remembered_shards = remembered_shards
        self._headers: OrderedDict[int, _Headers] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()

    @property
    def checksum(self) -> str:
        """Of the content and the order of all shards, 32 hex digits."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._checksums:
            digest.update(shard.encode("ascii"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        """A sample by its number: shards in index order, samples in file order.

        Raises:
            storage.StorageError: The shard is gone or cannot be read.
            DamagedFileError: The shard is not what the index says.
            BrokenSampleError: The sample's text or JSON is none.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        descriptor, headers = self._shard(shard)
        within = number - int(self._ends[shard] - self.shard_sizes[shard])
        start, end = int(headers.ends[within - 1]) if within else 0, int(headers.ends[within])
        places = headers.places[start:end].tolist()
        content = {
            name: os.pread(descriptor, size, offset)
            for name, (offset, size) in zip(headers.names[start:end], places, strict=True)
        }
        images = sorted(filter(_is_image, content), key=_image_number)
        return Sample(
            caption_id=headers.keys[within],
            images=[content[name] for name in images],
            **_text_and_meta(content, headers.keys[within]),
        )

    def fetch(self, shard: int) -> None:
        """See to it that a remote shard is in the cache.

        Raises:
            storage.StorageError: It cannot be downloaded.
        """
        url = storage.join(self._index.folder, self._paths[shard])
        os.close(self._cache.open(url, self._checksums[shard]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": OrderedDict(), "_open": OrderedDict()}

    def close(self) -> None:
        """Close the files that are open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _shard(self, shard: int) -> tuple[int, _Headers]:
        """The open file of a shard, and where its samples are."""
        if shard not in self._open:
            self._open[shard] = self._open_file(shard)
            if len(self._open) > MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        if shard not in self._headers:
            self._headers[shard] = self._scan(shard, self._open[shard])
            if len(self._headers) > self._remembered_shards:
                self._headers.popitem(last=False)
        self._headers.move_to_end(shard)
        return self._open[shard], self._headers[shard]

    def _open_file(self, shard: int) -> int:
        url = storage.join(self._index.folder, self._paths[shard])
        try:
            if self.is_remote:
                return self._cache.open(url, self._checksums[shard])
            return os.open(url, os.O_RDONLY)
        except (FileNotFoundError, storage.MissingFileError) as error:
            raise storage.MissingFileError(
                error.errno,
                f"shard {url} is gone, though {self.index_path} lists it; restore it, or run the "
                "images stage again",
            ) from error

    def _scan(self, shard: int, descriptor: int) -> _Headers:
        url = storage.join(self._index.folder, self._paths[shard])
        num_samples = int(self.shard_sizes[shard])
        samples: dict[str, list[tuple[str, int, int]]] = {}
        os.lseek(descriptor, 0, os.SEEK_SET)  # It may have been read before.
        try:
            with (
                os.fdopen(os.dup(descriptor), "rb") as file,
                tarfile.open(fileobj=file, mode="r:") as archive,
            ):
                for member in archive:
                    folder, slash, base = member.name.rpartition("/")
                    key, _, name = base.partition(".")
                    samples.setdefault(folder + slash + key, []).append(
                        (sys.intern(name), member.offset_data, member.size)
                    )
        except tarfile.TarError as error:
            raise DamagedFileError(
                f"shard {url} is damaged ({error}); run `verify` on the run"
            ) from error
        if len(samples) != num_samples:
            raise DamagedFileError(
                f"shard {url} holds {len(samples)} samples, but {self.index_path} says "
                f"{num_samples}; run `verify` on the run"
            )
        members = [member for sample in samples.values() for member in sample]
        return _Headers(
            keys=list(samples),
            ends=np.cumsum([len(sample) for sample in samples.values()]),
            names=[name for name, _, _ in members],
            places=np.array([place for _, *place in members], dtype=np.int64),
        )


def read_stage_index(index_path: str, stage: str, key: str) -> Index:
    """The index of a complete stage, whose folder the config's `key` can name.

    Raises:
        storage.MissingFileError: There is no index, so the stage is not complete.
        DamagedFileError: The file is not an index.
    """
    try:
        return read_index(index_path)
    except storage.MissingFileError as error:
        raise storage.MissingFileError(
            error.errno,
            f"there is no index {index_path}: the {stage} stage is not complete; run it (again), "
            f"or set {key} to the folder of one that is",
        ) from error


def _text_and_meta(content: dict[str, bytes], key: str) -> dict[str, Any]:
    try:
        text = content.get("txt", b"").decode("utf-8")
        meta = json.loads(content.get("json", b"{}"))
    except ValueError as error:
        raise BrokenSampleError(f"the text or JSON of sample {key} is broken: {error}") from error
    if not isinstance(meta, dict):
        raise BrokenSampleError(f"the JSON of sample {key} is no object")
    return {"text": text, "meta": meta}


def _is_image(name: str) -> bool:
    return name.partition(".")[0].isdigit()


def _image_number(name: str) -> int:
    return int(name.partition(".")[0])
