"""Cutting: what deduplication kept -> output shards of exactly equal size, in the random order.

Deduplication leaves partitions in the order of their keys, and the number of captions of each. So
every output shard knows its rows and is made on its own: a pure function of its number.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import apache_beam as beam
import pyarrow as pa

from transforms.concepts.balance import GROUP_COLUMNS, Group
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.records import CAPTION_SCHEMA
from transforms.core.shards import StageFolder
from transforms.curation.dedup import Deduplication
from transforms.curation.file_shuffle import AllResults


@dataclass(frozen=True)
class KeptCaptions:
    """The captions that deduplication kept, as one sequence.

    Attributes:
        deduplication: Whose files are read.
        counts: Captions of each partition.
    """

    deduplication: Deduplication
    counts: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """Position of the first caption of each partition, and the end."""
        return [0, *accumulate(self.counts)]

    def partition_at(self, position: int) -> int:
        """The partition that holds a position."""
        return bisect_right(self.starts, position) - 1

    def rows(self, start: int, stop: int) -> pa.Table:
        """The captions from position `start` up to but not including `stop`."""
        pieces, starts = [], self.starts
        for partition in range(self.partition_at(start), len(self.counts)):
            first, last = max(start, starts[partition]), min(stop, starts[partition + 1])
            if first < last:
                rows = _partition(self.deduplication, partition)
                pieces.append(rows.slice(first - starts[partition], last - first))
        return pa.concat_tables(pieces)


@lru_cache(maxsize=2)
def _partition(deduplication: Deduplication, partition: int) -> pa.Table:
    # Neighbouring shards are cut from the same partition, or from the end of one and the beginning
    # of the next.
    return deduplication.kept(partition, CAPTION_SCHEMA.names)


class CountCaptions(beam.PTransform):
    """Partitions -> a JSON file with the number of captions by source, concept and template.

    Args:
        kept: What was kept.
        num_captions: How many of it are used, from the first on.
        url: Of the file.
    """

    def __init__(self, kept: KeptCaptions, num_captions: int, url: str) -> None:
        super().__init__()
        self._count = _Count(kept, num_captions)
        self._url = url

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        """Counts are summed by Beam: they are few."""
        return (
            partitions
            | "Spread" >> beam.Reshuffle()
            | "Count" >> beam.ParDo(self._count).with_output_types(tuple[Group, int])
            | "Sum" >> beam.CombinePerKey(sum)
            | "Results" >> AllResults()
            | "Write" >> beam.Map(_write_counts, self._url)
        )


class CutShards(beam.PTransform):
    """Lists of output shards, each list from one partition -> numbers of committed shards."""

    def __init__(
        self, kept: KeptCaptions, folder: StageFolder, fingerprint: str, captions_per_shard: int
    ) -> None:
        super().__init__()
        self._cut = _Cut(kept, folder, fingerprint, captions_per_shard)

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Cut them."""
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "Cut" >> beam.ParDo(self._cut).with_output_types(int)
        )


def by_partition(
    shards: Iterable[int], kept: KeptCaptions, captions_per_shard: int
) -> list[list[int]]:
    """Output shards, those together that start in the same partition."""
    groups: dict[int, list[int]] = {}
    for shard in sorted(shards):
        groups.setdefault(kept.partition_at(shard * captions_per_shard), []).append(shard)
    return list(groups.values())


def read_counts(url: str) -> list[tuple[Group, int]]:
    """What `CountCaptions` wrote."""
    rows = json.loads(storage.read_bytes(url))
    return [((source, concept, template), number) for source, concept, template, number in rows]


class _Count(beam.DoFn):
    def __init__(self, kept: KeptCaptions, num_captions: int) -> None:
        self._kept = kept
        self._num_captions = num_captions

    def process(self, partition: int) -> Iterator[tuple[Group, int]]:
        used = max(0, self._num_captions - self._kept.starts[partition])
        rows = self._kept.deduplication.kept(partition, GROUP_COLUMNS).slice(0, used)
        counted = rows.group_by(GROUP_COLUMNS).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            yield (row["source"], row["concept"], row["template"]), row["count_all"]


def _write_counts(counts: list[tuple[Group, int]], url: str) -> None:
    rows = [[*group, number] for group, number in sorted(counts)]
    storage.replace_bytes(json.dumps(rows).encode(), url)


class _Cut(beam.DoFn):
    def __init__(
        self, kept: KeptCaptions, folder: StageFolder, fingerprint: str, captions_per_shard: int
    ) -> None:
        self._kept = kept
        self._folder = folder
        self._fingerprint = fingerprint
        self._size = captions_per_shard

    def process(self, shards: list[int]) -> Iterator[int]:
        for shard in shards:
            if not storage.exists(self._folder.commit_url(shard)):
                self._commit(shard)
            yield shard

    def _commit(self, shard: int) -> None:
        rows = self._kept.rows(shard * self._size, (shard + 1) * self._size)
        assert len(rows) == self._size, "there are enough captions"
        owed = [str(ordinal) for ordinal in rows["ordinal"].to_pylist()]
        with ShardBuild(self._folder, shard) as build:
            if not build.published_by_another(owed):
                build.write(rows.select(CAPTION_SCHEMA.names).cast(CAPTION_SCHEMA))
            build.commit(owed, self._fingerprint, Tally())
