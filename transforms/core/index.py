"""The index of a stage: one row per shard, and `_SUCCESS`, which is written after it."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError, reading
from transforms.core.records import schema_of
from transforms.core.shards import CommitRecord, StageFolder

_CHUNK = 4096
"""Rows that are made into columns at a time."""


@dataclass(frozen=True)
class IndexRow:
    """A row of an index: what readers of a shard need of its commit record."""

    shard: int
    path: str
    sha256: str
    num_bytes: int
    num_samples: int
    num_failures: int


INDEX_SCHEMA = schema_of(IndexRow)


@dataclass(frozen=True)
class Index:
    """The index of a complete stage: one `IndexRow` per shard, and the metadata of the stage."""

    folder: str
    table: pa.Table
    metadata: Mapping[str, str]


def index_table(records: Iterable[CommitRecord]) -> pa.Table:
    """Return the table of an index, sorted by shard; a few thousand records are held at a time."""
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

    The index includes complete retries of its dead letters. The same records give the same bytes,
    so two workers that finish together agree.

    Returns:
        The content of `_SUCCESS`; its `num_shards` does not count the shards of retries.

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
                "what it retries was made again: delete it and the retries after it, then run the "
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
    """Return the indices of complete retries; their shard numbers follow the stage's own."""
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
    return int(table[column].to_numpy().sum())


def read_success(folder: StageFolder) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS`; None while the stage is not complete."""
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
    return parse_index(storage.read_bytes(index_url), index_url)


def parse_index(content: bytes, index_url: str) -> Index:
    """Parse the content of an index; see `read_index`."""
    with reading(f"index {index_url}"):
        table = pq.read_table(io.BytesIO(content))
        names = table.schema.names
    if names != INDEX_SCHEMA.names:
        expected = ", ".join(INDEX_SCHEMA.names)
        raise DamagedFileError(f"index {index_url} has other columns: expected {expected}")
    with reading(f"index {index_url}"):
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Index(index_url.rpartition("/")[0] or ".", table, metadata)
