"""The layout of a stage's folder: names of shards, commit records, and the index.

    <stage>/run.yaml  plan.json
            shards/012/images-012345.tar
            commits/012/images-012345.json
            failures/012/images-012345.parquet
            index.parquet  _SUCCESS
            retry-1/...                     a stage of its own: dead letters of this one, made again

The commit record is the commit: a shard file without one is unfinished business of a dead worker
and is adopted by the next. Readers use the index only.

A folder holds the files of a thousand neighbours, so that several can be listed at once. Writing is
spread over all of them, as a store that splits its load by name wants it: a plan is worked through
in random order.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import DamagedFileError as DamagedFileError
from transforms.core.errors import MissingFileError, reading

SHARDS_PER_FOLDER = 1000

_CHUNK = 4096
"""Commit records in memory at a time."""
_LOCAL_READERS, _REMOTE_READERS = 4, 64
"""Threads that read commit records: disks answer at once, servers take their time."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("num_failures", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class StageFolder:
    """The output folder of a stage.

    Attributes:
        url: Folder or URL, for instance `gs://bucket/run/images`.
        name: What its shards hold: "images", "captions" or "backgrounds".
        suffix: Of its shard files: ".tar" or ".parquet".
    """

    url: str
    name: str
    suffix: str

    def _path(self, kind: str, shard: int, suffix: str) -> str:
        folder = f"{shard // SHARDS_PER_FOLDER:03d}"
        return f"{kind}/{folder}/{self.name}-{shard:06d}{suffix}"

    def shard_path(self, shard: int) -> str:
        """Name of a shard file relative to the stage's folder."""
        return self._path("shards", shard, self.suffix)

    def shard_url(self, shard: int) -> str:
        """Where a shard file stands."""
        return storage.join(self.url, self.shard_path(shard))

    def commit_url(self, shard: int) -> str:
        """Where a shard's commit record stands."""
        return storage.join(self.url, self._path("commits", shard, ".json"))

    def failures_url(self, shard: int) -> str:
        """Where a shard's dead letters stand, if there are any."""
        return storage.join(self.url, self._path("failures", shard, ".parquet"))

    def retry(self, number: int) -> "StageFolder":
        """The folder of the first, second, ... retry of this stage's dead letters."""
        return StageFolder(storage.join(self.url, f"retry-{number}"), self.name, self.suffix)

    @property
    def run_yaml_url(self) -> str:
        """The resolved config and fingerprint of the output."""
        return storage.join(self.url, "run.yaml")

    @property
    def plan_url(self) -> str:
        """How much is to be made, for whoever looks at the folder without the config."""
        return storage.join(self.url, "plan.json")

    @property
    def index_url(self) -> str:
        """The table of all shards."""
        return storage.join(self.url, "index.parquet")

    @property
    def success_url(self) -> str:
        """The marker of a complete stage."""
        return storage.join(self.url, "_SUCCESS")


@dataclass(frozen=True)
class CommitRecord:
    """What is known of a committed shard."""

    shard: int
    path: str
    sha256: str
    num_bytes: int
    num_samples: int
    num_failures: int
    fingerprint: str
    seconds: float
    """From the start of production to the publication of the shard file."""
    counts: dict[str, int]
    """Counters of the worker that committed, by `counters.Count` name."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Index:
    """The index of a complete stage."""

    folder: str
    table: pa.Table
    metadata: Mapping[str, str]


def encode_commit(record: CommitRecord) -> bytes:
    """A commit record as JSON."""
    return json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True).encode("utf-8")


def read_commit(folder: StageFolder, shard: int) -> CommitRecord:
    """The commit record of a shard.

    Raises:
        DamagedFileError: The record is not what a commit writes.
        MissingFileError: The shard is not committed.
    """
    url = folder.commit_url(shard)
    content = storage.read_bytes(url)
    try:
        record = CommitRecord(**json.loads(content))
        if record.shard != shard:
            raise ValueError(f"it is about shard {record.shard}")
    except (ValueError, TypeError) as error:
        raise DamagedFileError(
            f"commit record {url} is damaged ({error}); delete it and run the stage again: "
            "the shard is then adopted or made anew"
        ) from error
    return record


def read_commits(folder: StageFolder, shards: Sequence[int]) -> Iterator[CommitRecord]:
    """The commit records of many shards, in the order of `shards`; few are in memory at a time.

    Raises:
        DamagedFileError: A record is not what a commit writes.
        MissingFileError: A shard is not committed.
    """
    readers = _LOCAL_READERS if storage.is_local(folder.url) else _REMOTE_READERS
    with ThreadPoolExecutor(readers, "commits") as pool:
        for start in range(0, len(shards), _CHUNK):
            yield from pool.map(partial(read_commit, folder), shards[start : start + _CHUNK])


def committed_shards(folder: StageFolder) -> set[int]:
    """The shards that have a commit record, by one listing."""
    names = storage.list_files(storage.join(folder.url, "commits"))
    numbers = (name.rpartition("-")[2].removesuffix(".json") for name in names)
    return {int(number) for number in numbers if number.isdigit()}


def file_sha256(path: str) -> str:
    """Checksum of a local file, as commit records hold it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_table(records: Iterable[CommitRecord]) -> pa.Table:
    """The rows of an index, in the order of the shards; holds a few records at a time."""
    batches = []
    iterator = iter(records)
    while rows := list(islice(iterator, _CHUNK)):
        columns = [[getattr(row, name) for row in rows] for name in INDEX_SCHEMA.names]
        batches.append(pa.record_batch(columns, schema=INDEX_SCHEMA))
    return pa.Table.from_batches(batches, INDEX_SCHEMA).sort_by("shard").combine_chunks()


