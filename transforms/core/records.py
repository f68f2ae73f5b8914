"""Records of a run, each a frozen dataclass; the Arrow schema follows from its fields.

Concept -> Prompt -> Caption -> ImageSet. A record that could not be made is a `Failure`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

_OPTIONAL = "optional"
"""Metadata of the fields that `optional` declares."""


def optional(default: Any) -> Any:
    """Declare a field that is stored only if a record of its file differs from the default.

    Files whose records all have the default are those of versions without the field.
    """
    return field(default=default, metadata={_OPTIONAL: True})


Kind = Literal["object", "place", "texture"]
Template = Literal["c", "c-background", "c-relation"]


@dataclass(frozen=True)
class Concept:
    """A visual concept that captions are written about."""

    name: str
    source: str
    """List that the concept comes from, for instance "imagenet-1k"."""
    kind: Kind
    weight: float
    """Share of the captions relative to the other concepts."""
    backgrounds: tuple[str, ...]
    """Places where it plausibly is; empty if its list names none."""
    hypernym: str | None = None
    """What it is a kind of, if its list says so: a tench is a cyprinid fish."""


@dataclass(frozen=True)
class Backgrounds:
    """Places that a language model found for a concept; a row of a background shard."""

    source: str
    concept: str
    places: tuple[str, ...]

    @property
    def record_id(self) -> str:
        """Source and name; names are unique within a source."""
        return f"{self.source}/{self.concept}"


@dataclass(frozen=True)
class Prompt:
    """What the language model is asked: a pure function of (run seed, ordinal)."""

    ordinal: int
    concept: Concept
    template: Template
    background: str | None
    relation: str | None
    text: str
    seed: int


@dataclass(frozen=True)
class Caption:
    """A cleaned caption and where it comes from; a row of a caption shard."""

    caption_id: str
    text: str
    ordinal: int
    concept: str
    source: str
    template: str
    background: str | None
    relation: str | None
    occurrence: int = optional(0)
    """Number of captions before it with the same text; above 0 only if curation keeps them."""


@dataclass(frozen=True)
class ImageSet:
    """Encoded images of one caption, with their seeds and the settings of the generator."""

    caption: Caption
    images: tuple[bytes, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    """JSON values: model, steps, guidance, size and so on."""


@dataclass(frozen=True)
class Failure:
    """A record that could not be made: a row of a shard's dead-letter file."""

    record_id: str
    reason: str
    """Name of a counter, `counters.Count`."""
    detail: str
    """The exception or the rejected text, for people."""


RecordT = TypeVar("RecordT")

_ARROW_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


def schema_of(cls: type[Any]) -> pa.Schema:
    """Return the Arrow schema of a record dataclass: one column per field that is not optional.

    `str`, `int`, `float`, `bool` and `bytes` become the type of that name (64 bits); a `Literal`
    the type of its values; `tuple[X, ...]` a list; `X | None` a column that may hold null.

    Raises:
        TypeError: A field has a type that has no column.
    """
    hints = get_type_hints(cls)
    names = [each.name for each in fields(cls) if _OPTIONAL not in each.metadata]
    return pa.schema([_column(cls, name, hints[name]) for name in names])


def optional_columns(cls: type[Any]) -> pa.Schema:
    """Return the columns of the optional fields of a record dataclass; they may hold null."""
    hints = get_type_hints(cls)
    names = [each.name for each in fields(cls) if _OPTIONAL in each.metadata]
    return pa.schema([_column(cls, name, hints[name]).with_nullable(True) for name in names])


def _column(cls: type[Any], name: str, hint: Any) -> pa.Field:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types = [part for part in parts if part is not NoneType]
    arrow_type = _arrow_type(types[0]) if len(types) == 1 else None
    if arrow_type is None:
        raise TypeError(f"field {name!r} of {cls.__name__} has type {hint}, which has no column")
    return pa.field(name, arrow_type, nullable=NoneType in parts)


def _arrow_type(hint: Any) -> pa.DataType | None:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        (kind,) = {type(value) for value in parts}
        return _ARROW_TYPES.get(kind)
    if origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        item = _arrow_type(parts[0])
        return None if item is None else pa.list_(item)
    return _ARROW_TYPES.get(hint)


CONCEPT_SCHEMA = schema_of(Concept)
BACKGROUNDS_SCHEMA = schema_of(Backgrounds)
CAPTION_SCHEMA = schema_of(Caption)
FAILURE_SCHEMA = schema_of(Failure)


def stored_values(record: Any) -> dict[str, Any]:
    """Return the fields of a record with their values, optional ones unless they are defaults."""
    left_out = [
        each.name
        for each in fields(record)
        if _OPTIONAL in each.metadata and getattr(record, each.name) == each.default
    ]
    return {name: value for name, value in asdict(record).items() if name not in left_out}


def table_of(records: Iterable[Any], cls: type[Any]) -> pa.Table:
    """Return records of dataclass `cls` as an Arrow table, with the optional columns they need."""
    rows = list(records)
    schema, defaults = schema_of(cls), {each.name: each.default for each in fields(cls)}
    for column in optional_columns(cls):
        if any(getattr(row, column.name) != defaults[column.name] for row in rows):
            schema = schema.append(column)
    return to_table(rows, schema)


def to_table(records: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Return records as an Arrow table, one column per field of `schema`."""
    rows = list(records)
    columns = [[getattr(row, name) for row in rows] for name in schema.names]
    return pa.table(
        [pa.array(column, each.type) for column, each in zip(columns, schema, strict=True)],
        schema=schema,
    )


def from_table(table: pa.Table, cls: type[RecordT]) -> list[RecordT]:
    """Return the rows of a table as records of dataclass `cls`, without any further columns."""
    schema, optional_names = schema_of(cls), set(optional_columns(cls).names)
    there = [name for name in table.column_names if name in optional_names]
    rows: list[dict[str, Any]] = table.select([*schema.names, *there]).to_pylist()
    for row in rows:
        for name in there:
            if row[name] is None:
                del row[name]
    for name in (each.name for each in schema if pa.types.is_list(each.type)):
        for row in rows:
            row[name] = None if row[name] is None else tuple(row[name])
    return [cls(**row) for row in rows]
