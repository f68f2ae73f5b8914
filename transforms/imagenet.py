"""ImageNet's classes as concepts: names a person would write, places by group, hypernyms.

The classes come from timm's `ImageNetInfo`. Its 12k subset, the classes of ImageNet-21k with the
most pictures, is the nearest public list to the paper's 13k. A class is called by its first lemma;
classes that share one get the beginning of their definitions behind it: "crane (lifts and moves
heavy objects)".

Different from the paper on purpose: the 12k subset goes without its 967 classes of people, few of
which can be seen in a picture, and some of which are insults.
"""

import re
from bisect import bisect
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transforms.core.config import Config, ConfigError, load_config

Subset = Literal["imagenet-1k", "imagenet-12k"]

MAX_NAME_LENGTH = 80
"""Letters; the longest class name of the paper's sources has about 60."""

_PEOPLE = ("n096", "n108")
"""WordNet 3.0 numbers nouns by field; these are people."""

_BY_DESCENT = (("n013", "n02666"), ("n0755", "n080"), ("n115", "n132"))
"""Animals, foods and plants, fungi among them."""

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


class BackgroundGroups:
    """Places by group: of the classes of ImageNet-1k, and of what is most like one of them.

    Animals, foods and plants are numbered by descent in WordNet, so that the nearest number is a
    near relative. Artefacts are numbered by the alphabet: there, the last word of a name counts.

    Raises:
        ConfigError: The file cannot be read, or names a class twice.
    """

    def __init__(self, path: str) -> None:
        self._by_synset: dict[str, tuple[str, ...]] = {}
        for group in load_config(GroupFile, path).groups:
            for synset in group.classes:
                if synset in self._by_synset:
                    raise ConfigError(f"{path}: group {group.name!r} names {synset} a second time")
                self._by_synset[synset] = group.places
        votes: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        for known in imagenet_classes("imagenet-1k"):
            votes[_last_word(known.name)][self._by_synset.get(known.synset, ())] += 1
        self._by_last_word = {word: count.most_common(1)[0][0] for word, count in votes.items()}
        self._related = {
            field: sorted(synset for synset in self._by_synset if _field(synset) == field)
            for field in _BY_DESCENT
        }

    def places(self, name: str, synset: str | None) -> tuple[str, ...]:
        """Places of a class, or of anything by its name; none where no group fits."""
        field = _field(synset) if synset else None
        if synset and field and self._related[field]:
            return self._by_synset[_nearest(synset, self._related[field])]
        return self._by_synset.get(synset or "", self._by_last_word.get(_last_word(name), ()))


def _nearest(synset: str, ordered: list[str]) -> str:
    """The class itself, if it is among them."""
    place = bisect(ordered, synset)
    return min(
        ordered[max(place - 1, 0) : place + 1],
        key=lambda other: abs(int(other[1:]) - int(synset[1:])),
    )


def _field(synset: str) -> tuple[str, str] | None:
    return next((field for field in _BY_DESCENT if field[0] <= synset < field[1]), None)


def _last_word(name: str) -> str:
    words = name.partition(" (")[0].casefold().split()
    return words[-1] if words else ""


def load_hypernyms(path: str) -> dict[str, str]:
    """Read lines of a WordNet id, a tab, and what the class is a kind of.

    Raises:
        ConfigError: The file cannot be read, or a line is different.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"list of hypernyms {path!r} cannot be read: {error.strerror}") from error
    hypernyms = {}
    for number, line in enumerate(lines, 1):
        synset, tab, hypernym = line.partition("\t")
        if line.startswith("#") or not line.strip():
            continue
        if not tab or not hypernym.strip():
            raise ConfigError(f"{path}, line {number}: {line!r}: expected SYNSET<TAB>HYPERNYM")
        hypernyms[synset] = hypernym.strip()
    return hypernyms
