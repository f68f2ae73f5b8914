"""Resharding: write the captions that deduplication kept to shards of exactly equal size.

The partitions of deduplication are in the random order, and the number of captions of each is
known. So an output shard is a pure function of its number and is written on its own.
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
from transforms.core.shards import StageFolder
from transforms.curation.dedup import Deduplication
from transforms.curation.file_shuffle import AllResults
from transforms.curation.limit import ConceptLimit


@dataclass(frozen=True)
class KeptCaptions:
    """The captions that deduplication kept, as one sequence in the random order.

    Attributes:
        deduplication: Deduplication whose scratch files are read.
        counts: Number of kept captions of each partition.
        limit: Most captions of a concept; None without a limit.
    """

    deduplication: Deduplication
    counts: tuple[int, ...]
    limit: ConceptLimit | None = None

    @property
    def starts(self) -> list[int]:
        """Position of the first caption of each partition, and the end of the last."""
        return [0, *accumulate(self.counts)]

    def partition_at(self, position: int) -> int:
        """Return the partition of the caption at a position."""
        return bisect_right(self.starts, position) - 1

    def rows(self, start: int, stop: int) -> pa.Table:
        """Read the captions from position `start` up to but not including `stop`."""
        slices, starts = [], self.starts
        for partition in range(self.partition_at(start), len(self.counts)):
            first, last = max(start, starts[partition]), min(stop, starts[partition + 1])
            if first < last:
                rows = _cached_partition(self, partition)
                slices.append(rows.slice(first - starts[partition], last - first))
        return pa.concat_tables(slices)

    def of_partition(self, partition: int, columns: list[str]) -> pa.Table:
        """Read the kept captions of a partition; the columns include source and concept."""
        rows = self.deduplication.kept(partition, columns)
        return rows if self.limit is None else self.limit.keep(partition, rows)


@lru_cache(maxsize=2)
def _cached_partition(kept: KeptCaptions, partition: int) -> pa.Table:
    # Consecutive shards read the same partition, or the end of one and the beginning of the next.
    return kept.of_partition(partition, kept.deduplication.schema.names)


class CountCaptions(beam.PTransform):
    """Count captions by source, concept and template: partition numbers -> a JSON file.

    Args:
        kept: All kept captions.
        num_captions: Number of captions to count, from the first on.
        url: URL of the JSON file.
    """

    def __init__(self, kept: KeptCaptions, num_captions: int, url: str) -> None:
        super().__init__()
        self._count = _CountPartition(kept, num_captions)
        self._url = url

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        """Count per partition, sum with Beam and write the file."""
        return (
            partitions
            | "Spread" >> beam.Reshuffle()
            | "Count" >> beam.ParDo(self._count).with_output_types(tuple[Group, int])
            | "Sum" >> beam.CombinePerKey(sum)
            | "Results" >> AllResults()
            | "Write" >> beam.Map(_write_counts, self._url)
        )


class ReshardCaptions(beam.PTransform):
    """Write output shards: lists of shard numbers (see `by_partition`) -> committed shards.

    Args:
        kept: All kept captions.
        folder: Folder of the output stage.
        fingerprint: Fingerprint for the commit records.
        captions_per_shard: Number of captions of every output shard.
    """

    def __init__(
        self, kept: KeptCaptions, folder: StageFolder, fingerprint: str, captions_per_shard: int
    ) -> None:
        super().__init__()
        self._write = _WriteShards(kept, folder, fingerprint, captions_per_shard)

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Spread the lists over the workers and write their shards."""
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.ParDo(self._write).with_output_types(int)
        )


def by_partition(
    shards: Iterable[int], kept: KeptCaptions, captions_per_shard: int
) -> list[list[int]]:
    """Group output shards by the partition in which they start, so that one task reads it once."""
    groups: dict[int, list[int]] = {}
    for shard in sorted(shards):
        groups.setdefault(kept.partition_at(shard * captions_per_shard), []).append(shard)
    return list(groups.values())


def read_counts(url: str) -> list[tuple[Group, int]]:
    """Read the file that `CountCaptions` writes."""
    rows = json.loads(storage.read_bytes(url))
    return [((source, concept, template), number) for source, concept, template, number in rows]


class _CountPartition(beam.DoFn):
    def __init__(self, kept: KeptCaptions, num_captions: int) -> None:
        self._kept = kept
        self._num_captions = num_captions

    def process(self, partition: int) -> Iterator[tuple[Group, int]]:
        used = max(0, self._num_captions - self._kept.starts[partition])
        rows = self._kept.of_partition(partition, GROUP_COLUMNS).slice(0, used)
        counted = rows.group_by(GROUP_COLUMNS).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            yield (row["source"], row["concept"], row["template"]), row["count_all"]


def _write_counts(counts: list[tuple[Group, int]], url: str) -> None:
    rows = [[*group, number] for group, number in sorted(counts)]
    storage.replace_bytes(json.dumps(rows).encode(), url)


class _WriteShards(beam.DoFn):
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
        assert len(rows) == self._size, "curation checks that there are enough captions"
        record_ids = [str(ordinal) for ordinal in rows["ordinal"].to_pylist()]
        with ShardBuild(self._folder, shard) as build:
            if not build.published_by_another(record_ids):
                schema = self._kept.deduplication.schema
                build.write(rows.select(schema.names).cast(schema))
            build.commit(record_ids, self._fingerprint, Tally())
