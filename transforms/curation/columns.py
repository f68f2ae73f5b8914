"""Captions as columns: read from their shards, keyed for the random order, equal ones merged.

A caption's key is a 64-bit bijection of (seed, caption_id): it is its identity, its place in the
random order, and, by ranges, its partition. Everything here works on whole columns.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.errors import DamagedFileError
from transforms.core.records import CAPTION_SCHEMA
from transforms.core.seeding import derive
from transforms.core.shards import Index
from transforms.curation.hashes import Hashes, changes, mix


@dataclass(frozen=True)
class InputShard:
    """A committed shard of captions, as its index lists it."""

    url: str
    sha256: str
    num_captions: int


def input_shards(index: Index) -> list[InputShard]:
    """The shards of a complete captions stage."""
    rows = index.table.select(["path", "sha256", "num_samples"]).to_pylist()
    return [
        InputShard(storage.join(index.folder, row["path"]), row["sha256"], row["num_samples"])
        for row in rows
    ]


def in_groups(shards: Iterable[InputShard], num_captions: int) -> list[list[InputShard]]:
    """Consecutive shards that are read by one task: about so many captions, at least one shard."""
    groups: list[list[InputShard]] = []
    held = num_captions
    for shard in shards:
        if held >= num_captions:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += shard.num_captions
    return groups


def order_keys(seed: int, caption_ids: pa.Array) -> Hashes:
    """The captions' places in the random order, 64 bits: [N] ids -> [N]."""
    digits = pc.cast(pc.cast(caption_ids, pa.binary()), pa.binary(16))
    text = np.frombuffer(digits.buffers()[1], np.uint8)[16 * digits.offset :][: 16 * len(digits)]
    nibbles = text - np.where(text >= ord("a"), ord("a") - 10, ord("0")).astype(np.uint8)
    # Two hexadecimal digits are a byte, eight bytes a number.
    numbers = (nibbles[0::2] << 4 | nibbles[1::2]).view(">u8").astype(np.uint64)
    return mix(numbers ^ np.uint64(derive(seed, "order", bits=64)))


def partition_of(keys: Hashes, num_partitions: int) -> NDArray[np.int64]:
    """Which range of keys each key is in: partitions are in the order of their keys."""
    return (((keys >> np.uint64(32)) * np.uint64(num_partitions)) >> np.uint64(32)).astype(np.int64)


def first_written(rows: pa.Table) -> pa.Table:
    """One row per key, the one with the smallest ordinal, in the order of keys.

    Args:
        rows: [N] captions with `key`, and `times`: for how many equal captions a row stands.
    """
    keys, ordinals = rows["key"].to_numpy(), rows["ordinal"].to_numpy()
    order = np.lexsort((ordinals, keys))
    first = np.flatnonzero(changes(keys[order]))
    times = rows["times"].to_numpy()[order]
    summed = np.add.reduceat(times, first) if len(first) else times
    kept = rows.drop_columns(["times"]).take(order[first])
    return kept.append_column("times", pa.array(summed))


def read_table(shard: InputShard) -> pa.Table:
    """The captions of a shard.

    Raises:
        DamagedFileError: The file is not the one that was committed.
    """
    content = storage.read_bytes(shard.url)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DamagedFileError(
            f"{shard.url} is not what its index says: delete it and its commit record, then run "
            "the captions stage again"
        )
    return pq.read_table(io.BytesIO(content), columns=CAPTION_SCHEMA.names, use_threads=False)


def column(rows: pa.Table, name: str) -> pa.Array:
    """A column in one piece."""
    whole = rows[name].combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
