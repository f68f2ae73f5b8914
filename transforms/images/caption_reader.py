"""Random access to the captions of a complete stage, by their place in its index.

Image shards are smaller than caption shards and cut elsewhere, so a reader needs a span of global
rows: it fetches the shards that hold them, and decodes only the row groups that it needs.
"""

import hashlib
import io
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.errors import DamagedFileError
from transforms.core.records import Caption, from_table
from transforms.core.shards import Index, read_index

_SHARDS_KEPT = 4
"""Caption shards kept in memory, about 1 MB each. Image shards are made in random order, so most of
them fetch their caption shard anew: a megabyte beside the minutes that painting takes."""


@dataclass(frozen=True)
class CaptionRows:
    """The captions of a complete stage as one sequence. Picklable: workers read the index.

    Attributes:
        index_url: Of the stage's `index.parquet`.
        index_sha256: Identifies the captions: the index holds the checksum of every shard.
        num_captions: In all shards.
    """

    index_url: str
    index_sha256: str
    num_captions: int

    @classmethod
    def open(cls, index_url: str) -> "CaptionRows":
        """Look at the captions of a complete stage.

        Raises:
            MissingFileError: The stage is not complete, or the name is wrong.
            DamagedFileError: The index is not one of captions.
        """
        checksum = hashlib.sha256(storage.read_bytes(index_url)).hexdigest()
        index = _index(index_url, checksum)
        if not all(path.endswith(".parquet") for path in index.table["path"].to_pylist()):
            raise DamagedFileError(f"{index_url} lists shards that do not hold captions")
        return cls(index_url, checksum, sum(index.table["num_samples"].to_pylist()))

    def read(self, start: int, stop: int) -> list[Caption]:
        """The captions of the global rows from `start` up to but not including `stop`."""
        index = _index(self.index_url, self.index_sha256)
        lengths = index.table["num_samples"].to_pylist()
        starts = [0, *accumulate(lengths)]
        captions: list[Caption] = []
        shard = bisect_right(starts, start) - 1
        while shard < len(lengths) and starts[shard] < stop:
            first, last = max(start - starts[shard], 0), min(stop - starts[shard], lengths[shard])
            if first < last:
                row = index.table.slice(shard, 1).to_pylist()[0]
                content = _shard(storage.join(index.folder, row["path"]), row["sha256"])
                captions += _rows(content, first, last)
            shard += 1
        assert len(captions) == min(stop, starts[-1]) - start
        return captions


@lru_cache(maxsize=2)
def _index(url: str, sha256: str) -> Index:
    content = storage.read_bytes(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFileError(f"{url} changed while it was read: run the same command again")
    return read_index(url)


@lru_cache(maxsize=_SHARDS_KEPT)
def _shard(url: str, sha256: str) -> bytes:
    content = storage.read_bytes(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFileError(f"caption shard {url} is damaged: its checksum is not the index's")
    return content


def _rows(content: bytes, first: int, last: int) -> list[Caption]:
    """Rows of a caption shard, out of the row groups that hold them."""
    file = pq.ParquetFile(io.BytesIO(content))
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    groups = [g for g in range(file.num_row_groups) if starts[g] < last and starts[g + 1] > first]
    table: pa.Table = file.read_row_groups(groups)
    return from_table(table.slice(first - starts[groups[0]], last - first), Caption)
