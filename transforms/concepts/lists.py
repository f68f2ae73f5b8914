"""Concepts: reading the list that captions are written about (paper, section 3.1).

A list is a YAML file of sources, each with its share of the captions, or a table: text, CSV or
Parquet (see `concept_files`). A source states its concepts itself, or names a table, or takes
ImageNet's classes out of timm (see `imagenet`). A concept that two sources name is kept once, with
the first of them, and each source keeps its share.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from transforms.concepts.files import ConceptEntry, Row, read_places, read_rows
from transforms.concepts.imagenet import (
    MAX_NAME_LENGTH,
    Subset,
    imagenet_classes,
    load_backgrounds,
    load_facts,
)
from transforms.core.config import Config, load_config
from transforms.core.errors import ConfigError
from transforms.core.records import Concept, Kind

_YAML_SUFFIXES = (".yaml", ".yml")
_PLACES_SUFFIX = ".txt"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ConceptSource(Config):
    """Concepts that come from one place: exactly one of `concepts`, `file` and `timm`."""

    source: str
    """Its name, written into every caption."""
    share: PositiveFloat = 1.0
    """Share of all captions, relative to the other sources."""
    kind: Kind = "object"
    """What its concepts are: object, place or texture."""
    concepts: tuple[Annotated[ConceptEntry, BeforeValidator(_named)], ...] | None = None
    """Names, or entries with `name` and, as needed, `weight`, `kind`, `backgrounds`, `hypernym`."""
    file: str | None = None
    """A .txt, .csv or .parquet file; like every file named here, relative to this list's folder."""
    timm: Subset | None = None
    """ImageNet's classes: imagenet-1k, or imagenet-12k without its people."""
    suffix: str = ""
    """A noun behind every name, for instance `car`."""
    backgrounds: str | tuple[str, ...] = ()
    """Places where its concepts plausibly are: a list, the name of one under `backgrounds`, or a
    .txt file with one per line."""
    background_groups: str | None = None
    """Places by group of ImageNet classes, a .yaml file; other classes have `backgrounds`."""
    group_members: str | None = None
    """Further classes with the names of their groups, a .tsv file."""
    hypernyms: str | None = None
    """What each class of `timm` is a kind of, a .tsv file."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ConceptSource":
        given = [key for key in ("concepts", "file", "timm") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source {self.source!r} has {' and '.join(given) or 'no concepts'}: expected one "
                "of concepts, file and timm"
            )
        for key in ("background_groups", "group_members", "hypernyms"):
            if getattr(self, key) and not self.timm:
                raise ValueError(f"source {self.source!r} has {key}, which go with timm only")
        if self.group_members and not self.background_groups:
            raise ValueError(f"source {self.source!r} has group_members without background_groups")
        return self


class ConceptFile(Config):
    """A concept list in YAML."""

    backgrounds: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Named lists of places, to be shared by sources and concepts."""
    sources: tuple[ConceptSource, ...]
    """Where the concepts come from; what two of them name stays with the first."""


@dataclass(frozen=True)
class Duplicate:
    """A concept that two sources name."""

    name: str
    source: str
    """That it was left out of."""
    kept_in: str


@dataclass(frozen=True)
class ConceptList:
    """A list as it was read."""

    concepts: tuple[Concept, ...]
    """In the order of the file; their weights sum to one."""
    duplicates: tuple[Duplicate, ...]
    """What was left out of a source, since one before it has it."""
    total_share: float
    """What the shares of the sources add to in the file."""


def load_concepts(path: str) -> tuple[Concept, ...]:
    """The concepts of a list, as `read_list` reads it."""
    return read_list(path).concepts


def read_list(path: str) -> ConceptList:
    """Read a concept list.

    Args:
        path: A `.yaml` file as `ConceptFile`, or a `.txt`, `.csv` or `.parquet` table.

    Raises:
        ConfigError: A file cannot be read, is empty, or states something impossible.
    """
    if Path(path).suffix.lower() in _YAML_SUFFIXES:
        file = load_config(ConceptFile, path)
        read = [(source, _rows(path, source)) for source in file.sources]
        named = file.backgrounds
    else:
        read, named = _table_sources(path), {}
    reader = _Reader(path, named)
    concepts = [concept for source, rows in read for concept in reader.concepts(source, rows)]
    if not concepts:
        raise ConfigError(f"concept list {path!r} is empty: expected at least one concept")
    total = sum(source.share for source, _ in read)
    normalised = tuple(replace(c, weight=c.weight / total) for c in concepts)
    return ConceptList(normalised, tuple(reader.duplicates), total)


