"""The layout of a stage's folder: names of shards, commit records, and the index.

    <stage>/run.yaml
            shards/012/images-012345.tar
            commits/012/images-012345.json
            failures/012/images-012345.parquet
            index.parquet  _SUCCESS

The commit record is the commit: a shard file without one is unfinished business of a dead worker
and is adopted by the next. Readers use the index only.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage

SHARDS_PER_FOLDER = 1000

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


class DamagedFileError(ValueError):
    """A file of a run does not hold what it must; the message names it."""


@dataclass(frozen=True)
class StageFolder:
    """The output folder of a stage.

    Attributes:
        url: Folder or URL, for instance `gs://bucket/run/images`.
        name: What its shards hold: "images" or "captions".
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

    @property
    def run_yaml_url(self) -> str:
        """The resolved config and fingerprint of the output."""
        return storage.join(self.url, "run.yaml")

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
        storage.MissingFileError: The shard is not committed.
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


def committed_shards(folder: StageFolder) -> set[int]:
    """The shards that have a commit record, by one listing."""
    names = storage.list_files(storage.join(folder.url, "commits"))
    return {int(name.rpartition("-")[2].removesuffix(".json")) for name in names}


def file_sha256(path: str) -> str:
    """Checksum of a local file, as commit records hold it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(
    folder: StageFolder, records: Iterable[CommitRecord], metadata: Mapping[str, str]
) -> None:
    """Write `index.parquet`, then `_SUCCESS`: the stage is complete.

    The same records give the same bytes, so two workers that finish together agree.
    """
    rows = sorted(records, key=lambda record: record.shard)
    columns = [[getattr(row, name) for row in rows] for name in INDEX_SCHEMA.names]
    table = pa.table(columns, schema=INDEX_SCHEMA.with_metadata(dict(metadata)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.replace_bytes(buffer.getvalue(), folder.index_url)
    summary = {
        "num_shards": len(rows),
        "num_samples": sum(row.num_samples for row in rows),
        "num_failures": sum(row.num_failures for row in rows),
        "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    storage.replace_bytes(json.dumps(summary, sort_keys=True).encode(), folder.success_url)


def read_success(folder: StageFolder) -> dict[str, Any] | None:
    """The summary in `_SUCCESS`; None while the stage is not complete."""
    try:
        summary: dict[str, Any] = json.loads(storage.read_bytes(folder.success_url))
        return summary if {"num_shards", "num_samples", "index_sha256"} <= set(summary) else None
    except (storage.MissingFileError, ValueError):
        return None


def read_index(index_url: str) -> Index:
    """Read the index of a complete stage.

    Raises:
        storage.MissingFileError: The stage is not complete (or the path is wrong).
        DamagedFileError: The file is not an index.
    """
    content = storage.read_bytes(index_url)
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise DamagedFileError(f"index {index_url} is damaged: {error}") from error
    if table.schema.names != INDEX_SCHEMA.names:
        expected = ", ".join(INDEX_SCHEMA.names)
        raise DamagedFileError(f"index {index_url} has other columns: expected {expected}")
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Index(index_url.rpartition("/")[0] or ".", table, metadata)
