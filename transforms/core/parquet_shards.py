"""Caption and background shards: Parquet with the columns of `records`."""

from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.records import (
    BACKGROUNDS_SCHEMA,
    CAPTION_SCHEMA,
    Backgrounds,
    Caption,
    from_table,
    to_table,
)

ROW_GROUP_SIZE = 1000
"""Rows a reader can fetch without the rest; an image shard needs about 250 of 10,000."""


def write_captions(path: str, captions: Iterable[Caption] | pa.Table) -> list[str]:
    """Write a caption shard to local disk, from records or from their columns.

    Returns:
        The record ids in the order of the file. A caption's record id is its ordinal: two
        ordinals may have the same text, and so the same caption_id, until curation.
    """
    table = captions if isinstance(captions, pa.Table) else to_table(captions, CAPTION_SCHEMA)
    pq.write_table(table, path, row_group_size=ROW_GROUP_SIZE, compression="zstd")
    return [str(ordinal) for ordinal in table["ordinal"].to_pylist()]


def read_captions(path: str) -> list[Caption]:
    """The captions of a shard on local disk."""
    return from_table(pq.read_table(path), Caption)


def read_caption_ids(path: str) -> list[str]:
    """The record ids of a caption shard on local disk, in order."""
    return [str(o) for o in pq.read_table(path, columns=["ordinal"])["ordinal"].to_pylist()]


def write_backgrounds(path: str, backgrounds: Iterable[Backgrounds]) -> list[str]:
    """Write a background shard to local disk.

    Returns:
        The record ids in the order of the file.
    """
    rows = list(backgrounds)
    pq.write_table(to_table(rows, BACKGROUNDS_SCHEMA), path, compression="zstd")
    return [row.record_id for row in rows]


def read_backgrounds(file: str | BinaryIO) -> list[Backgrounds]:
    """The rows of a background shard, open or on local disk."""
    rows = pq.read_table(file, columns=BACKGROUNDS_SCHEMA.names).to_pylist()
    return [Backgrounds(row["source"], row["concept"], tuple(row["places"])) for row in rows]


def read_background_ids(path: str) -> list[str]:
    """The record ids of a background shard on local disk, in order."""
    return [row.record_id for row in read_backgrounds(path)]
