"""The one reader of committed shards: of a complete stage, as its index lists them.

Every shard is checked against its SHA-256 in the index before its content is used, and the index
against its SHA-256 in `_SUCCESS`.
"""

import errno
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, reading
from transforms.core.index import examine, parse_index, read_success
from transforms.core.shards import StageFolder

_READERS = 16
"""Shards read at once by `tables`."""
_SHARDS_KEPT = 4
"""Parquet shards of about 1 MB that `RowReader` keeps in memory. Image shards are made in random
order, so most of them read their caption shard again: little next to the minutes of painting."""


@dataclass(frozen=True)
class CommittedShard:
    """A committed shard, as its index lists it.

    Attributes:
        url: Path or URL of the file.
        sha256: Checksum of its content, 64 hex digits.
        num_samples: Number of its samples.
        folder: Folder of the stage or of the retry that made it, for the sentences.
    """

    url: str
    sha256: str
    num_samples: int
    folder: StageFolder | None = None

    def read(self) -> bytes:
        """Return the checked content.

        Raises:
            MissingFileError: The file does not exist.
            DamagedFileError: The content is not what was committed.
        """
        try:
            content = storage.read_bytes(self.url)
        except MissingFileError as error:
            again = f"; run {self.folder.commands} to make it again" if self.folder else ""
            raise MissingFileError(error.errno, f"{error}{again}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            verify = f"; check its run with {self.folder.verify_command}" if self.folder else ""
            raise DamagedFileError(
                f"shard {self.url} is damaged: its checksum is not the one in the index{verify}"
            )
        return content

    def read_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a Parquet shard, of all columns or of some; see `read`."""
        content = self.read()
        with reading(f"shard {self.url}"):
            names = None if columns is None else list(columns)
            return pq.read_table(pa.BufferReader(content), columns=names, use_threads=False)


@dataclass(frozen=True, eq=False)
class CommittedShards:
    """The shards of a complete stage. It pickles, and holds 600,000 shards as Arrow columns.

    Attributes:
        folder: Folder of the stage.
        checksum: SHA-256 of the index. It identifies the content and the order of all shards.
        table: One row per shard, as `shards.IndexRow`.
        metadata: Metadata of the stage.
    """

    folder: StageFolder
    checksum: str
    table: pa.Table
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, folder: StageFolder, key: str | None = None) -> "CommittedShards":
        """Read the index of a complete stage; whether the shards are there is not checked.

        Args:
            folder: Folder of the stage.
            key: Config key that can name the folder, for the sentences. With a key, a folder
                without any stage is a wrong config and not an unfinished stage.

        Raises:
            MissingFileError: There is no index; the message names the command.
            ConfigError: The folder holds no stage, or one of another kind.
            DamagedFileError: The index is damaged.
        """
        named = f" (key {key}, or run)" if key else ""
        expected = _expected(folder)
        try:
            content = storage.read_bytes(folder.index_url)
        except MissingFileError as error:
            if key and not storage.exists(folder.run_yaml_url):
                raise ConfigError(f"{folder.url}{named} holds no stage: {expected}") from error
            raise _incomplete(folder, f"there is no {folder.index_url}", key) from error
        success = read_success(folder)
        try:
            sha256 = None if success is None else success["index_sha256"]
            index = parse_index(content, folder.index_url, sha256)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{error}; run {folder.index_command} to write it again"
            ) from error
        strange = _without_suffix(index.table["path"], folder.kind.format.suffix)
        if len(strange):
            raise ConfigError(f"{folder.url}{named} holds {strange[0]}: {expected}")
        checksum = hashlib.sha256(content).hexdigest()
        return cls(folder, checksum, index.table.combine_chunks(), index.metadata)

    @classmethod
    def open_complete(cls, folder: StageFolder) -> "CommittedShards":
        """Read the index of a complete stage; see `open`.

        Raises:
            MissingFileError: The stage is not complete, or a shard is missing or of another size;
                the message names the file and the command.
            DamagedFileError: The index is damaged.
        """
        shards = cls.open(folder)
        fault = examine(folder).fault
        if fault is not None:
            raise _incomplete(folder, fault)
        return shards

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, number: int) -> CommittedShard:
        path, sha256, size = (
            self.table[name][number].as_py() for name in ("path", "sha256", "num_samples")
        )
        url = storage.join(self.folder.url, path)
        return CommittedShard(url, sha256, size, self.folder.owner(path))

    def __iter__(self) -> Iterator[CommittedShard]:
        return (self[number] for number in range(len(self)))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each shard, [shards]."""
        return np.asarray(self.table["num_samples"], dtype=np.int64)

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.sizes.sum())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of each Parquet shard in order, reading several shards at once.

        Args:
            columns: Columns to read; None for all.

        Raises:
            MissingFileError: A shard does not exist.
            DamagedFileError: A shard is not what was committed.
        """
        with ThreadPoolExecutor(_READERS, "shards") as pool:
            for start in range(0, len(self), _READERS):
                shards = (self[n] for n in range(start, min(start + _READERS, len(self))))
                yield from pool.map(lambda shard: shard.read_table(columns), shards)


@dataclass(frozen=True)
class RowReader:
    """The rows of a complete stage of Parquet shards as one sequence, by their global number.

    It pickles into a few bytes: each worker reads the index itself. A span of rows need not follow
    shards; only the shards and row groups that hold it are read.

    Attributes:
        folder: Folder of the stage.
        checksum: SHA-256 of its index.
        num_rows: Rows of all shards.
    """

    folder: StageFolder
    checksum: str
    num_rows: int

    @classmethod
    def open(cls, folder: StageFolder) -> "RowReader":
        """Read the index of a complete stage; see `CommittedShards.open`."""
        shards = CommittedShards.open(folder)
        return cls(folder, shards.checksum, shards.num_samples)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows from `start` up to but not including `stop`.

        Raises:
            MissingFileError: A shard does not exist.
            DamagedFileError: A shard is not what was committed, or the index changed meanwhile.
        """
        shards, starts = _opened(self.folder, self.checksum)
        parts: list[pa.Table] = []
        number = max(0, bisect_right(starts, start) - 1)
        while number < len(shards) and starts[number] < stop:
            first = max(start - starts[number], 0)
            last = min(stop, starts[number + 1]) - starts[number]
            if first < last:
                shard = shards[number]
                with reading(f"shard {shard.url}"):
                    content = _kept(shard)
                    parts.append(_rows(content, first, last, columns))
            number += 1
        # A shard may have an optional column that another one lacks.
        parts = parts or [shards[0].read_table(columns).slice(0, 0)]
        table = pa.concat_tables(parts, promote_options="default")
        assert len(table) == max(0, min(stop, starts[-1]) - start)
        return table


