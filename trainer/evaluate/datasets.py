"""Labelled pictures to score encoders on: two built-in test sets, and your own folders.

Source: paper section 4. A data set has train, validation and test splits and the metric that is
reported for it. If it has no validation split, 20 % of each training class is set aside, chosen by
the names of the pictures alone, so that the split does not depend on their order on disk.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.evaluate import paper
from trainer.evaluate.metrics import Metric
from transforms.core.errors import ConfigError
from transforms.core.records import from_table, schema_of
from transforms.core.seeding import derive

DATA_FOLDER = Path(__file__).with_name("data")
"""Folder of the built-in test sets."""
FOLDER_PREFIX = "folder:"
"""Prefix of references to folders of class folders."""
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VALIDATION_SHARE = 0.2
"""Share of each training class that is set aside if a data set has no validation split."""
SPLIT_SEED = 0

BUILT_IN: dict[str, Metric] = {
    "drawings": "mean per-class accuracy",
    "fashion-mnist": "accuracy",
}
"""Built-in data set -> its metric; `data/<name>.parquet` holds the pictures."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture of a built-in test set: one row of its Parquet file."""

    image: bytes
    """A PNG file."""
    label: str
    name: str
    """The thing that is shown, or the picture's name in its original data set."""
    vendor: str
    """Maker of the picture."""
    split: str
    """train, val or test."""
    licence: str
    """SPDX identifier."""


PICTURE_SCHEMA = schema_of(LabelledPicture)


@dataclass(frozen=True)
class Split:
    """Pictures with their labels."""

    pictures: tuple[bytes | Path, ...]
    """Encoded images, or the files that hold them."""
    labels: NDArray[np.int64]  # [N], indices into the data set's `classes`

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class LabelledSet:
    """A data set for classification."""

    name: str
    classes: tuple[str, ...]
    metric: Metric
    train: Split
    val: Split
    test: Split
    identity: str
    """Digest that changes with the pictures; part of a score's fingerprint."""

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def load_dataset(reference: str) -> LabelledSet:
    """Return a data set by its reference.

    Args:
        reference: "drawings", "fashion-mnist", or "folder:PATH" with PATH/train/CLASS/*.jpg and
            PATH/test/CLASS/*.jpg (and optionally PATH/val/CLASS/*.jpg).

    Raises:
        ConfigError: There is no such data set, or the folder has another layout.
    """
    if reference.startswith(FOLDER_PREFIX):
        return _folder(reference, Path(reference.removeprefix(FOLDER_PREFIX)).expanduser())
    if reference in BUILT_IN:
        return _built_in(reference)
    raise ConfigError(
        f"unknown data set {reference!r}: expected one of {', '.join(BUILT_IN)} or "
        f"{FOLDER_PREFIX}PATH, a folder with train/CLASS/ and test/CLASS/"
    )


def read_pictures(name: str) -> list[LabelledPicture]:
    """Return all rows of a built-in test set."""
    return from_table(pq.read_table(DATA_FOLDER / f"{name}.parquet"), LabelledPicture)


def _built_in(name: str) -> LabelledSet:
    rows = read_pictures(name)
    classes = tuple(sorted({row.label for row in rows}))

    def split(wanted: str) -> Split:
        chosen = [row for row in rows if row.split == wanted]
        labels = np.array([classes.index(row.label) for row in chosen], dtype=np.int64)
        return Split(tuple(row.image for row in chosen), labels)

    identity = hashlib.blake2b((DATA_FOLDER / f"{name}.parquet").read_bytes(), digest_size=16)
    train, val, test = (split(wanted) for wanted in ("train", "val", "test"))
    return LabelledSet(name, classes, BUILT_IN[name], train, val, test, identity.hexdigest())


def _folder(reference: str, root: Path) -> LabelledSet:
    files = {split: _class_files(root / split) for split in ("train", "val", "test")}
    for required in ("train", "test"):
        if not files[required]:
            raise ConfigError(
                f"data set {reference!r}: expected pictures in {root / required}/CLASS/, "
                "but there are none"
            )
    classes = tuple(sorted(files["train"]))
    for split in ("val", "test"):
        unknown = sorted(set(files[split]) - set(classes))
        if unknown:
            raise ConfigError(
                f"data set {reference!r}: class {unknown[0]!r} of {split}/ is not in train/"
            )
    if not files["val"]:
        held_out = {name: _held_out(root, paths) for name, paths in files["train"].items()}
        for name, chosen in held_out.items():
            files["train"][name] = [p for p in files["train"][name] if p not in chosen]
            files["val"][name] = sorted(chosen)
    digest = hashlib.blake2b(digest_size=16)
    for split, by_class in files.items():
        for path in (path for name in sorted(by_class) for path in by_class[name]):
            digest.update(f"{split}/{path.relative_to(root)}:{path.stat().st_size}\n".encode())
    train, val, test = (_labelled(files[name], classes) for name in ("train", "val", "test"))
    if not len(val):
        raise ConfigError(
            f"data set {reference!r}: expected a val/ folder, or at least 3 pictures of some class "
            "in train/, of which a part is then set aside for validation"
        )
    name = root.resolve().name
    metric = paper.METRICS.get(name, "mean per-class accuracy")
    return LabelledSet(name, classes, metric, train, val, test, digest.hexdigest())


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Return class -> picture files below its folder; classes without pictures are left out."""
    if not folder.is_dir():
        return {}
    found = {
        entry.name: sorted(p for p in entry.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    }
    return {name: paths for name, paths in found.items() if paths}


def _held_out(root: Path, paths: Sequence[Path]) -> set[Path]:
    """Return the validation part of a class; classes of one or two pictures have none."""
    shuffled = sorted(paths, key=lambda p: derive(SPLIT_SEED, p.relative_to(root).as_posix()))
    return set(shuffled[: round(VALIDATION_SHARE * len(paths))])


def _labelled(by_class: dict[str, list[Path]], classes: tuple[str, ...]) -> Split:
    pairs = [(p, label) for label, name in enumerate(classes) for p in by_class.get(name, [])]
    return Split(tuple(p for p, _ in pairs), np.array([label for _, label in pairs], np.int64))
