from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pytest

from transforms.core import records
from transforms.core.records import (
    Backgrounds,
    from_table,
    optional,
    schema_of,
    stored_values,
    table_of,
    to_table,
)


def text(name: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.string(), nullable=nullable)


def places(name: str) -> pa.Field:
    return pa.field(name, pa.list_(pa.string()), nullable=False)


SCHEMAS = {
    "CONCEPT_SCHEMA": [
        text("name"),
        text("source"),
        text("kind"),
        pa.field("weight", pa.float64(), nullable=False),
        places("backgrounds"),
        text("hypernym", nullable=True),
    ],
    "BACKGROUNDS_SCHEMA": [text("source"), text("concept"), places("places")],
    "CAPTION_SCHEMA": [
        text("caption_id"),
        text("text"),
        pa.field("ordinal", pa.int64(), nullable=False),
        text("concept"),
        text("source"),
        text("template"),
        text("background", nullable=True),
        text("relation", nullable=True),
    ],
    "FAILURE_SCHEMA": [text("record_id"), text("reason"), text("detail")],
}
"""The columns of stored files: a change here changes the bytes of shards."""


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_columns_of_stored_files(name: str) -> None:
    assert getattr(records, name).equals(pa.schema(SCHEMAS[name]), check_metadata=True)


@dataclass(frozen=True)
class Everything:
    flag: bool
    data: bytes | None
    score: float
    sizes: tuple[int, ...]
    level: Literal[1, 2, 3] | None
    note: "str | None" = None


def test_each_type_of_field_has_a_column_and_comes_back() -> None:
    schema = schema_of(Everything)
    assert schema.equals(
        pa.schema(
            [
                pa.field("flag", pa.bool_(), nullable=False),
                pa.field("data", pa.binary()),
                pa.field("score", pa.float64(), nullable=False),
                pa.field("sizes", pa.list_(pa.int64()), nullable=False),
                pa.field("level", pa.int64()),
                pa.field("note", pa.string()),
            ]
        )
    )
    rows = [Everything(True, b"\0", 0.5, (1, 2), 3), Everything(False, None, 1e300, (), None, "é")]
    table = to_table(rows, schema)
    assert from_table(table.append_column("more", pa.array([1, 2])), Everything) == rows


@dataclass(frozen=True)
class Seat:
    row: int
    number: int = optional(1)


def test_an_optional_field_is_stored_if_a_record_needs_it() -> None:
    first, second = Seat(4), Seat(4, 2)
    assert schema_of(Seat).names == ["row"]
    plain, full = (table_of(rows, Seat) for rows in ([first], [first, second]))
    assert plain.schema.equals(schema_of(Seat))
    assert full.column_names == ["row", "number"]
    together = pa.concat_tables([plain, full], promote_options="default")
    assert from_table(together, Seat) == [first, first, second]
    assert [stored_values(seat) for seat in (first, second)] == [
        {"row": 4},
        {"row": 4, "number": 2},
    ]


def test_backgrounds_come_back_as_tuples() -> None:
    rows = [Backgrounds("pets", "fox", ("in a wood", "on a hill")), Backgrounds("pets", "owl", ())]
    assert from_table(to_table(rows, schema_of(Backgrounds)), Backgrounds) == rows


@dataclass(frozen=True)
class Untyped:
    settings: dict[str, int]


@dataclass(frozen=True)
class Either:
    value: int | str


@pytest.mark.parametrize(("cls", "field"), [(Untyped, "settings"), (Either, "value")])
def test_a_field_without_a_column_is_named(cls: type, field: str) -> None:
    with pytest.raises(TypeError, match=f"field '{field}' of {cls.__name__} has type"):
        schema_of(cls)
