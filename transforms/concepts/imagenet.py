"""ImageNet's classes as concepts: names a person would write, places by group, hypernyms.

The classes come from timm's `ImageNetInfo`. Its 12k subset, the classes of ImageNet-21k with the
most pictures, is the nearest public list to the paper's 13k. A class is called by its first lemma;
classes that share one get the beginning of their definitions behind it: "crane (lifts and moves
heavy objects)".

Different from the paper on purpose: the 12k subset goes without its 967 classes of people, few of
which can be seen in a picture, and some of which are insults.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transforms.core.config import Config, load_config
from transforms.core.errors import ConfigError

Subset = Literal["imagenet-1k", "imagenet-12k"]

MAX_NAME_LENGTH = 80
"""Letters; the longest class name of the paper's sources has about 60."""

_PEOPLE = ("n096", "n108")
"""WordNet 3.0 numbers nouns by field; these are people."""

_QUALIFIER_WORDS = 6
_ARTICLES = re.compile(r"^(?:any|either|one)? ?(?:of )?(?:several|various|two|a|an|the)? ")
_CONNECTIVES = frozenset(
    {"and", "as", "at", "by", "consisting", "containing", "for", "from", "having", "in", "into"}
    | {"is", "made", "on", "or", "resembling", "that", "to", "used", "where", "which", "who"}
    | {"whose", "with"}
)


@dataclass(frozen=True)
class ImageNetClass:
    """A class: its WordNet id, for instance n01440764, and the name that captions use."""

    synset: str
    name: str


def imagenet_classes(subset: Subset) -> tuple[ImageNetClass, ...]:
    """The classes of a subset in timm's order, each with a name of its own.

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
        alone = shared[_lemma_key(lemma)] == 1
        name = lemma if alone else _qualified(lemma, text.partition(": ")[2])
        # Two that still have one name also look the same.
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
    # "sunglass" and "sunglasses" are two classes and one word.
    return lemma.casefold().removesuffix("es")


def _qualified(lemma: str, definition: str) -> str:
    """A lemma with the beginning of its definition, up to where a sentence would go on."""
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
    """A group of ImageNet classes that are found in the same places."""

    name: str
    """What the group is called, for people."""
    ancestor: str
    """WordNet's common ancestor of the classes."""
    places: tuple[str, ...]
    """Where the things of the group plausibly are."""
    classes: tuple[str, ...]
    """WordNet ids of classes of ImageNet-1k."""


class GroupFile(Config):
    """Backgrounds by group."""

    groups: tuple[GroupEntry, ...]
    """Each class stands in one of them."""


def load_backgrounds(groups_path: str, members_path: str | None) -> dict[str, tuple[str, ...]]:
    """Read the places of classes, by WordNet id.

    Args:
        groups_path: A .yaml file as `GroupFile`.
        members_path: A .tsv file with further classes, each with the name of its group.

    Raises:
        ConfigError: A file cannot be read, names a class twice, or a group that there is not.
    """
    places: dict[str, tuple[str, ...]] = {}
    by_name: dict[str, tuple[str, ...]] = {}
    for group in load_config(GroupFile, groups_path).groups:
        by_name[group.name] = group.places
        for synset in group.classes:
            if synset in places:
                raise ConfigError(
                    f"{groups_path}: group {group.name!r} names {synset} a second time"
                )
            places[synset] = group.places
    for synset, name in (load_facts(members_path) if members_path else {}).items():
        if name not in by_name:
            raise ConfigError(f"{members_path}: {synset} is in group {name!r}, which there is not")
        places.setdefault(synset, by_name[name])
    return places


def load_facts(path: str) -> dict[str, str]:
    """Read lines of a WordNet id, a tab, and a text; those that start with `#` do not count.

    Raises:
        ConfigError: The file cannot be read, or a line is different.
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
