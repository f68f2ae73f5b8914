"""Operations on columns of captions: reading, keys of the random order, merging of equal captions.

The key of a caption is a 64-bit number, a bijection of its `caption_id` that depends on the seed.
It identifies the caption, gives its place in the random order, and its range gives the partition.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from transforms.core.seeding import derive
from transforms.core.shard_reader import CommittedShard

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


def in_groups(shards: Iterable[CommittedShard], num_captions: int) -> list[list[CommittedShard]]:
    """Group consecutive shards for the tasks that read them.

    Args:
        shards: All shards, in their order.
        num_captions: A group ends with the shard that reaches this number of captions.
    """
    groups: list[list[CommittedShard]] = []
    held = num_captions
    for shard in shards:
        if held >= num_captions:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += shard.num_samples
    return groups


def order_keys(seed: int, caption_ids: pa.Array) -> Hashes:
    """Return the keys of captions: [N] caption ids -> [N]."""
    digits = pc.cast(pc.cast(caption_ids, pa.binary()), pa.binary(16))
    text = np.frombuffer(digits.buffers()[1], np.uint8)[16 * digits.offset :][: 16 * len(digits)]
    nibbles = text - np.where(text >= ord("a"), ord("a") - 10, ord("0")).astype(np.uint8)
    # Two hexadecimal digits make a byte, eight bytes a number.
    numbers = (nibbles[0::2] << 4 | nibbles[1::2]).view(">u8").astype(np.uint64)
    return mix(numbers ^ np.uint64(derive(seed, "order", bits=64)))


def partition_of(keys: Hashes, num_partitions: int) -> NDArray[np.int64]:
    """Return the partition of each key, which are ranges of keys in ascending order: [N] -> [N]."""
    return (((keys >> np.uint64(32)) * np.uint64(num_partitions)) >> np.uint64(32)).astype(np.int64)


def first_written(rows: pa.Table) -> pa.Table:
    """Return one row per key, the one with the smallest ordinal, in the order of the keys.

    Args:
        rows: [N] captions with their `key`, and with the number of equal captions that a row
            represents as `times`. The result has the sums of `times`.
    """
    keys, ordinals = rows["key"].to_numpy(), rows["ordinal"].to_numpy()
    order = np.lexsort((ordinals, keys))
    first = np.flatnonzero(changes(keys[order]))
    times = rows["times"].to_numpy()[order]
    summed = np.add.reduceat(times, first) if len(first) else times
    kept = rows.drop_columns(["times"]).take(order[first])
    return kept.append_column("times", pa.array(summed))


def column(rows: pa.Table, name: str) -> pa.Array:
    """Return a column as one contiguous array."""
    whole = rows[name].combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def mix(values: Hashes) -> Hashes:
    """Apply a bijection of 64-bit numbers that looks random (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def changes(values: Hashes) -> NDArray[np.bool_]:
    """Return where a value differs from the one before it: [N] -> [N], true at the first."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new


def distinct(major: Hashes, minor: Hashes) -> tuple[Hashes, Hashes]:
    """Return the distinct rows of two columns, sorted by the first, then by the second."""
    order = np.lexsort((minor, major))
    major, minor = major[order], minor[order]
    new = changes(major) | changes(minor)
    return major[new], minor[new]
