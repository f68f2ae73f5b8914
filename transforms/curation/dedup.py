"""Deduplication: drop equal captions and near duplicates over all shards.

The key of a caption is its place in the random order and decides its partition. So the result does
not depend on how the input is cut, ordered or repeated, and a task holds one partition at most.

    scatter    input shards -> captions by key
    distinct   keep the first written of equal captions; bands of MinHash signatures by value
    pair       captions that share a band -> pairs, by the key of the earlier caption
    fetch      add the text of the earlier caption, by the key of the later one
    verify     exact similarity: drop the later caption of each pair of near duplicates

If duplicates are kept, nothing is dropped, and equal captions are told apart (`occurrences`):

    scatter    input shards -> number of captions with each text
    count      number of captions with a text that are before each group of shards
    number     each caption gets its occurrence, and so its own id and key -> captions by key
    distinct, verify

The rule is local: a caption is dropped if it is a near duplicate of any caption before it in the
random order, even of one that is dropped itself. So of two captions found to be near duplicates at
most one is kept. A chain of near duplicates keeps at least its first caption, which is all that
connected components would keep of it.

Captions move through files, not through Beam: `file_shuffle` gives the reason.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.records import CAPTION_SCHEMA, Caption, optional_columns
from transforms.core.shard_reader import CommittedShard
from transforms.curation.columns import (
    Hashes,
    changes,
    column,
    distinct,
    first_written,
    order_keys,
    partition_of,
)
from transforms.curation.file_shuffle import (
    AllResults,
    Exchange,
    LostFilesError,
    NextTasks,
    Result,
    RunTasks,
    marker_url,
    read_json,
    read_rows,
    write_json,
    write_rows,
)
from transforms.curation.minhash import (
    CurationConfig,
    band_hashes,
    candidate_pairs,
    shingles,
    similarity,
)
from transforms.curation.occurrences import count_equal, counted_before, number_equal

NUM_EXAMPLES = 20
"""Examples of each kind of duplicate, for the report."""

_PAIRS_AT_A_TIME = 100_000

_Step = Callable[[int, None], Result]
"""(number of the task, nothing) -> result: a method of `Deduplication`."""

_STEP_OF = {
    "captions": "scatter",
    "written": "scatter",
    "times": "scatter",
    "before": "count",
    "numbered": "number",
    "distinct": "distinct",
    "bands": "distinct",
    "pairs": "pair",
    "texts": "fetch",
    "near": "verify",
}
"""Folder of scratch files -> step that writes them. Their names end with the number of the task."""

_NEAR_SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64()),
        pa.field("dropped", pa.string()),
        pa.field("resembled", pa.string()),
        pa.field("similarity", pa.float64()),
    ]
)
"""Near duplicates: key and text, text of the first caption that it resembles, similarity."""


@dataclass(frozen=True)
class Summary:
    """Result of deduplication."""

    num_distinct: list[int]
    """Number of distinct captions of each partition."""
    num_near_duplicates: list[int]
    """Number of near duplicates among them, by partition."""
    near_examples: list[dict[str, Any]]
    """Near duplicates: dropped text, text that it resembles, similarity."""
    exact_examples: list[dict[str, Any]]
    """The texts that were written most often: text, number of times."""
    num_late: list[int] = field(default_factory=list)
    """Of the distinct captions of each partition those with late ordinals; see `Deduplication`."""
    num_repeated: list[int] = field(default_factory=list)
    """Number of captions of each partition that have an earlier one's text; 0 if these dropped."""

    @property
    def num_kept(self) -> list[int]:
        """Number of captions that are kept of each partition."""
        counts = zip(self.num_distinct, self.num_near_duplicates, strict=True)
        return [num_distinct - num_near for num_distinct, num_near in counts]


def read_summary(url: str) -> Summary | None:
    """Read the summary that `DropDuplicates` writes; None if it is not finished."""
    content = read_json(url)
    return None if content is None else Summary(**content)