def write_index(
    folder: StageFolder, records: Iterable[CommitRecord], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Write `index.parquet`, then `_SUCCESS`: the stage is complete.

    Complete retries of its dead letters are part of it. The same records give the same bytes, so
    two workers that finish together agree.

    Returns:
        What `_SUCCESS` says; shards of retries are not among its `num_shards`.

    Raises:
        DamagedFileError: A retry holds more records than failed before it.
    """
    own = index_table(records)
    retried = _retried(folder, own.num_rows)
    num_failures = _sum(own, "num_failures")
    for number, retry in enumerate(retried, 1):
        num_made = _sum(retry, "num_samples")
        if num_made + _sum(retry, "num_failures") > num_failures:
            raise DamagedFileError(
                f"{folder.retry(number).url} holds records that did not fail again when a shard of "
                "what it retries was made anew: delete it and the retries after it, then run the "
                "same command, and retry-failed after it"
            )
        num_failures -= num_made
    table = pa.concat_tables([own, *retried]).combine_chunks()
    buffer = io.BytesIO()
    table = table.replace_schema_metadata(dict(sorted(metadata.items())))
    pq.write_table(table, buffer, compression="zstd")
    storage.replace_bytes(buffer.getvalue(), folder.index_url)
    summary = {
        "num_shards": own.num_rows,
        "num_samples": _sum(table, "num_samples"),
        "num_failures": num_failures,
        "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    storage.replace_bytes(json.dumps(summary, sort_keys=True).encode(), folder.success_url)
    return summary


def _retried(folder: StageFolder, num_shards: int) -> list[pa.Table]:
    """The indices of complete retries, their shards numbered on after the stage's own."""
    tables: list[pa.Table] = []
    while read_success(retry := folder.retry(len(tables) + 1)) is not None:
        table = read_index(retry.index_url).table
        name = retry.url.rpartition("/")[2]
        paths = [f"{name}/{path}" for path in table["path"].to_pylist()]
        numbers = range(num_shards, num_shards + table.num_rows)
        num_shards += table.num_rows
        columns = [pa.array(numbers, pa.int64()), pa.array(paths), *table.columns[2:]]
        tables.append(pa.table(columns, schema=INDEX_SCHEMA))
    return tables


def _sum(table: pa.Table, column: str) -> int:
    return int(pc.sum(table[column], min_count=0).as_py())


def read_success(folder: StageFolder) -> dict[str, Any] | None:
    """The summary in `_SUCCESS`; None while the stage is not complete."""
    try:
        summary: dict[str, Any] = json.loads(storage.read_bytes(folder.success_url))
        return summary if {"num_shards", "num_samples", "index_sha256"} <= set(summary) else None
    except (MissingFileError, ValueError, TypeError):
        return None


def read_index(index_url: str) -> Index:
    """Read the index of a complete stage.

    Raises:
        MissingFileError: The stage is not complete (or the path is wrong).
        DamagedFileError: The file is not an index.
    """
    content = storage.read_bytes(index_url)
    with reading(f"index {index_url}"):
        table = pq.read_table(io.BytesIO(content))
        names = table.schema.names
    if names != INDEX_SCHEMA.names:
        expected = ", ".join(INDEX_SCHEMA.names)
        raise DamagedFileError(f"index {index_url} has other columns: expected {expected}")
    with reading(f"index {index_url}"):
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Index(index_url.rpartition("/")[0] or ".", table, metadata)
