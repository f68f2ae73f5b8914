"""Curation: exact duplicates removed over all shards, global random order, shards of equal size.

Captions are ordered by a hash of (seed, caption_id), so the order is random, and the same however
the input was cut, ordered or repeated. The hash also cuts them into range partitions: duplicates
meet in one partition, and no worker ever holds more than one partition or one shard.

    CountDistinct   shards -> ids -> by partition -> how many distinct ids each partition has
    CurateShards    shards -> captions -> by partition -> distinct and sorted -> by output shard

With the counts of all partitions, each knows at which global position its captions start, so the
second pass cuts shards of exactly equal size without anyone seeing everything.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.records import CAPTION_SCHEMA, Caption
from transforms.core.seeding import derive
from transforms.core.shards import DamagedFileError, Index, StageFolder

_KEY_BITS = 64
Row = tuple[Any, ...]
"""A caption as the values of its columns: plain values cross a shuffle faster than records."""

_ID = CAPTION_SCHEMA.names.index("caption_id")
_ORDINAL = CAPTION_SCHEMA.names.index("ordinal")


@dataclass(frozen=True)
class InputShard:
    """A committed shard of captions, as its index lists it."""

    url: str
    sha256: str


def input_shards(index: Index) -> list[InputShard]:
    """The shards of a complete captions stage."""
    rows = index.table.select(["path", "sha256"]).to_pylist()
    return [InputShard(storage.join(index.folder, row["path"]), row["sha256"]) for row in rows]


def order_key(seed: int, caption_id: str) -> int:
    """A caption's place in the random order, 64 bits."""
    return derive(seed, "order", caption_id, bits=_KEY_BITS)


def partition_of(key: int, num_partitions: int) -> int:
    """Which range of keys a key is in: partitions are in the order of their keys."""
    return key * num_partitions >> _KEY_BITS


def keep_distinct(rows: Iterable[Row]) -> list[Row]:
    """One row per caption_id, the one with the smallest ordinal."""
    kept: dict[str, Row] = {}
    for row in rows:
        other = kept.get(row[_ID])
        if other is None or row[_ORDINAL] < other[_ORDINAL]:
            kept[row[_ID]] = row
    return list(kept.values())


def in_order(rows: Iterable[Row], seed: int) -> list[Row]:
    """Rows by their order keys; equal keys by caption_id."""
    return sorted(rows, key=lambda row: (order_key(seed, row[_ID]), row[_ID]))


def cut(start: int, rows: Sequence[Row], size: int) -> Iterator[tuple[int, int, Sequence[Row]]]:
    """Cut a run of rows at shard boundaries.

    Args:
        start: Global position of the first row.
        rows: The run.
        size: Rows of a shard.

    Yields:
        Shard number, position of the piece within its shard, and the rows of the piece.
    """
    taken = 0
    while taken < len(rows):
        shard, offset = divmod(start + taken, size)
        piece = rows[taken : taken + size - offset]
        yield shard, offset, piece
        taken += len(piece)


def read_rows(shard: InputShard, columns: Sequence[str] | None = None) -> list[Row]:
    """The captions of a shard, all columns or some.

    Raises:
        DamagedFileError: The file is not the one that was committed.
    """
    content = storage.read_bytes(shard.url)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DamagedFileError(
            f"{shard.url} is not what its index says: delete it and its commit record, then run "
            "the captions stage again"
        )
    names = CAPTION_SCHEMA.names if columns is None else list(columns)
    table = pq.read_table(io.BytesIO(content), columns=names)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


class CountDistinct(beam.PTransform):
    """Input shards -> one JSON file with the number of distinct captions of each partition."""

    def __init__(self, seed: int, num_partitions: int, url: str, input_id: str) -> None:
        super().__init__()
        self._seed = seed
        self._num_partitions = num_partitions
        self._url = url
        self._input_id = input_id

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Ids only: a hundredth of what the second pass moves."""
        ids = _IdsByPartition(self._seed, self._num_partitions)
        write = _WriteCounts(self._num_partitions, self._url, self._input_id)
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "ReadIds" >> beam.ParDo(ids).with_output_types(tuple[int, list[str]])
            | "ByPartition" >> beam.GroupByKey()
            | "Count" >> beam.MapTuple(count_ids).with_output_types(tuple[int, int])
            | "Collect" >> beam.combiners.ToList()
            | "Write" >> beam.Map(write)
        )


class CurateShards(beam.PTransform):
    """Input shards -> numbers of committed output shards.

    Args:
        folder: Of the output.
        fingerprint: Digest for the commit records.
        seed: Of the order.
        counts: Distinct captions of each partition, from `CountDistinct`.
        captions_per_shard: Size of every output shard.
        wanted: Output shards to make: those that are not committed yet.
    """

    def __init__(
        self,
        folder: StageFolder,
        fingerprint: str,
        seed: int,
        counts: Sequence[int],
        captions_per_shard: int,
        wanted: Iterable[int],
    ) -> None:
        super().__init__()
        self._read = _RowsByPartition(seed, len(counts))
        self._place = _Place(seed, counts, captions_per_shard, frozenset(wanted))
        self._commit = _CommitShard(folder, fingerprint, captions_per_shard)

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Two shuffles: by partition, then by output shard."""
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "ReadCaptions" >> beam.ParDo(self._read).with_output_types(tuple[int, list[Any]])
            | "ByPartition" >> beam.GroupByKey()
            | "Place" >> beam.ParDo(self._place).with_output_types(tuple[int, Any])
            | "ByShard" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(self._commit).with_output_types(int)
        )