@dataclass(frozen=True)
class Deduplication:
    """Tasks that find the captions to keep, and the scratch files that they write.

    The names of the methods that are steps are also names of scratch files.

    Attributes:
        scratch: Folder of the scratch files; each input, seed and config has its own.
        num_groups: Number of groups of input shards.
        num_partitions: Number of partitions of the captions.
        seed: Seed of the random order.
        config: Settings that say which captions are duplicates.
        late_from: First ordinal that counts as late: how many of the late captions are new says
            how many more there are.
        notes: Folder in which tasks note the files that they found damaged and deleted.
    """

    scratch: str
    num_groups: int
    num_partitions: int
    seed: int
    config: CurationConfig
    late_from: int = 0
    notes: str = field(default_factory=lambda: f"notes-{uuid.uuid4().hex[:12]}")

    def scatter(self, group: int, shards: Sequence[CommittedShard]) -> Result:
        """Send the captions of input shards to their partitions, equal ones once per group."""
        tables = [shard.read_table(CAPTION_SCHEMA.names) for shard in shards]
        captions = pa.concat_tables(tables).combine_chunks()
        keys = order_keys(self.seed, column(captions, "caption_id"))
        captions = captions.append_column("key", pa.array(keys))
        if self.config.keeps_all:
            write_rows(captions, self._file("written", group))
            times = count_equal(captions, group)
            self._exchange("times").write(group, times, self._partitions(times["key"].to_numpy()))
            return {}
        ones = np.ones(len(captions), np.int64)
        rows = first_written(captions.append_column("times", pa.array(ones)))
        self._exchange("captions").write(group, rows, self._partitions(rows["key"].to_numpy()))
        return {}

    def count(self, partition: int, _: None) -> Result:
        """Tell each group how many captions before it have the texts of this partition."""
        rows = counted_before(self._received("times", partition, self.num_groups))
        to_groups = self._exchange("before", self.num_groups)
        to_groups.write(partition, rows, rows["group"].to_numpy())
        return {}

    def number(self, group: int, _: None) -> Result:
        """Number the captions of a group, and send them to the partitions of their own keys."""
        before = self._received("before", group, self.num_partitions)
        rows = number_equal(self._rows("written", group, None), before, self.seed)
        rows = rows.append_column("times", pa.array(np.ones(len(rows), np.int64)))
        self._exchange("numbered").write(group, rows, self._partitions(rows["key"].to_numpy()))
        return {}

    def distinct(self, partition: int, _: None) -> Result:
        """Keep each caption of a partition once; send out the bands of their signatures."""
        sent = "numbered" if self.config.keeps_all else "captions"
        rows = first_written(self._received(sent, partition, self.num_groups))
        write_rows(rows, self._file("distinct", partition))
        if self.config.finds_near_duplicates:
            bands = band_hashes(column(rows, "text"), self.config).ravel()
            keys = np.repeat(rows["key"].to_numpy(), self.config.num_bands)
            table = pa.table({"band": bands, "key": keys})
            self._exchange("bands").write(partition, table, self._partitions(bands))
        return {}

    def pair(self, partition: int, _: None) -> Result:
        """Make pairs of captions that share a band, to be compared."""
        rows = self._received("bands", partition, self.num_partitions)
        earlier, later = candidate_pairs(rows["band"].to_numpy(), rows["key"].to_numpy())
        pairs = pa.table({"earlier": earlier, "later": later})
        self._exchange("pairs").write(partition, pairs, self._partitions(earlier))
        return {}

    def fetch(self, partition: int, _: None) -> Result:
        """Add the text of the earlier caption, which is in this partition, to each pair."""
        rows = self._received("pairs", partition, self.num_partitions)
        later, earlier = distinct(rows["later"].to_numpy(), rows["earlier"].to_numpy())
        texts = self._texts(partition, earlier)
        pairs = pa.table({"key": later, "earlier": earlier, "resembled": texts})
        self._exchange("texts").write(partition, pairs, self._partitions(later))
        return {}

    def verify(self, partition: int, _: None) -> Result:
        """Find the near duplicates of a partition; return counts and examples for `Summary`."""
        near = self._near_duplicates(partition)
        write_rows(near, self._file("near", partition))
        repeats = ["occurrence"] if self.config.keeps_all else []
        rows = self._rows("distinct", partition, ["text", "times", "ordinal", *repeats])
        num_repeated = sum(int(np.count_nonzero(rows[name].to_numpy())) for name in repeats)
        by_times = rows.select(["text", "times"])
        by_times = by_times.sort_by([("times", "descending"), ("text", "ascending")])
        return {
            "num_distinct": rows.num_rows,
            "num_near_duplicates": near.num_rows,
            "num_late": int((rows["ordinal"].to_numpy() >= self.late_from).sum()),
            "num_repeated": num_repeated,
            "near_examples": near.drop_columns(["key"])[:NUM_EXAMPLES].to_pylist(),
            "exact_examples": [
                row for row in by_times[:NUM_EXAMPLES].to_pylist() if row["times"] > 1
            ],
        }

    def discarded(self) -> list[str]:
        """Return the scratch files that were found damaged since the last call.

        They are deleted, and `DropDuplicates` makes them again with the same bytes.
        """
        notes = storage.join(self.scratch, self.notes)
        names = sorted(storage.list_files(notes))
        storage.delete_folder(notes)
        return names

    @property
    def summary_url(self) -> str:
        """File that `DropDuplicates` writes the `Summary` to."""
        return storage.join(self.scratch, "summary.json")

    @property
    def markers(self) -> str:
        """Folder of the markers of finished tasks."""
        return storage.join(self.scratch, "done")

    @property
    def steps(self) -> list[tuple[_Step, int]]:
        """Steps after `scatter`, in order, each with the number of its tasks."""
        each_partition: list[_Step] = [self.distinct, self.verify]
        if self.config.finds_near_duplicates:
            each_partition = [self.distinct, self.pair, self.fetch, self.verify]
        steps = [(step, self.num_partitions) for step in each_partition]
        if self.config.keeps_all:
            steps = [(self.count, self.num_partitions), (self.number, self.num_groups), *steps]
        return steps

    @property
    def schema(self) -> pa.Schema:
        """Columns of the captions that are kept."""
        if not self.config.keeps_all:
            return CAPTION_SCHEMA
        return pa.schema([*CAPTION_SCHEMA, *optional_columns(Caption)])

    def kept(self, partition: int, columns: list[str] | None = None) -> pa.Table:
        """Read the captions of a partition that are kept, in the random order."""
        rows = self._rows("distinct", partition, columns and [*columns, "key"])
        dropped = self._rows("near", partition, ["key"])["key"].to_numpy()
        return rows.filter(pa.array(~np.isin(rows["key"].to_numpy(), dropped)))

    def _near_duplicates(self, partition: int) -> pa.Table:
        """Return the captions to drop, each with the first caption that it resembles."""
        threshold = self.config.near_duplicate_threshold
        if threshold is None or not self.config.finds_near_duplicates:
            return _NEAR_SCHEMA.empty_table()
        pairs = self._received("texts", partition, self.num_partitions)
        pairs = pairs.sort_by([("key", "ascending"), ("earlier", "ascending")])
        pairs = pairs.append_column("dropped", self._texts(partition, pairs["key"].to_numpy()))
        size, similarities = self.config.shingle_words, [np.zeros(0)]
        for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
            block = pairs.slice(start, _PAIRS_AT_A_TIME)
            sides = (shingles(column(block, name), size) for name in ("dropped", "resembled"))
            similarities.append(similarity(*sides))
        values = np.concatenate(similarities)
        pairs = pairs.append_column("similarity", pa.array(values))
        pairs = pairs.filter(pa.array(values >= threshold))
        first = changes(pairs["key"].to_numpy())
        return pairs.filter(pa.array(first)).select(_NEAR_SCHEMA.names)

    def _texts(self, partition: int, keys: Hashes) -> pa.ChunkedArray:
        """Read the texts of captions of a partition: [N] keys -> [N]."""
        rows = self._rows("distinct", partition, ["key", "text"])
        return rows["text"].take(np.searchsorted(rows["key"].to_numpy(), keys))

    def _rows(self, name: str, partition: int, columns: list[str] | None) -> pa.Table:
        """Read a scratch file that a step wrote for its own partition."""
        with self._discarding():
            return read_rows(self._file(name, partition), columns)

    def _received(self, name: str, partition: int, num_tasks: int) -> pa.Table:
        """Read the rows that the tasks of a step sent to a partition."""
        with self._discarding():
            return self._exchange(name).read(partition, num_tasks)

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        """Delete files that turn out to be damaged, with the markers of their tasks."""
        try:
            yield
        except LostFilesError as error:
            for url in error.urls:
                folder, name = url.split("/")[-2:]
                task = int(name.partition(".")[0].rpartition("-")[2])
                markers = storage.join(self.markers, _STEP_OF[folder])
                note = storage.join(self.scratch, self.notes, folder, name)
                # First the note: a task that stops here has deleted nothing that it does not name.
                storage.replace_bytes(b"", note)
                for lost in (self.summary_url, marker_url(markers, task), url):
                    storage.delete(lost)
            raise

    def _partitions(self, keys: Hashes) -> NDArray[np.int64]:
        return partition_of(keys, self.num_partitions)

    def _exchange(self, name: str, num_partitions: int = 0) -> Exchange:
        return Exchange(storage.join(self.scratch, name), num_partitions or self.num_partitions)

    def _file(self, name: str, partition: int) -> str:
        return storage.join(self.scratch, name, f"{partition:06d}.parquet")


