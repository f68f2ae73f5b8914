"""Caption shards and dead-letter files: Parquet with the columns of `records`."""

from collections.abc import Iterable

import pyarrow.parquet as pq

from transforms.core.records import CAPTION_SCHEMA, Caption, from_table, to_table

ROW_GROUP_SIZE = 1000
"""Rows a reader can fetch without the rest; an image shard needs about 250 of 10,000."""


def write_captions(path: str, captions: Iterable[Caption]) -> list[str]:
    """Write a caption shard to local disk.

    Returns:
        The record ids in the order of the file. A caption's record id is its ordinal: two
        ordinals may have the same text, and so the same caption_id, until curation.
    """
    table = to_table(captions, CAPTION_SCHEMA)
    pq.write_table(table, path, row_group_size=ROW_GROUP_SIZE, compression="zstd")
    return [str(ordinal) for ordinal in table["ordinal"].to_pylist()]


def read_captions(path: str) -> list[Caption]:
    """The captions of a shard on local disk."""
    return from_table(pq.read_table(path), Caption)


def read_caption_ids(path: str) -> list[str]:
    """The record ids of a caption shard on local disk, in order."""
    return [str(o) for o in pq.read_table(path, columns=["ordinal"])["ordinal"].to_pylist()]
