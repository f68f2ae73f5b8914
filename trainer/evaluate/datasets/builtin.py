"""The two built-in test sets: pictures in Parquet files of this package."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from trainer.evaluate.datasets.base import LabelledSet, Split
from trainer.evaluate.metrics import Metric
from transforms.core.records import from_table, schema_of

DATA_FOLDER = Path(__file__).parent.with_name("data")
"""Folder of the built-in test sets."""

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


def read_pictures(name: str) -> list[LabelledPicture]:
    """Return all rows of a built-in test set."""
    return from_table(pq.read_table(DATA_FOLDER / f"{name}.parquet"), LabelledPicture)


def load_built_in(name: str) -> LabelledSet:
    """Return a built-in test set by its name."""
    rows = read_pictures(name)
    classes = tuple(sorted({row.label for row in rows}))

    def split(wanted: str) -> Split:
        chosen = [row for row in rows if row.split == wanted]
        labels = np.array([classes.index(row.label) for row in chosen], dtype=np.int64)
        things = tuple(row.name for row in chosen) if name == "drawings" else ()
        return Split(tuple(row.image for row in chosen), labels, things=things)

    identity = hashlib.blake2b((DATA_FOLDER / f"{name}.parquet").read_bytes(), digest_size=16)
    train, val, test = (split(wanted) for wanted in ("train", "val", "test"))
    return LabelledSet(name, classes, BUILT_IN[name], train, val, test, identity.hexdigest())
