"""The index of a stage, and what makes a stage complete.

A stage is complete when three things agree:

- `_SUCCESS`, which is written last;
- the index: its SHA-256 is the one in `_SUCCESS`, and it lists every shard of the plan;
- one listing: each shard of the index has a commit record, and a file of the size in the index.

No shard is read for this; `verify` reads all of them.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError, reading
from transforms.core.records import schema_of
from transforms.core.shards import CommitRecord, StageFolder, committed_shards

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


def index_metadata(name: str, fingerprint: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of an index.

    Args:
        name: First part of the names of the stage's files.
        fingerprint: Digest of the stage's fingerprint.
        metadata: Further facts about the stage, as in `plan.json`.
    """
    return {"stage": name, "fingerprint": fingerprint, **metadata}


def stage_metadata(index: Index) -> dict[str, str]:
    """Return what the stage has added to the metadata of its index, as in `plan.json`."""
    own = index_metadata("", "", {})
    return {key: value for key, value in index.metadata.items() if key not in own}


def index_table(records: Iterable[CommitRecord]) -> pa.Table:
    """Return the table of an index, sorted by shard; a few thousand records are held at a time."""
    batches = []
    iterator = iter(records)
    while rows := list(itertools.islice(iterator, _CHUNK)):
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
    table, numbers = rows_and_numbers(folder, records)
    table = table.replace_schema_metadata(dict(sorted(metadata.items())))
    content = _index_there(folder, table)
    if content is None:
        content = _encode(table)
        # No reader may find it next to another index than the one that it was written for.
        storage.delete(folder.success_url)
        storage.replace_bytes(content, folder.index_url)
    summary = {**numbers, "index_sha256": hashlib.sha256(content).hexdigest()}
    storage.update_bytes(json.dumps(summary, sort_keys=True).encode(), folder.success_url)
    return summary


def rows_and_numbers(
    folder: StageFolder, records: Iterable[CommitRecord]
) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of the index of a stage and its retries, and the numbers for `_SUCCESS`.

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
                "what it retries was made again: delete it and the retries after it, then run "
                f"{folder.retry(number).commands}"
            )
        num_failures -= num_made
    table = pa.concat_tables([own, *retried]).combine_chunks()
    numbers = {
        "num_shards": own.num_rows,
        "num_samples": _sum(table, "num_samples"),
        "num_failures": num_failures,
    }
    return table, numbers


def _index_there(folder: StageFolder, table: pa.Table) -> bytes | None:
    """Return the content of the index if `_SUCCESS` vouches for it and it holds this table.

    Another version of Arrow may write other bytes, and later stages depend on the bytes.
    """
    success = read_success(folder)
    if success is None:
        return None
    try:
        content = storage.read_bytes(folder.index_url)
        there = parse_index(content, folder.index_url, success["index_sha256"]).table
    except (MissingFileError, DamagedFileError):
        return None
    return content if there.equals(table, check_metadata=True) else None


