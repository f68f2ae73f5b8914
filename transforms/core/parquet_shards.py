"""Shards in Parquet: one row per record, one column per field of the record's dataclass."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Generic

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.records import (
    Backgrounds,
    Caption,
    RecordT,
    from_table,
    schema_of,
    table_of,
)
from transforms.core.seeding import caption_id
from transforms.core.shards import Contents


@dataclass(frozen=True)
class ParquetShards(Generic[RecordT]):
    """Format of shards that hold records of one dataclass; a `transforms.core.shards.ShardFormat`.

    Attributes:
        record: Class of the records; `records.schema_of` gives its columns.
        id_columns: Columns that together name a record; the record id joins them with "/".
        row_group_size: Rows that a reader can fetch without the others; None for all.
        find_faults: Returns what is wrong with the rows of a shard, for `verify`. It is pickled by
            its name.
    """

    record: type[RecordT]
    id_columns: tuple[str, ...]
    row_group_size: int | None = None
    find_faults: Callable[[pa.Table], list[str]] | None = None

    suffix: ClassVar[str] = ".parquet"

    def write(self, path: str, records: Iterable[RecordT] | pa.Table) -> list[str]:
        """Write a shard to local disk, from records or from their columns.

        Returns:
            The record ids in the order of the file.
        """
        table = records
        if not isinstance(table, pa.Table):
            table = table_of(records, self.record)
        pq.write_table(table, path, row_group_size=self.row_group_size, compression="zstd")
        return self._ids(table)

    def read(self, file: str | BinaryIO) -> list[RecordT]:
        """Return the records of a shard, open or on local disk."""
        return from_table(pq.read_table(file), self.record)

    def read_ids(self, path: str) -> list[str]:
        """Return the record ids of a shard on local disk, in the order of the file."""
        return self._ids(pq.read_table(path, columns=list(self.id_columns)))

    def check(self, content: bytes, metadata: Mapping[str, str], decode: bool) -> Contents:
        """Check the columns and the rows of a shard; see `ShardFormat`."""
        table = pq.read_table(io.BytesIO(content))
        schema = schema_of(self.record)
        if not table.select(schema.names).schema.equals(schema):
            return Contents([], [f"has other columns than a shard of {self.record.__name__}"])
        ids = self._ids(table)
        faults = self.find_faults(table) if self.find_faults else []
        if len(set(ids)) < len(ids):
            faults.append("holds a record twice")
        return Contents(ids, faults)

    def _ids(self, table: pa.Table) -> list[str]:
        columns = [table[name].to_pylist() for name in self.id_columns]
        return ["/".join(map(str, values)) for values in zip(*columns, strict=True)]


def caption_faults(table: pa.Table) -> list[str]:
    """Return what is wrong with captions: their ids must be the hashes of their texts."""
    columns = table.schema
    if "occurrence" in columns.names and not pa.types.is_integer(columns.field("occurrence").type):
        return ["has a column 'occurrence' without whole numbers"]
    rows = from_table(table, Caption)
    wrong = sum(
        row.occurrence < 0 or caption_id(row.text, row.occurrence) != row.caption_id for row in rows
    )
    return [f"has {wrong} captions whose id is not the hash of their text"] if wrong else []


CAPTION_SHARDS = ParquetShards(
    Caption, ("ordinal",), row_group_size=1000, find_faults=caption_faults
)
"""The record id of a caption is its ordinal: until curation, two ordinals may have the same text,
and so the same caption_id. An image shard needs about 250 rows of 10,000: row groups are small."""

BACKGROUND_SHARDS = ParquetShards(Backgrounds, ("source", "concept"))
