"""What a data set is: pictures with labels or masks in three splits, and a metric.

Source: paper section 4. If a set has no official validation split, 20 % of each training class is
set aside (appendix of the paper); sets without a test split get one in the same way. Both are
chosen by the names of the pictures alone, so that splits do not depend on their order on disk.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.metrics import Metric
from transforms.core.seeding import derive

Kind = Literal["classification", "multi-label", "segmentation"]
"""What is predicted: one class of a picture, all of its classes, or the class of each pixel."""
Picture = bytes | Path | NDArray[np.uint8]
"""An encoded image, the file that holds one, or its pixels [H, W] or [H, W, 3]."""

SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 0.2
"""Share of each training class that is set aside if a data set has no validation split."""
SPLIT_SEED = 0


class AbsentSetError(Exception):
    """A data set is not on this machine; the message says where it is expected."""


@dataclass(frozen=True)
class Split:
    """Pictures with their labels or masks."""

    pictures: Sequence[Picture]
    labels: NDArray[np.int64]
    """classification: [N], indices into the data set's `classes`; multi-label: [N, C], 1 for a
    class that is there, -1 for one that is not, 0 for one that does not count; segmentation:
    [N, 0]."""
    masks: Sequence[Path] = ()
    """segmentation: [N], images whose pixels are 1 + the index of a class, 0 for none of them."""
    things: Sequence[str] = ()
    """[N], names of the things that are shown, if they are finer than the classes."""

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        """Return how a picture is called in messages."""
        picture = self.pictures[index]
        return str(picture) if isinstance(picture, Path) else f"picture {index}"


@dataclass(frozen=True)
class LabelledSet:
    """A data set to score encoders on."""

    name: str
    classes: tuple[str, ...]
    metric: Metric
    train: Split
    val: Split
    test: Split
    identity: str
    """Digest that changes with the pictures; part of a score's fingerprint."""
    kind: Kind = "classification"

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Part:
    """Official part of a data set, before anything is set aside."""

    pictures: Sequence[Picture]
    labels: NDArray[np.int64]
    names: Sequence[str]
    """Names of the pictures, which splits of our own are chosen by."""
    masks: Sequence[Path] = ()
    groups: Sequence[str] | None = None
    """Names of what must not be divided, such as frames of one track; None: each picture alone."""

    def chosen(self, mask: NDArray[np.bool_]) -> "Part":
        """Return the pictures for which the mask [N] is true."""
        which = np.flatnonzero(mask)

        def pick(values: Sequence[object]) -> tuple[object, ...]:
            return tuple(values[i] for i in which)

        return Part(
            pick(self.pictures),  # type: ignore[arg-type]
            self.labels[which],
            pick(self.names),  # type: ignore[arg-type]
            pick(self.masks) if len(self.masks) else (),  # type: ignore[arg-type]
            None if self.groups is None else pick(self.groups),  # type: ignore[arg-type]
        )


def set_aside(part: Part, share: float = VALIDATION_SHARE) -> tuple[Part, Part]:
    """Return (the rest, a share of each class), chosen by the names of pictures or groups.

    Classes with too few pictures to give one away stay whole.
    """
    names = part.groups if part.groups is not None else part.names
    aside = np.zeros(len(names), dtype=bool)
    for label in np.unique(part.labels):
        own = np.flatnonzero(part.labels == label)
        chosen = held_out(sorted({names[i] for i in own}), share)
        aside[own] = [names[i] in chosen for i in own]
    return part.chosen(~aside), part.chosen(aside)


def held_out(names: Sequence[str], share: float = VALIDATION_SHARE) -> set[str]:
    """Return the share of the names that is set aside, whatever their order."""
    return set(shuffled(names)[: round(share * len(names))])


def shuffled(names: Iterable[str]) -> list[str]:
    """Return names in a random order that depends on nothing but the names."""
    return sorted(names, key=lambda name: derive(SPLIT_SEED, name))


def identity_of(splits: dict[str, Part]) -> str:
    """Return a digest of which pictures with which labels are in which split.

    Files count by their names and sizes, pixels by their values.
    """
    digest = hashlib.blake2b(digest_size=16)
    for split, part in splits.items():
        digest.update(f"{split}:{len(part.pictures)}\n".encode())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
        for name, picture in zip(part.names, part.pictures, strict=True):
            if isinstance(picture, Path):
                size = picture.stat().st_size if picture.exists() else -1
                digest.update(f"{name}:{size}\n".encode())
            else:
                digest.update(picture if isinstance(picture, bytes) else picture.tobytes())
        for mask in part.masks:
            digest.update(f"{mask.name}:{mask.stat().st_size}\n".encode())
    return digest.hexdigest()