def _rows(path: str, source: ConceptSource) -> list[Row]:
    if source.file is not None:
        return read_rows(_beside(path, source.file))
    if source.timm is None:
        where = f"concept list {path!r}"
        return [Row(where, entry) for entry in source.concepts or ()]
    hypernyms, places = {}, {}
    if source.hypernyms:
        hypernyms = load_facts(_beside(path, source.hypernyms))
    if source.background_groups:
        members = source.group_members and _beside(path, source.group_members)
        places = load_backgrounds(_beside(path, source.background_groups), members)
    return [
        Row(
            source.timm,
            ConceptEntry(
                name=known.name,
                hypernym=hypernyms.get(known.synset),
                backgrounds=places.get(known.synset),
            ),
            synset=known.synset,
        )
        for known in imagenet_classes(source.timm)
    ]


def _table_sources(path: str) -> list[tuple[ConceptSource, list[Row]]]:
    """A table's sources, with the shares that the weights of its rows give them."""
    by_source: dict[str, list[Row]] = {}
    for row in read_rows(path):
        by_source.setdefault(row.source or Path(path).stem, []).append(row)
    return [
        (ConceptSource(source=name, share=sum(r.entry.weight for r in rows), concepts=()), rows)
        for name, rows in by_source.items()
    ]


def _beside(path: str, name: str) -> str:
    return str(Path(path).parent / name)


class _Reader:
    """Turns rows into concepts, source by source, and leaves out what an earlier source has."""

    def __init__(self, path: str, named: dict[str, tuple[str, ...]]) -> None:
        self._path = path
        self._named = named
        self._taken: dict[object, str] = {}
        self.duplicates: list[Duplicate] = []

    def concepts(self, source: ConceptSource, rows: Iterable[Row]) -> list[Concept]:
        """The concepts of one source, their weights summing to its share."""
        kept: list[tuple[Row, Concept]] = []
        seen: set[str] = set()
        shared = self._places(source.source, source.backgrounds)
        for row in rows:
            name = _checked_name(row, source, seen)
            kind = row.entry.kind or source.kind
            # A library can be a place and, in another list, a thing: that is not the same concept.
            keys: list[object] = [(kind, name.casefold()), *([row.synset] if row.synset else [])]
            first = next((self._taken[key] for key in keys if key in self._taken), None)
            if first is not None:
                self.duplicates.append(Duplicate(name, source.source, first))
                continue
            self._taken.update(dict.fromkeys(keys, source.source))
            places = shared
            if row.entry.backgrounds is not None:
                places = self._places(name, row.entry.backgrounds)
            weight, hypernym = row.entry.weight, row.entry.hypernym
            kept.append((row, Concept(name, source.source, kind, weight, places, hypernym)))
        if not kept:
            reason = "has no concepts" if not seen else "has no concept that others do not have"
            raise ConfigError(f"concept list {self._path!r}: source {source.source!r} {reason}")
        total = sum(row.entry.weight for row, _ in kept)
        return [replace(c, weight=source.share * c.weight / total) for _, c in kept]

    def _places(self, owner: str, backgrounds: str | tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(backgrounds, tuple):
            places = backgrounds
        elif backgrounds in self._named:
            places = self._named[backgrounds]
        elif backgrounds.endswith(_PLACES_SUFFIX):
            places = read_places(_beside(self._path, backgrounds))
        else:
            known = ", ".join(sorted(self._named)) or "none"
            raise ConfigError(
                f"concept list {self._path!r}: {owner!r} uses the background list {backgrounds!r}, "
                f"which is not among those under `backgrounds` ({known}), and no .txt file"
            )
        if any(not place.strip() for place in places):
            raise ConfigError(f"concept list {self._path!r}: a background of {owner!r} is empty")
        return places


def _checked_name(row: Row, source: ConceptSource, seen: set[str]) -> str:
    """The cleaned name of a row, with the source's suffix; `seen` grows by it."""
    name = " ".join(unicodedata.normalize("NFC", row.entry.name).replace("_", " ").split())
    if not name:
        raise ConfigError(f"{row.where}: a concept of source {source.source!r} has no name")
    if source.suffix and not name.casefold().endswith(f" {source.suffix}".casefold()):
        name = f"{name} {source.suffix}"
    if len(name) > MAX_NAME_LENGTH:
        raise ConfigError(
            f"{row.where}: concept {name[:30]!r}... of source {source.source!r} has {len(name)} "
            f"letters: expected at most {MAX_NAME_LENGTH}"
        )
    if name.casefold() in seen:
        raise ConfigError(f"{row.where}: source {source.source!r} names {name!r} twice")
    seen.add(name.casefold())
    return name