def count_ids(partition: int, groups: Iterable[list[str]]) -> tuple[int, int]:
    """A partition and how many distinct ids its groups hold."""
    return partition, len({caption_id for group in groups for caption_id in group})


def read_counts(url: str, input_id: str) -> list[int] | None:
    """What `CountDistinct` wrote for this input; None if it did not."""
    try:
        content = json.loads(storage.read_bytes(url))
    except (storage.MissingFileError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("input") != input_id:
        return None
    counts: list[int] = content["counts"]
    return counts


class _IdsByPartition(beam.DoFn):
    def __init__(self, seed: int, num_partitions: int) -> None:
        self._seed = seed
        self._num_partitions = num_partitions

    def process(self, shard: InputShard) -> Iterator[tuple[int, list[str]]]:
        groups: dict[int, list[str]] = {}
        for caption_id in {row[0] for row in read_rows(shard, ["caption_id"])}:
            key = order_key(self._seed, caption_id)
            groups.setdefault(partition_of(key, self._num_partitions), []).append(caption_id)
        yield from groups.items()


class _WriteCounts:
    def __init__(self, num_partitions: int, url: str, input_id: str) -> None:
        self._num_partitions = num_partitions
        self._url = url
        self._input_id = input_id

    def __call__(self, counted: list[tuple[int, int]]) -> None:
        found = dict(counted)
        counts = [found.get(partition, 0) for partition in range(self._num_partitions)]
        content = json.dumps({"input": self._input_id, "counts": counts})
        storage.replace_bytes(content.encode(), self._url)


class _RowsByPartition(beam.DoFn):
    def __init__(self, seed: int, num_partitions: int) -> None:
        self._seed = seed
        self._num_partitions = num_partitions

    def process(self, shard: InputShard) -> Iterator[tuple[int, list[Row]]]:
        groups: dict[int, list[Row]] = {}
        # Duplicates within a shard go first: a caption that is everywhere then meets itself once
        # per shard, not once per time it was written.
        for row in keep_distinct(read_rows(shard)):
            key = order_key(self._seed, row[_ID])
            groups.setdefault(partition_of(key, self._num_partitions), []).append(row)
        yield from groups.items()


class _Place(beam.DoFn):
    """A partition's captions, distinct and in order -> pieces of output shards."""

    def __init__(
        self, seed: int, counts: Sequence[int], captions_per_shard: int, wanted: frozenset[int]
    ) -> None:
        self._seed = seed
        self._starts = [0, *accumulate(counts)]
        self._size = captions_per_shard
        self._wanted = wanted

    def process(
        self, group: tuple[int, Iterable[list[Row]]]
    ) -> Iterator[tuple[int, tuple[int, list[Row]]]]:
        partition, row_lists = group
        rows = in_order(keep_distinct(row for rows in row_lists for row in rows), self._seed)
        start, end = self._starts[partition : partition + 2]
        assert len(rows) == end - start, "both passes read the same captions"
        for shard, offset, piece in cut(start, rows, self._size):
            if shard in self._wanted:
                yield shard, (offset, list(piece))


class _CommitShard(beam.DoFn):
    """The pieces of an output shard -> its committed number."""

    def __init__(self, folder: StageFolder, fingerprint: str, captions_per_shard: int) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._size = captions_per_shard

    def process(self, group: tuple[int, Iterable[tuple[int, list[Row]]]]) -> Iterator[int]:
        shard, pieces = group
        rows = [row for _, piece in sorted(pieces) for row in piece]
        assert len(rows) == self._size, "the pieces of a shard fill it"
        owed = [str(row[_ORDINAL]) for row in rows]
        with ShardBuild(self._folder, shard) as build:
            if not build.published_by_another(owed):
                names = CAPTION_SCHEMA.names
                build.write(Caption(**dict(zip(names, row, strict=True))) for row in rows)
            build.commit(owed, self._fingerprint, Tally())
        yield shard
