"""Data sets that packages install: all of Fashion-MNIST (Debian), and scikit-learn's digits."""

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.datasets.sources import Found, Source
from trainer.evaluate.datasets.vision import part_of_pixels

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` installs its files."""
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Names of Fashion-MNIST's labels 0 to 9."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array in the IDX format: zero bytes, type, rank, sizes (big endian), values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


@dataclass(frozen=True)
class Installed(Source):
    """A data set in a package; the folder of the other data sets does not matter."""

    def missing(self, folder: Path | None) -> list[str]:
        """Return what is not installed."""
        return [] if is_installed(self.key) else [f"package {self.needs[0]!r}"]


def is_installed(key: str) -> bool:
    """Return whether the package of a data set is there."""
    if key == "digits":
        return importlib.util.find_spec("sklearn") is not None
    return FASHION_FOLDER.is_dir()


def _fashion(_: Path) -> Found:
    parts = {}
    for split, theirs in (("train", "train"), ("test", "t10k")):
        images = read_idx(FASHION_FOLDER / f"{theirs}-images-idx3-ubyte.gz")
        labels = read_idx(FASHION_FOLDER / f"{theirs}-labels-idx1-ubyte.gz")
        parts[split] = part_of_pixels(images, labels, theirs)
    return Found(FASHION_CLASSES, parts)


def _digits(_: Path) -> Found:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8], from 0 to 16
    return Found(
        tuple(map(str, range(10))), {"train": part_of_pixels(pixels, found.target, "digits")}
    )


SOURCES = (
    Installed(
        "fashion-mnist-70k",
        "fashion-mnist-70k",
        _fashion,
        ("dataset-fashion-mnist",),
        "Debian: apt install dataset-fashion-mnist",
        "accuracy",
        num_classes=10,
        num_pictures=70_000,
    ),
    Installed(
        "digits",
        "digits",
        _digits,
        ("scikit-learn",),
        "pip install scikit-learn",
        "accuracy",
        num_classes=10,
        num_pictures=1_797,
    ),
)
