"""Concepts: reading the list that captions are written about (paper, section 3.1).

A list is a YAML file of sources, each with its share of the captions, or a text file with one
concept per line. What is written in a file is kept as it stands: cleaning class names is the work
of whoever makes the list.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from transforms.core.config import Config, ConfigError, load_config
from transforms.core.records import Concept, Kind

MAX_NAME_LENGTH = 100
"""Letters; the longest class name of the paper's sources has about 60."""

_YAML_SUFFIXES = (".yaml", ".yml")
_TEXT_SUFFIXES = (".txt", "")


class ConceptEntry(Config):
    """A concept as a list states it: its name alone, or a name with its own settings."""

    name: str
    """What captions are about, as a person would write it."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the source's captions relative to the source's other concepts."""
    kind: Kind | None = None
    """Instead of the source's kind."""
    backgrounds: str | tuple[str, ...] | None = None
    """Instead of the source's backgrounds."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ConceptSource(Config):
    """Concepts that come from one place."""

    source: str
    """Its name, written into every caption."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Share of all captions, relative to the other sources."""
    kind: Kind = "object"
    """What its concepts are: object, place or texture."""
    backgrounds: str | tuple[str, ...] = ()
    """Places where its concepts plausibly are: a list, or the name of one under `backgrounds`."""
    concepts: tuple[Annotated[ConceptEntry, BeforeValidator(_named)], ...]
    """Names, or entries with `name` and, as needed, `weight`, `kind` and `backgrounds`."""


class ConceptFile(Config):
    """A concept list in YAML."""

    backgrounds: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Named lists of places, to be shared by sources and concepts."""
    sources: tuple[ConceptSource, ...]
    """Where the concepts come from."""


def load_concepts(path: str) -> tuple[Concept, ...]:
    """Read a concept list.

    Args:
        path: A `.yaml` file as `ConceptFile`, or a `.txt` file with one object per line, where
            empty lines and lines that start with `#` do not count.

    Returns:
        The concepts in the order of the file; their weights sum to one.

    Raises:
        ConfigError: The file cannot be read, is empty, or states something impossible.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _YAML_SUFFIXES:
        file = load_config(ConceptFile, path)
    elif suffix in _TEXT_SUFFIXES:
        file = _read_text(path)
    else:
        raise ConfigError(f"concept list {path!r} must be a .yaml or .txt file, not {suffix!r}")
    concepts = tuple(
        concept for source in file.sources for concept in _concepts(path, source, file.backgrounds)
    )
    if not concepts:
        raise ConfigError(f"concept list {path!r} is empty: expected at least one concept")
    total = sum(concept.weight for concept in concepts)
    return tuple(
        Concept(c.name, c.source, c.kind, c.weight / total, c.backgrounds) for c in concepts
    )


def _read_text(path: str) -> ConceptFile:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"concept list {path!r} cannot be read: {reason}") from error
    names = [line.strip() for line in lines]
    entries = tuple(ConceptEntry(name=name) for name in names if name and not name.startswith("#"))
    return ConceptFile(sources=(ConceptSource(source=Path(path).stem, concepts=entries),))


def _concepts(path: str, source: ConceptSource, named: dict[str, tuple[str, ...]]) -> list[Concept]:
    """The concepts of one source, their weights summing to its share."""
    if not source.concepts:
        raise ConfigError(f"concept list {path!r}: source {source.source!r} has no concepts")
    shared = _places(path, source.source, source.backgrounds, named)
    seen: set[str] = set()
    total = sum(entry.weight for entry in source.concepts)
    concepts = []
    for entry in source.concepts:
        _check_name(path, source.source, entry.name, seen)
        places = shared
        if entry.backgrounds is not None:
            places = _places(path, entry.name, entry.backgrounds, named)
        weight = source.share * entry.weight / total
        kind = entry.kind or source.kind
        concepts.append(Concept(entry.name, source.source, kind, weight, places))
    return concepts


def _check_name(path: str, source: str, name: str, seen: set[str]) -> None:
    if not name.strip():
        raise ConfigError(f"concept list {path!r}: source {source!r} has a concept without a name")
    if len(name) > MAX_NAME_LENGTH or "\n" in name:
        raise ConfigError(
            f"concept list {path!r}: concept {name[:30]!r}... of source {source!r} has "
            f"{len(name)} letters: expected one line of at most {MAX_NAME_LENGTH}"
        )
    key = name.casefold().strip()
    if key in seen:
        raise ConfigError(f"concept list {path!r}: source {source!r} names {name!r} twice")
    seen.add(key)


def _places(
    path: str, owner: str, backgrounds: str | tuple[str, ...], named: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    if isinstance(backgrounds, tuple):
        places = backgrounds
    elif backgrounds in named:
        places = named[backgrounds]
    else:
        known = ", ".join(sorted(named)) or "none"
        raise ConfigError(
            f"concept list {path!r}: {owner!r} uses the background list {backgrounds!r}, which is "
            f"not among those under `backgrounds` ({known})"
        )
    if any(not place.strip() for place in places):
        raise ConfigError(f"concept list {path!r}: a background of {owner!r} is empty")
    return places
