"""Deduplication: equal captions and near duplicates dropped over all shards.

A caption's key is its place in the random order and decides its partition. So the result is the
same however the input was cut, ordered or repeated, and no task holds more than one partition.

    scatter    input shards -> captions by key
    distinct   of equal captions the first written; bands of MinHash signatures by their value
    pair       captions that share a band -> pairs, by the key of the earlier caption
    fetch      the earlier caption's text, by the key of the later one
    verify     exact similarity: the later caption of each near-duplicate pair is dropped

The rule is local: a caption is dropped if it is a near duplicate of any caption before it in the
random order, also of one that is dropped itself. So no two captions that were found to be near
duplicates are both kept, and a chain loses no more than all its captions but the first, which is
what connected components would leave of it.

Beam shuffles no captions here: `partitions` says why.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.errors import MissingFileError
from transforms.curation.columns import (
    InputShard,
    column,
    first_written,
    order_keys,
    partition_of,
    read_table,
)
from transforms.curation.file_shuffle import (
    AllResults,
    Exchange,
    NextTasks,
    Result,
    RunTasks,
    read_rows,
    write_rows,
)
from transforms.curation.hashes import Hashes, changes, distinct
from transforms.curation.minhash import (
    CurationConfig,
    band_hashes,
    candidate_pairs,
    shingles,
    similarity,
)

NUM_EXAMPLES = 20
"""Of each kind of duplicate, for the report."""

_PAIRS_AT_A_TIME = 100_000

_NEAR_SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64()),
        pa.field("dropped", pa.string()),
        pa.field("resembled", pa.string()),
        pa.field("similarity", pa.float64()),
    ]
)
"""A near duplicate: its key and text, the text of the first caption that it resembles."""


@dataclass(frozen=True)
class Summary:
    """What deduplication found. Counts are per partition."""

    num_distinct: list[int]
    num_near_duplicates: list[int]
    near_examples: list[dict[str, Any]]
    """Near duplicates: the text that was dropped, the one it resembles, their similarity."""
    exact_examples: list[dict[str, Any]]
    """The texts that were written most often, and how many times."""

    @property
    def num_kept(self) -> list[int]:
        """Captions that are left of each partition."""
        counts = zip(self.num_distinct, self.num_near_duplicates, strict=True)
        return [different - near for different, near in counts]


def read_summary(url: str) -> Summary | None:
    """What `DropDuplicates` wrote; None if it did not end."""
    try:
        return Summary(**json.loads(storage.read_bytes(url)))
    except MissingFileError:
        return None


@dataclass(frozen=True)
class Deduplication:
    """The tasks that find what is kept, and the files they leave in scratch space.

    Attributes:
        scratch: Folder of these files; another for each input, seed and config.
        num_groups: Groups of input shards.
        num_partitions: Of the captions.
        seed: Of the order.
        config: What counts as a duplicate.
    """

    scratch: str
    num_groups: int
    num_partitions: int
    seed: int
    config: CurationConfig

    def scatter(self, group: int, shards: Sequence[InputShard]) -> Result:
        """Input shards -> captions by key. A caption that is everywhere goes on once a group."""
        captions = pa.concat_tables(read_table(shard) for shard in shards).combine_chunks()
        keys = order_keys(self.seed, column(captions, "caption_id"))
        ones = np.ones(len(captions), np.int64)
        rows = first_written(
            captions.append_column("key", pa.array(keys)).append_column("times", pa.array(ones))
        )
        self._exchange("captions").write(group, rows, self._partitions(rows["key"].to_numpy()))
        return {}

    def distinct(self, partition: int, _: None) -> Result:
        """A partition's captions, each once; the bands of their signatures."""
        rows = first_written(self._exchange("captions").read(partition, self.num_groups))
        write_rows(rows, self._file("distinct", partition))
        if self.config.near_duplicate_threshold is not None:
            bands = band_hashes(column(rows, "text"), self.config).ravel()
            keys = np.repeat(rows["key"].to_numpy(), self.config.num_bands)
            table = pa.table({"band": bands, "key": keys})
            self._exchange("bands").write(partition, table, self._partitions(bands))
        return {}

    def pair(self, partition: int, _: None) -> Result:
        """Captions that share a band -> pairs to be compared."""
        rows = self._exchange("bands").read(partition, self.num_partitions)
        earlier, later = candidate_pairs(rows["band"].to_numpy(), rows["key"].to_numpy())
        pairs = pa.table({"earlier": earlier, "later": later})
        self._exchange("pairs").write(partition, pairs, self._partitions(earlier))
        return {}

    def fetch(self, partition: int, _: None) -> Result:
        """Give each pair the text of its earlier caption, which is in this partition."""
        rows = self._exchange("pairs").read(partition, self.num_partitions)
        later, earlier = distinct(rows["later"].to_numpy(), rows["earlier"].to_numpy())
        texts = self._texts(partition, earlier)
        pairs = pa.table({"key": later, "earlier": earlier, "resembled": texts})
        self._exchange("texts").write(partition, pairs, self._partitions(later))
        return {}

    def verify(self, partition: int, _: None) -> Result:
        """Drop a partition's near duplicates; how many captions are left, and examples."""
        near = self._near_duplicates(partition)
        write_rows(near, self._file("near", partition))
        rows = read_rows(self._file("distinct", partition), ["text", "times"])
        often = rows.sort_by([("times", "descending"), ("text", "ascending")])[:NUM_EXAMPLES]
        return {
            "num_distinct": rows.num_rows,
            "num_near_duplicates": near.num_rows,
            "near_examples": near.drop_columns(["key"])[:NUM_EXAMPLES].to_pylist(),
            "exact_examples": [row for row in often.to_pylist() if row["times"] > 1],
        }

    @property
    def summary_url(self) -> str:
        """Where `DropDuplicates` writes its `Summary`."""
        return storage.join(self.scratch, "summary.json")

    @property
    def steps(self) -> list[Callable[[int, None], Result]]:
        """What is done to every partition after `scatter`, each when the one before is done."""
        if self.config.near_duplicate_threshold is None:
            return [self.distinct, self.verify]
        return [self.distinct, self.pair, self.fetch, self.verify]

    def kept(self, partition: int, columns: list[str] | None = None) -> pa.Table:
        """What is left of a partition, in order."""
        rows = read_rows(self._file("distinct", partition), columns and [*columns, "key"])
        dropped = read_rows(self._file("near", partition), ["key"])["key"].to_numpy()
        return rows.filter(pa.array(~np.isin(rows["key"].to_numpy(), dropped)))

    def _near_duplicates(self, partition: int) -> pa.Table:
        """The captions to drop, each with the first of the earlier ones that it resembles."""
        threshold = self.config.near_duplicate_threshold
        if threshold is None:
            return _NEAR_SCHEMA.empty_table()
        pairs = self._exchange("texts").read(partition, self.num_partitions)
        pairs = pairs.sort_by([("key", "ascending"), ("earlier", "ascending")])
        pairs = pairs.append_column("dropped", self._texts(partition, pairs["key"].to_numpy()))
        size, alike = self.config.shingle_words, [np.zeros(0)]
        for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
            block = pairs.slice(start, _PAIRS_AT_A_TIME)
            sides = (shingles(column(block, name), size) for name in ("dropped", "resembled"))
            alike.append(similarity(*sides))
        values = np.concatenate(alike)
        pairs = pairs.append_column("similarity", pa.array(values))
        pairs = pairs.filter(pa.array(values >= threshold))
        first = changes(pairs["key"].to_numpy())
        return pairs.filter(pa.array(first)).select(_NEAR_SCHEMA.names)

    def _texts(self, partition: int, keys: Hashes) -> pa.ChunkedArray:
        """The texts of captions of a partition: [N] keys -> [N]."""
        rows = read_rows(self._file("distinct", partition), ["key", "text"])
        return rows["text"].take(np.searchsorted(rows["key"].to_numpy(), keys))

    def _partitions(self, keys: Hashes) -> NDArray[np.int64]:
        return partition_of(keys, self.num_partitions)

    def _exchange(self, name: str) -> Exchange:
        return Exchange(storage.join(self.scratch, name), self.num_partitions)

    def _file(self, name: str, partition: int) -> str:
        return storage.join(self.scratch, name, f"{partition:06d}.parquet")


