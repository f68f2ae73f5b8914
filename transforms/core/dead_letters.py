"""Ids of the records of a stage that failed, from the files in its `failures` folder."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import reading
from transforms.core.shards import StageFolder

_READERS = 16
"""Files read at once."""


def failed_ids(url: str) -> set[str]:
    """Return the ids of the records in a dead-letter file.

    Raises:
        DamagedFileError: The file is damaged.
        MissingFileError: The file does not exist.
    """
    content = storage.read_bytes(url)
    with reading(f"dead-letter file {url}"):
        table = pq.read_table(io.BytesIO(content), columns=["record_id"])
        return set(table["record_id"].to_pylist())


def dead_letters(folder: StageFolder) -> Iterator[tuple[int, set[str]]]:
    """Yield each shard that has dead letters, in order, with their ids.

    Raises:
        DamagedFileError: A file is damaged.
    """
    names = storage.list_files(storage.join(folder.url, "failures"))
    numbers = (name.rpartition("-")[2].partition(".")[0] for name in names)
    shards = sorted(int(number) for number in numbers if number.isdigit())
    with ThreadPoolExecutor(_READERS, "dead-letters") as pool:
        yield from zip(shards, pool.map(failed_ids, map(folder.failures_url, shards)), strict=True)
