"""Concept lists: the concepts that captions are written about, with weights (paper, section 3.1).

A list is a YAML file of sources, each with its share of the captions, or a single table: text, CSV
or Parquet (see `files`). A source lists its concepts itself, names a table, or takes the classes of
ImageNet from timm (see `imagenet`). A concept that two sources name is kept once, in the first of
them, and each source keeps its share.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from transforms.concepts.files import ConceptEntry, ConceptRow, read_places, read_rows
from transforms.concepts.imagenet import (
    MAX_NAME_LENGTH,
    Subset,
    imagenet_classes,
    load_backgrounds,
    load_facts,
)
from transforms.core.config import Config, load_data
from transforms.core.errors import ConfigError
from transforms.core.records import Concept, Kind

_YAML_SUFFIXES = (".yaml", ".yml")
_PLACES_SUFFIX = ".txt"


def _name_to_entry(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ConceptSource(Config):
    """A source of concepts: exactly one of `concepts`, `file` and `timm`."""

    source: str
    """Name of the source; it is stored with every caption."""
    share: PositiveFloat = 1.0
    """Share of all captions, relative to the other sources."""
    kind: Kind = "object"
    """Kind of the concepts: object, place or texture."""
    concepts: tuple[Annotated[ConceptEntry, BeforeValidator(_name_to_entry)], ...] | None = None
    """Names, or entries with `name` and, if needed, `weight`, `kind`, `backgrounds`, `hypernym`."""
    file: str | None = None
    """A .txt, .csv or .parquet file; this and every other path is relative to the list's folder."""
    timm: Subset | None = None
    """Classes of ImageNet: imagenet-1k, or imagenet-12k without people."""
    suffix: str = ""
    """Noun that is added to every name, for instance `car`."""
    backgrounds: str | tuple[str, ...] = ()
    """Plausible places of the concepts: a list, the name of a list under `backgrounds`, or a .txt
    file with one place per line."""
    keep_backgrounds: bool = False
    """The places were chosen for this source: `captions.use_backgrounds: run` keeps them."""
    background_groups: str | None = None
    """A .yaml file with places by group of ImageNet classes; other classes have `backgrounds`."""
    group_members: str | None = None
    """A .tsv file with more classes and the names of their groups."""
    hypernyms: str | None = None
    """A .tsv file with a more general term for each class of `timm`."""

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
                raise ValueError(f"source {self.source!r} has {key}, which needs timm")
        if self.group_members and not self.background_groups:
            raise ValueError(f"source {self.source!r} has group_members without background_groups")
        return self


