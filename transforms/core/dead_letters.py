"""Dead letters: the records of a stage that failed, from the files in its `failures` folder."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import reading
from transforms.core.shards import StageFolder

_READERS = 16
"""Files read at once."""


def read_letters(folder: StageFolder, shard: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of the dead letters of a shard, one row per record; see `records.Failure`.

    Raises:
        DamagedFileError: The file is damaged.
        MissingFileError: The file does not exist.
    """
    url = folder.failures_url(shard)
    content = storage.read_bytes(url)
    advice = f"run {folder.repair_command}, then {folder.commands} again"
    with reading(f"dead-letter file {url}", advice):
        return pq.read_table(io.BytesIO(content), columns=list(columns))


def failed_ids(folder: StageFolder, shard: int) -> set[str]:
    """Return the ids of the records of a shard that failed; see `read_letters`."""
    return set(read_letters(folder, shard, ["record_id"])["record_id"].to_pylist())


def shards_with_letters(folder: StageFolder) -> list[int]:
    """Return the shards that have dead letters, in order, by one listing."""
    names = storage.list_files(storage.join(folder.url, "failures"))
    numbers = (name.rpartition("-")[2].partition(".")[0] for name in names)
    return sorted(int(number) for number in numbers if number.isdecimal())


def dead_letters(folder: StageFolder) -> Iterator[tuple[int, set[str]]]:
    """Yield each shard that has dead letters, in order, with their ids.

    Raises:
        DamagedFileError: A file is damaged.
    """
    shards = shards_with_letters(folder)
    with ThreadPoolExecutor(_READERS, "dead-letters") as pool:
        found = pool.map(lambda shard: failed_ids(folder, shard), shards)
        yield from zip(shards, found, strict=True)
