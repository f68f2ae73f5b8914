"""ImageNet classes as concepts: names a person would write, places by group, hypernyms.

The classes come from timm's `ImageNetInfo`. Its 12k subset, the classes of ImageNet-21k with the
most pictures, is the public list closest to the paper's 13k classes. The name of a class is its
first lemma. Classes that share a lemma get the beginning of their definition added: "crane (lifts
and moves heavy objects)".

Different from the paper on purpose: the 12k subset is used without its 967 classes of people. Few
of them can be seen in a picture, and some are insults.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transforms.core.config import Config, load_data
from transforms.core.errors import ConfigError

Subset = Literal["imagenet-1k", "imagenet-12k"]

MAX_NAME_LENGTH = 80
"""Maximum length of a name, in characters; the longest of the paper's sources has about 60."""

_PEOPLE = ("n096", "n108")
"""Range of WordNet 3.0 ids of people: nouns are numbered by field."""

_QUALIFIER_WORDS = 6
_ARTICLES = re.compile(r"^(?:any|either|one)? ?(?:of )?(?:several|various|two|a|an|the)? ")
_CONNECTIVES = frozenset(
    {"and", "as", "at", "by", "consisting", "containing", "for", "from", "having", "in", "into"}
    | {"is", "made", "on", "or", "resembling", "that", "to", "used", "where", "which", "who"}
    | {"whose", "with"}
)


@dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet."""

    synset: str
    """WordNet id, for instance n01440764."""
    name: str
    """Name that captions use."""


def imagenet_classes(subset: Subset) -> tuple[ImageNetClass, ...]:
    """Return the classes of a subset in timm's order, with distinct names.

    Raises:
        ConfigError: timm is not installed.
    """
    info = _timm_info(subset)
    synsets = [
        synset
        for synset in info.label_names()
        if subset == "imagenet-1k" or not _PEOPLE[0] <= synset < _PEOPLE[1]
    ]
    detailed = [info.label_name_to_description(synset, detailed=True) for synset in synsets]
    lemmas = [text.partition(": ")[0].split(", ")[0] for text in detailed]
    shared = Counter(_lemma_key(lemma) for lemma in lemmas)
    classes: dict[str, ImageNetClass] = {}
    for synset, lemma, text in zip(synsets, lemmas, detailed, strict=True):
        unique = shared[_lemma_key(lemma)] == 1
        name = lemma if unique else _qualified(lemma, text.partition(": ")[2])
        # Classes that still share a name also look the same.
        classes.setdefault(name.casefold(), ImageNetClass(synset, name))
    return tuple(classes.values())


def _timm_info(subset: Subset) -> Any:
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ConfigError(
            f"key 'timm' has value {subset!r}: the Python package timm is not installed"
        ) from error
    return ImageNetInfo(subset)


def _lemma_key(lemma: str) -> str:
    # "sunglass" and "sunglasses" are two classes with the same word.
    return lemma.casefold().removesuffix("es")


def _qualified(lemma: str, definition: str) -> str:
    """Return a lemma with the beginning of its definition, up to the first connective."""
    first = re.split("[;:,]", re.sub(r"\(.*?\)|`", "", definition))[0].strip()
    words: list[str] = []
    for word in _ARTICLES.sub("", first).split()[:_QUALIFIER_WORDS]:
        if word in _CONNECTIVES and len(words) > 1:
            break
        words.append(word)
    while words and (
        words[-1] in _CONNECTIVES | {"a", "an", "of", "the"}
        or len(f"{lemma} ({' '.join(words)})") > MAX_NAME_LENGTH
    ):
        words.pop()
    return f"{lemma} ({' '.join(words)})" if words else lemma


class GroupEntry(Config):
    """A group of ImageNet classes that occur in the same places."""

    name: str
    """Name of the group."""
    ancestor: str
    """Common ancestor of the classes in WordNet."""
    places: tuple[str, ...]
    """Plausible places of the things in the group."""
    classes: tuple[str, ...]
    """WordNet ids of classes of ImageNet-1k."""


class GroupFile(Config):
    """A file with the backgrounds of groups of classes."""

    groups: tuple[GroupEntry, ...]
    """All groups; a class is in one of them at most."""


@lru_cache(maxsize=2)
def _read_groups(path: str, written: int) -> GroupFile:
    """Read a file of groups once: several sources of a list name it, and it takes seconds.

    Args:
        path: Path of the file.
        written: Time at which it was written, so that another file of this name is read again.
    """
    return load_data(GroupFile, path)


def load_backgrounds(groups_path: str, members_path: str | None) -> dict[str, tuple[str, ...]]:
    """Read the places of classes, by WordNet id.

    Args:
        groups_path: Path of a `.yaml` file with the content of a `GroupFile`.
        members_path: Path of a `.tsv` file with more classes and the names of their groups.

    Raises:
        ConfigError: A file cannot be read, names a class twice, or names an undefined group.
    """
    places: dict[str, tuple[str, ...]] = {}
    by_name: dict[str, tuple[str, ...]] = {}
    written = os.stat(groups_path).st_mtime_ns if os.path.exists(groups_path) else 0
    for group in _read_groups(groups_path, written).groups:
        by_name[group.name] = group.places
        for synset in group.classes:
            if synset in places:
                raise ConfigError(
                    f"{groups_path}: group {group.name!r} names {synset} a second time"
                )
            places[synset] = group.places
    for synset, name in (load_facts(members_path) if members_path else {}).items():
        if name not in by_name:
            raise ConfigError(
                f"{members_path}: {synset} is in group {name!r}, which is not defined"
            )
        places.setdefault(synset, by_name[name])
    return places


def load_facts(path: str) -> dict[str, str]:
    """Read a text for each WordNet id from lines of id, tab, text.

    Empty lines and lines that start with `#` are ignored.

    Raises:
        ConfigError: The file cannot be read, or a line has another format.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"list {path!r} cannot be read: {error.strerror}") from error
    facts = {}
    for number, line in enumerate(lines, 1):
        synset, _, text = line.partition("\t")
        if line.startswith("#") or not line.strip():
            continue
        if not text.strip():
            raise ConfigError(f"{path}, line {number}: {line!r}: expected a WordNet id, tab, text")
        facts[synset] = text.strip()
    return facts