class DropDuplicates(beam.PTransform):
    """(group number, its input shards) -> a JSON file that says what is kept.

    Everything else that `CutShards` needs stays in scratch space.
    """

    def __init__(self, deduplication: Deduplication) -> None:
        super().__init__()
        self._tasks = deduplication

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """Step after step; each one starts when the one before it is done."""
        tasks = self._tasks
        markers = storage.join(tasks.scratch, "done")
        done = groups | RunTasks("scatter", tasks.scatter, markers)
        for step in tasks.steps:
            numbers = done | NextTasks(f"after-{step.__name__}", tasks.num_partitions)
            done = numbers | RunTasks(step.__name__, step, markers)
        return (
            done | "Results" >> AllResults() | "Write" >> beam.Map(write_summary, tasks.summary_url)
        )


def write_summary(results: list[tuple[int, Result]], url: str) -> None:
    """Put together what `verify` says of each partition."""
    found = [result for _, result in sorted(results, key=lambda item: item[0])]
    exact = [example for result in found for example in result["exact_examples"]]
    near = [example for result in found for example in result["near_examples"]]
    summary = Summary(
        [result["num_distinct"] for result in found],
        [result["num_near_duplicates"] for result in found],
        near[:NUM_EXAMPLES],
        sorted(exact, key=lambda example: (-example["times"], example["text"]))[:NUM_EXAMPLES],
    )
    storage.replace_bytes(json.dumps(dataclasses.asdict(summary)).encode(), url)