def _encode(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _retried(folder: StageFolder, num_shards: int) -> list[pa.Table]:
    """Return the indices of complete retries; their shard numbers follow the stage's own."""
    tables: list[pa.Table] = []
    for retry, index in complete_retries(folder):
        name = retry.url.rpartition("/")[2]
        paths = [f"{name}/{path}" for path in index.table["path"].to_pylist()]
        numbers = range(num_shards, num_shards + len(paths))
        num_shards += len(paths)
        columns = [pa.array(numbers, pa.int64()), pa.array(paths), *index.table.columns[2:]]
        tables.append(pa.table(columns, schema=INDEX_SCHEMA))
    return tables


def _sum(table: pa.Table, column: str) -> int:
    return int(table[column].to_numpy().sum())


def read_success(folder: StageFolder) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS`; None if it is missing or damaged."""
    try:
        summary = json.loads(storage.read_bytes(folder.success_url))
    except (MissingFileError, ValueError):
        return None
    types = {"num_shards": int, "num_samples": int, "index_sha256": str}
    whole = isinstance(summary, dict) and all(type(summary.get(k)) is t for k, t in types.items())
    return summary if whole else None


def read_index(index_url: str) -> Index:
    """Read the index of a complete stage.

    Raises:
        MissingFileError: The stage is not complete (or the path is wrong).
        DamagedFileError: The file is not an index.
    """
    return parse_index(storage.read_bytes(index_url), index_url)


def parse_index(content: bytes, index_url: str, sha256: str | None = None) -> Index:
    """Parse the content of an index; see `read_index`.

    Args:
        content: Content of the file.
        index_url: Path or URL of the file.
        sha256: Its checksum according to `_SUCCESS`, if that is known.
    """
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise DamagedFileError(
            f"index {index_url} is damaged: its checksum is not the one in _SUCCESS"
        )
    with reading(f"index {index_url}"):
        table = pq.read_table(io.BytesIO(content))
        names = table.schema.names
    if names != INDEX_SCHEMA.names:
        expected = ", ".join(INDEX_SCHEMA.names)
        raise DamagedFileError(f"index {index_url} has other columns: expected {expected}")
    with reading(f"index {index_url}"):
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Index(index_url.rpartition("/")[0] or ".", table, metadata)


@dataclass(frozen=True)
class StageFiles:
    """The commit records and shard files of a stage, by one listing of each.

    Attributes:
        committed: Numbers of the shards that have a commit record.
        sizes: Name of a shard file below `shards/` -> bytes.
    """

    committed: set[int]
    sizes: Mapping[str, int]

    def size(self, shard_path: str) -> int | None:
        """Return the bytes of a shard file, None if there is none; the path is that in an index."""
        return self.sizes.get(shard_path.removeprefix("shards/"))


@dataclass(frozen=True)
class StageState:
    """Whether a stage is complete, and what is wrong with it otherwise.

    Attributes:
        files: Its commit records and shard files.
        fault: Why it is not complete: a part of a sentence, which names a file. None if it is.
        summary: Content of `_SUCCESS`, None if the stage is not complete.
        index: The index, None if the stage is not complete.
        lost: Committed shards without a file.
        doubtful: Committed shards with a file that the index describes otherwise: one of the two
            is wrong.
    """

    files: StageFiles
    fault: str | None
    summary: dict[str, Any] | None
    index: Index | None
    lost: Sequence[int]
    doubtful: Sequence[int]


def examine(folder: StageFolder, num_shards: int | None = None) -> StageState:
    """Find out whether a stage is complete.

    Args:
        folder: Folder of the stage.
        num_shards: Number of planned shards; None takes that of `_SUCCESS`.
    """
    files = list_stage(folder)
    lost = sorted(n for n in files.committed if files.size(folder.shard_path(n)) is None)
    try:
        summary, index = _success_and_index(folder)
    except (MissingFileError, DamagedFileError) as error:
        return StageState(files, str(error), None, None, lost, ())
    faults, doubtful = [], []
    if num_shards not in (None, summary["num_shards"]):
        faults.append(f"it has {summary['num_shards']:,} of {num_shards:,} shards")
    for part, rows in _parts(folder, index.table):
        own = part == folder
        if own and rows.num_rows != summary["num_shards"]:
            faults.append(f"{folder.success_url} and the index disagree")
        for shard, fault in _row_faults(part, files if own else list_stage(part), rows):
            faults.append(fault)
            if own and shard in files.committed and shard not in lost:
                doubtful.append(shard)
    if faults:
        return StageState(files, faults[0], None, None, lost, doubtful)
    return StageState(files, None, summary, index, lost, ())


def complete_index(folder: StageFolder) -> Index | None:
    """Return the index of a complete stage, None if the stage is not complete."""
    return None if read_success(folder) is None else examine(folder).index


def complete_retries(folder: StageFolder) -> Iterator[tuple[StageFolder, Index]]:
    """Yield the complete retries of a stage with their indices, up to the first incomplete one."""
    for number in itertools.count(1):
        retry = folder.retry(number)
        index = complete_index(retry)
        if index is None:
            return
        yield retry, index


def list_stage(folder: StageFolder) -> StageFiles:
    """List the commit records and the shard files of a stage, both at once."""
    with ThreadPoolExecutor(1, "list") as pool:
        sizes = pool.submit(storage.list_files, storage.join(folder.url, "shards"))
        return StageFiles(committed_shards(folder), sizes.result())


def _success_and_index(folder: StageFolder) -> tuple[dict[str, Any], Index]:
    """Return the content of `_SUCCESS`, and the index that it was written for.

    Raises:
        MissingFileError: There is no index.
        DamagedFileError: They are damaged, or do not agree.
    """
    try:
        content = storage.read_bytes(folder.index_url)
    except MissingFileError as error:
        raise MissingFileError(error.errno, f"there is no {folder.index_url}") from error
    summary = read_success(folder)
    if summary is None:
        raise DamagedFileError(f"{folder.success_url} is missing or damaged")
    return summary, parse_index(content, folder.index_url, summary["index_sha256"])


def _parts(folder: StageFolder, table: pa.Table) -> Iterator[tuple[StageFolder, pa.Table]]:
    """Yield the rows of an index that belong to the stage itself, then those of each retry.

    Shards and paths of a retry are those in its own folder.
    """
    firsts = [path.partition("/")[0] for path in table["path"].to_pylist()]
    owners = {first: folder.owner(f"{first}/") for first in dict.fromkeys(firsts)}
    for owner in dict.fromkeys([folder, *owners.values()]):
        own = {first for first in owners if owners[first] == owner}
        rows = table.filter(pa.array([first in own for first in firsts], pa.bool_()))
        if owner != folder:
            prefix = f"{owner.url.rpartition('/')[2]}/"
            paths = [path.removeprefix(prefix) for path in rows["path"].to_pylist()]
            numbers = pa.array(range(rows.num_rows), pa.int64())
            columns = [numbers, pa.array(paths, pa.string()), *rows.columns[2:]]
            rows = pa.table(columns, schema=INDEX_SCHEMA)
        yield owner, rows


def _row_faults(
    folder: StageFolder, files: StageFiles, rows: pa.Table
) -> Iterator[tuple[int, str]]:
    """Yield each row that the listing contradicts: its number, and a part of a sentence."""
    columns = (rows[name].to_pylist() for name in ("shard", "path", "num_bytes"))
    for number, (shard, path, num_bytes) in enumerate(zip(*columns, strict=True)):
        size = files.size(path)
        if (shard, path) != (number, folder.shard_path(number)):
            yield number, f"{folder.index_url} lists {path} as shard {shard}"
        elif size is None:
            yield number, f"there is no {folder.shard_url(number)}"
        elif number not in files.committed:
            yield number, f"there is no {folder.commit_url(number)}"
        elif size != num_bytes:
            sizes = f"has {size:,} bytes, but the index says {num_bytes:,}"
            yield number, f"{folder.shard_url(number)} {sizes}"