class DropDuplicates(beam.PTransform):
    """Run a deduplication: (group number, its input shards) -> the file of the `Summary`.

    The captions themselves stay in scratch files, where `ReshardCaptions` reads them.
    """

    def __init__(self, deduplication: Deduplication) -> None:
        super().__init__()
        self._tasks = deduplication

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """Run the steps in order; each one starts when the one before it is finished."""
        tasks = self._tasks
        done = groups | RunTasks("scatter", tasks.scatter, tasks.markers)
        for step, number in tasks.steps:
            numbers = done | NextTasks(f"after-{step.__name__}", number)
            done = numbers | RunTasks(step.__name__, step, tasks.markers)
        return (
            done | "Results" >> AllResults() | "Write" >> beam.Map(write_summary, tasks.summary_url)
        )


def write_summary(results: list[tuple[int, Result]], url: str) -> None:
    """Write the `Summary` from the results of `verify`, as (partition, result)."""
    found = [result for _, result in sorted(results, key=lambda item: item[0])]
    exact = [example for result in found for example in result["exact_examples"]]
    near = [example for result in found for example in result["near_examples"]]
    summary = Summary(
        [result["num_distinct"] for result in found],
        [result["num_near_duplicates"] for result in found],
        near[:NUM_EXAMPLES],
        sorted(exact, key=lambda example: (-example["times"], example["text"]))[:NUM_EXAMPLES],
        [result.get("num_late", 0) for result in found],
        [result.get("num_repeated", 0) for result in found],
    )
    write_json(dataclasses.asdict(summary), url)
