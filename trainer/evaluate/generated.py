"""Generated images of a run as a data set: each is labelled by the concept of its caption.

For a large run it is a part that depends on nothing but the shards and the two limits: of the first
captions (curation has put them in random order), the first images of each concept.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import yaml
from numpy.typing import NDArray

from trainer.data.shard_reader import BrokenSampleError, ShardReader
from trainer.evaluate.datasets.base import Split
from transforms.core import storage

ALIASES_FILE = Path(__file__).with_name("data") / "aliases.yaml"
"""Names of the same thing."""


class GeneratedPictures(Sequence[bytes]):
    """Image files of samples, read when they are needed."""

    def __init__(self, reader: ShardReader, places: Sequence[tuple[int, int]]) -> None:
        """Remember where the images are.

        Args:
            reader: The images stage.
            places: (number of the sample, number of its image) of each picture.
        """
        self._reader, self._places = reader, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "GeneratedPictures": ...
    def __getitem__(self, index: int | slice) -> "bytes | GeneratedPictures":
        if isinstance(index, slice):
            return GeneratedPictures(self._reader, self._places[index])
        sample, number = self._places[index]
        return self._reader.sample(sample, [number]).images[0]


@dataclass(frozen=True)
class GeneratedSet:
    """Generated images and what they show."""

    concepts: tuple[str, ...]
    """Names of the concepts as `thing_name` returns them, in alphabetic order."""
    split: Split
    """The images; labels are indices into `concepts`."""
    captions: NDArray[np.int64]
    """Number of the caption of each image, [N]."""
    identity: str
    """Digest that changes with the images."""


def identity_of(images: str) -> str:
    """Return the digest of an images stage that is complete.

    Raises:
        StorageError, DamagedFileError, ConfigError: See `ShardReader`.
    """
    return _reader(images).checksum


def load_generated(images: str, num_captions: int, images_per_concept: int) -> GeneratedSet:
    """Return generated images of a run; those of captions without a concept are left out.

    The last ones are kept, since one data set after another is named by the same images.

    Args:
        images: Folder or URL of a complete images stage.
        num_captions: Captions that are looked at: the first ones.
        images_per_concept: Images of each concept that are taken: the first ones.

    Raises:
        StorageError, DamagedFileError, ConfigError: See `ShardReader`.
    """
    return _load(images, identity_of(images), num_captions, images_per_concept)


@lru_cache(maxsize=1)
def _load(images: str, identity: str, num_captions: int, images_per_concept: int) -> GeneratedSet:
    reader = _reader(images)
    places, names, captions, taken = [], [], [], Counter[str]()
    for number in range(min(num_captions, len(reader))):
        try:
            sample = reader.sample(number, [])
        except BrokenSampleError:
            continue
        name = thing_name(sample.meta.concept or "")
        for image in range(sample.num_images):
            if name and taken[name] < images_per_concept:
                taken[name] += 1
                places.append((number, image))
                names.append(name)
                captions.append(number)
    concepts = tuple(sorted(taken))
    index = {name: label for label, name in enumerate(concepts)}
    labels = np.array([index[name] for name in names], dtype=np.int64)
    return GeneratedSet(
        concepts,
        Split(GeneratedPictures(reader, places), labels),
        np.array(captions, dtype=np.int64),
        f"{identity} {num_captions} {images_per_concept}",
    )


def labels_of(names: Iterable[str], concepts: Sequence[str]) -> NDArray[np.int64]:
    """Return the concept that each of some things is, -1 for none.

    Args:
        names: Names of things, N of them.
        concepts: Names from `thing_name`.

    Returns:
        Indices into `concepts`, [N].
    """
    index, kinds = {name: label for label, name in enumerate(concepts)}, _aliases().kinds
    plain = map(thing_name, names)
    labels = [index.get(name, index.get(kinds.get(name, name), -1)) for name in plain]
    return np.array(labels, dtype=np.int64)


def thing_name(name: str) -> str:
    """Return the name under which a thing is compared: of several names, the first in the table.

    Case, hyphens, underscores and apostrophes do not count.
    """
    plain = _plain(name)
    return _aliases().same.get(plain, plain)


class Aliases(NamedTuple):
    """The table of names."""

    same: dict[str, str]
    """Name -> the first name of the same thing."""
    kinds: dict[str, str]
    """Name of a kind -> the general name."""


@cache
def _aliases() -> Aliases:
    table = yaml.safe_load(ALIASES_FILE.read_text(encoding="utf-8"))
    same = {_plain(name): _plain(group[0]) for group in table["same"] for name in group}
    kinds = {_plain(kind): _plain(general) for kind, general in table["kinds"].items()}
    return Aliases(same, {same.get(k, k): same.get(g, g) for k, g in kinds.items()})


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[-_\s]+", " ", name.replace("'", "")).lower().split())


def _reader(images: str) -> ShardReader:
    return ShardReader(storage.join(images, "index.parquet"))