class ConceptFile(Config):
    """A concept list as a YAML file."""

    backgrounds: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Lists of places by name, which sources and concepts can share."""
    sources: tuple[ConceptSource, ...]
    """Sources of the concepts; a concept that two sources name belongs to the first."""


@dataclass(frozen=True)
class Duplicate:
    """A concept that two sources name."""

    name: str
    source: str
    """Source that it was left out of."""
    kept_in: str
    """Source that keeps it."""


@dataclass(frozen=True)
class ConceptList:
    """The content of a concept list."""

    concepts: tuple[Concept, ...]
    """All concepts in the order of the file; their weights sum to one."""
    duplicates: tuple[Duplicate, ...]
    """Concepts that were left out because an earlier source names them."""
    total_share: float
    """Sum of the shares of the sources in the file."""
    keep_backgrounds: frozenset[str] = frozenset()
    """Sources whose places are kept with `captions.use_backgrounds: run`."""


def load_concepts(path: str) -> tuple[Concept, ...]:
    """Read the concepts of a list; see `read_list`."""
    return read_list(path).concepts


def read_list(path: str) -> ConceptList:
    """Read a concept list.

    Args:
        path: Path of a `.yaml` file with the content of a `ConceptFile`, or of a `.txt`, `.csv` or
            `.parquet` table.

    Raises:
        ConfigError: A file cannot be read, is empty, or has a wrong value.
    """
    if Path(path).suffix.lower() in _YAML_SUFFIXES:
        file = load_data(ConceptFile, path)
        sources = [(source, _source_rows(path, source)) for source in file.sources]
        named_places = file.backgrounds
    else:
        sources, named_places = _table_sources(path), {}
    builder = _ConceptBuilder(path, named_places)
    concepts = [concept for source, rows in sources for concept in builder.build(source, rows)]
    if not concepts:
        raise ConfigError(f"concept list {path!r} is empty: expected at least one concept")
    total = sum(source.share for source, _ in sources)
    normalised = tuple(replace(c, weight=c.weight / total) for c in concepts)
    kept = frozenset(source.source for source, _ in sources if source.keep_backgrounds)
    return ConceptList(normalised, tuple(builder.duplicates), total, kept)


def _source_rows(path: str, source: ConceptSource) -> list[ConceptRow]:
    if source.file is not None:
        return read_rows(_relative_to(path, source.file))
    if source.timm is None:
        where = f"concept list {path!r}"
        return [ConceptRow(where, entry) for entry in source.concepts or ()]
    hypernyms, places = {}, {}
    if source.hypernyms:
        hypernyms = load_facts(_relative_to(path, source.hypernyms))
    if source.background_groups:
        members = source.group_members and _relative_to(path, source.group_members)
        places = load_backgrounds(_relative_to(path, source.background_groups), members)
    return [
        ConceptRow(
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


def _table_sources(path: str) -> list[tuple[ConceptSource, list[ConceptRow]]]:
    """Read the sources of a table; the share of a source is the sum of the weights of its rows."""
    by_source: dict[str, list[ConceptRow]] = {}
    for row in read_rows(path):
        by_source.setdefault(row.source or Path(path).stem, []).append(row)
    return [
        (ConceptSource(source=name, share=sum(r.entry.weight for r in rows), concepts=()), rows)
        for name, rows in by_source.items()
    ]


def _relative_to(path: str, name: str) -> str:
    return str(Path(path).parent / name)


class _ConceptBuilder:
    """Makes concepts of rows, source by source, and leaves out those of earlier sources."""

    def __init__(self, path: str, named_places: dict[str, tuple[str, ...]]) -> None:
        self._path = path
        self._named_places = named_places
        self._taken: dict[object, str] = {}
        self.duplicates: list[Duplicate] = []

    def build(self, source: ConceptSource, rows: Iterable[ConceptRow]) -> list[Concept]:
        """Return the concepts of one source; their weights sum to its share."""
        kept: list[tuple[ConceptRow, Concept]] = []
        seen: set[str] = set()
        shared = self._places(source.source, source.backgrounds)
        for row in rows:
            name = _checked_name(row, source, seen)
            kind = row.entry.kind or source.kind
            # A library as a place and a library as an object are two concepts.
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
            reason = "has no concepts" if not seen else "names only concepts of earlier sources"
            raise ConfigError(f"concept list {self._path!r}: source {source.source!r} {reason}")
        total = sum(row.entry.weight for row, _ in kept)
        return [replace(c, weight=source.share * c.weight / total) for _, c in kept]

    def _places(self, owner: str, backgrounds: str | tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(backgrounds, tuple):
            places = backgrounds
        elif backgrounds in self._named_places:
            places = self._named_places[backgrounds]
        elif backgrounds.endswith(_PLACES_SUFFIX):
            places = read_places(_relative_to(self._path, backgrounds))
        else:
            known = ", ".join(sorted(self._named_places)) or "none"
            raise ConfigError(
                f"concept list {self._path!r}: {owner!r} uses the background list {backgrounds!r}, "
                f"which is neither a list under `backgrounds` ({known}) nor a .txt file"
            )
        if any(not place.strip() for place in places):
            raise ConfigError(f"concept list {self._path!r}: a background of {owner!r} is empty")
        return places


def _checked_name(row: ConceptRow, source: ConceptSource, seen: set[str]) -> str:
    """Return the normalised name of a row with the source's suffix, and add it to `seen`."""
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
