"""Random access to the image shards of a run, by the number of the sample.

The index says how many samples each shard has; the tar headers of a shard are read once and
remembered for as long as its window lasts. Shards are plain WebDataset tars, so any tool that
writes those (and an index) will do.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.shard_cache import ShardCache
from trainer.data.tar_index import TarIndex, read_tar_index
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, StorageError
from transforms.core.shards import Index, read_index

MAX_OPEN_SHARDS = 64
DEFAULT_CACHE_FOLDER = ".cache/shards"
DEFAULT_CACHE_BYTES = 50 << 30


@dataclass(frozen=True)
class Sample:
    """A caption and its images, still encoded."""

    caption_id: str
    text: str
    images: list[bytes]
    meta: dict[str, Any]


class BrokenSampleError(ValueError):
    """A sample's caption or metadata cannot be read, while the shard around it is whole."""


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
        MissingFileError: There is no index, so the stage is not complete.
        ConfigError: There is no images stage, or one of another number of images per caption.
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
        index = read_stage_index(index_path, "images", "data", ".tar")
        held = index.metadata.get("images_per_caption")
        if images_per_caption is not None and held not in (None, str(images_per_caption)):
            raise ConfigError(
                f"images_per_caption is {images_per_caption}, but the shards of {index_path} "
                f"hold {held} images per caption"
            )
        self.shard_sizes = np.asarray(index.table["num_samples"], dtype=np.int64)
        self.shard_bytes = np.asarray(index.table["num_bytes"], dtype=np.int64)
        self.is_remote = not storage.is_local(index.folder)
        self.cache_bytes = cache_bytes
        self._folder = index.folder
        # Arrow's columns: lists of 600,000 strings would take each worker half a gigabyte.
        self._paths = index.table["path"].combine_chunks()
        self._checksums = index.table["sha256"].combine_chunks()
        self._ends = np.cumsum(self.shard_sizes)
        self._cache = ShardCache(cache_folder, cache_bytes)
        self._remembered_shards = remembered_shards
        self._headers: OrderedDict[int, TarIndex] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()

    @property
    def checksum(self) -> str:
        """Of the content and the order of all shards, 32 hex digits."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._checksums:
            digest.update(shard.as_buffer())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        """A sample by its number: shards in index order, samples in file order.

        Raises:
            StorageError: The shard is gone or cannot be read.
            DamagedFileError: The shard is not what the index says.
            BrokenSampleError: The sample's text or JSON is none.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        within = number - int(self._ends[shard] - self.shard_sizes[shard])
        with self._sentences(shard):
            key, content = self._read(shard, within)
        images = sorted(filter(_is_image, content), key=_image_number)
        return Sample(
            caption_id=key,
            images=[content[name] for name in images],
            **_text_and_meta(content, key),
        )

    def shards_of(self, numbers: NDArray[np.int64]) -> set[int]:
        """The shards that hold some samples.

        Args:
            numbers: int64 [N], of the samples.
        """
        return set(np.searchsorted(self._ends, numbers, side="right").tolist())

    def fetch(self, shard: int) -> None:
        """See to it that a remote shard is in the cache.

        Raises:
            StorageError: It cannot be downloaded.
            DamagedFileError: It is not what the index says.
        """
        with self._sentences(shard):
            os.close(self._open_file(shard))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": OrderedDict(), "_open": OrderedDict()}

    def close(self) -> None:
        """Close the files that are open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, shard: int, within: int) -> tuple[str, dict[str, bytes]]:
        """The key and the files of a sample of a shard."""
        headers = self._shard_headers(shard)
        content = {}
        for name, offset, size in headers.files(within):
            content[name] = os.pread(self._descriptor(shard), size, offset)
            if len(content[name]) != size:
                raise tarfile.ReadError("it was cut off while it was read")
        return headers.keys[within], content

    def _shard_headers(self, shard: int) -> TarIndex:
        if shard not in self._headers:
            self._descriptor(shard)
            try:
                self._headers[shard] = self._scan(shard)
            except tarfile.TarError:
                if not self.is_remote:
                    raise
                # The copy may have been damaged on this disk: fetched anew, it is checked.
                os.close(self._open.pop(shard))
                self._cache.discard(self._checksums[shard].as_py())
                self._headers[shard] = self._scan(shard)
            if len(self._headers) > self._remembered_shards:
                self._headers.popitem(last=False)
        self._headers.move_to_end(shard)
        return self._headers[shard]

    def _descriptor(self, shard: int) -> int:
        """The open file of a shard."""
        if shard not in self._open:
            self._open[shard] = self._open_file(shard)
            if len(self._open) > MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_file(self, shard: int) -> int:
        if self.is_remote:
            return self._cache.open(self._url(shard), self._checksums[shard].as_py())
        return os.open(self._url(shard), os.O_RDONLY)

    def _scan(self, shard: int) -> TarIndex:
        headers = read_tar_index(self._descriptor(shard))
        if len(headers.keys) != self.shard_sizes[shard]:
            raise tarfile.ReadError(
                f"it holds {len(headers.keys)} samples, but {self.index_path} says "
                f"{self.shard_sizes[shard]}"
            )
        return headers

    def _url(self, shard: int) -> str:
        return storage.join(self._folder, self._paths[shard].as_py())

    @contextlib.contextmanager
    def _sentences(self, shard: int) -> Iterator[None]:
        """Say in a sentence what is wrong with a shard."""
        url = self._url(shard)
        try:
            yield
        except (FileNotFoundError, MissingFileError) as error:
            raise MissingFileError(
                error.errno,
                f"shard {url} is gone, though {self.index_path} lists it; restore it, or run the "
                "images stage again",
            ) from error
        except StorageError:
            raise
        except OSError as error:
            where = f" ({error.filename})" if error.filename not in (None, url) else ""
            raise StorageError(
                error.errno, f"cannot read shard {url}: {error.strerror or error}{where}"
            ) from error
        except tarfile.TarError as error:
            raise DamagedFileError(
                f"shard {url} is damaged ({error}); run `verify` on the run"
            ) from error


def read_stage_index(index_path: str, stage: str, key: str, suffix: str) -> Index:
    """The index of a complete stage, whose folder the config's `key` can name.

    Raises:
        MissingFileError: The stage was begun, but is not complete.
        ConfigError: There is no such stage, or one of shards without the `suffix`.
        DamagedFileError: The file is not an index.
    """
    folder = index_path.rpartition("/")[0]
    expected = f"expected the folder of a finished {stage} stage, such as RUN/{stage}"
    try:
        index = read_index(index_path)
    except MissingFileError as error:
        if not storage.exists(storage.join(folder, "run.yaml")):
            raise ConfigError(f"{folder} (key {key}, or run) holds no stage: {expected}") from error
        raise MissingFileError(
            error.errno,
            f"there is no index {index_path}: the {stage} stage is not complete; run it (again), "
            f"or set {key} to the folder of one that is",
        ) from error
    paths = index.table["path"]
    strange = paths.filter(pc.invert(pc.ends_with(paths, suffix)))
    if len(strange):
        raise ConfigError(f"{folder} (key {key}, or run) holds {strange[0]}: {expected}")
    return index


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