@lru_cache(maxsize=2)
def _opened(folder: StageFolder, checksum: str) -> tuple[CommittedShards, list[int]]:
    """Return the shards of a stage, and the global number of the first row of each, and the end."""
    shards = CommittedShards.open(folder)
    if shards.checksum != checksum:
        raise DamagedFileError(
            f"{folder.index_url} changed while it was read: run the same command again"
        )
    return shards, [0, *accumulate(shards.sizes.tolist())]


@lru_cache(maxsize=_SHARDS_KEPT)
def _kept(shard: CommittedShard) -> bytes:
    return shard.read()


def _expected(folder: StageFolder) -> str:
    name = folder.kind.folder
    return f"expected the folder of a complete {name} stage, such as RUN/{name}"


def _incomplete(folder: StageFolder, fault: str, key: str | None = None) -> MissingFileError:
    other = f", or set {key} to the folder of a complete one" if key else ""
    return MissingFileError(
        errno.ENOENT,
        f"the {folder.kind.folder} stage is not complete ({fault}): run `python -m pipelines "
        f"{folder.command}` until it is{other}, then this command again",
    )


def _without_suffix(paths: pa.ChunkedArray, suffix: str) -> pa.ChunkedArray:
    import pyarrow.compute as pc  # A tenth of a second that `--help` does not need.

    return paths.filter(pc.invert(pc.ends_with(paths, suffix)))


def _rows(content: bytes, first: int, last: int, columns: Sequence[str] | None) -> pa.Table:
    """Return the rows from `first` to `last` of a shard, from the row groups that hold them."""
    file = pq.ParquetFile(pa.BufferReader(content))
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = [0, *accumulate(sizes)]
    groups = [g for g in range(len(sizes)) if starts[g] < last and starts[g + 1] > first]
    table = file.read_row_groups(groups, columns=None if columns is None else list(columns))
    return table.slice(first - starts[groups[0]], last - first)
