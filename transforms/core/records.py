"""The records that move through a run, each a frozen dataclass; those in Parquet have a schema.

Concept -> Prompt -> Caption -> ImageSet. A record that could not be made is a `Failure`.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyarrow as pa

Kind = Literal["object", "place", "texture"]
Template = Literal["c", "c-background", "c-relation"]


@dataclass(frozen=True)
class Concept:
    """A visual concept that captions are written about."""

    name: str
    source: str
    """The list it came from, for instance "imagenet-1k"."""
    kind: Kind
    weight: float
    """Share of the captions relative to the other concepts."""
    backgrounds: tuple[str, ...]
    """Places where it plausibly is; empty when nobody listed any."""
    hypernym: str | None = None
    """What it is a kind of, where a list says so: a tench is a cyprinid fish."""


@dataclass(frozen=True)
class Backgrounds:
    """The places that a language model found for a concept; the columns of background shards."""

    source: str
    concept: str
    places: tuple[str, ...]

    @property
    def record_id(self) -> str:
        """Names are unique within a source."""
        return f"{self.source}/{self.concept}"


@dataclass(frozen=True)
class Prompt:
    """What the language model is asked, a pure function of (run seed, ordinal)."""

    ordinal: int
    concept: Concept
    template: Template
    background: str | None
    relation: str | None
    text: str
    seed: int


@dataclass(frozen=True)
class Caption:
    """A cleaned caption and where it came from; the columns of caption shards."""

    caption_id: str
    text: str
    ordinal: int
    concept: str
    source: str
    template: str
    background: str | None
    relation: str | None


@dataclass(frozen=True)
class ImageSet:
    """The images of one caption, encoded, with their seeds and the generator's settings."""

    caption: Caption
    images: tuple[bytes, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    """JSON values: model, steps, guidance, size and so on."""


@dataclass(frozen=True)
class Failure:
    """A record that could not be made: one row of a shard's dead-letter file."""

    record_id: str
    reason: str
    """A counter's name."""
    detail: str
    """A sentence for people: the exception or the rejected text."""


CONCEPT_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("backgrounds", pa.list_(pa.string()), nullable=False),
        pa.field("hypernym", pa.string()),
    ]
)

BACKGROUNDS_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("concept", pa.string(), nullable=False),
        pa.field("places", pa.list_(pa.string()), nullable=False),
    ]
)

CAPTION_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("concept", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("template", pa.string(), nullable=False),
        pa.field("background", pa.string()),
        pa.field("relation", pa.string()),
    ]
)

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

RecordT = TypeVar("RecordT")


def to_table(records: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Records as an Arrow table, one column per field of `schema`."""
    rows = list(records)
    columns = [[getattr(row, name) for row in rows] for name in schema.names]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def from_table(table: pa.Table, cls: type[RecordT]) -> list[RecordT]:
    """The rows of a table as records of dataclass `cls`; further columns are left out."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return [cls(**row) for row in table.select(names).to_pylist()]
