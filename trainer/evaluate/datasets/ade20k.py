"""ADE20k for semantic segmentation (SceneParse150): 150 classes of pixels.

Its validation pictures are the test, as in the paper; 5 % of the training pictures are set aside
for validation. In a mask, 0 is a pixel of no class, and n is the class with index n - 1.
"""

from pathlib import Path

import numpy as np

from trainer.evaluate.datasets.base import Part, held_out
from trainer.evaluate.datasets.sources import Found, Source

FOLDER = "ADEChallengeData2016"
VALIDATION_SHARE = 0.05


def _read(root: Path) -> Found:
    folder = root / FOLDER
    whole = {name: _part(folder, theirs) for name, theirs in SPLITS.items()}
    aside = held_out(whole["train"].names, VALIDATION_SHARE)
    mask = np.array([name in aside for name in whole["train"].names], dtype=bool)
    parts = {"train": whole["train"].chosen(~mask), "val": whole["train"].chosen(mask)}
    return Found(_classes(folder), {**parts, "test": whole["test"]})


SPLITS = {"train": "training", "test": "validation"}


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the first name of each class: the last column of a table with a line of titles."""
    lines = (folder / "objectInfo150.txt").read_text().splitlines()[1:]
    return tuple(line.split("\t")[-1].partition(",")[0].strip() for line in lines if line.strip())


def _part(folder: Path, split: str) -> Part:
    pictures = tuple(sorted((folder / "images" / split).glob("*.jpg")))
    masks = tuple(folder / "annotations" / split / f"{path.stem}.png" for path in pictures)
    absent = [mask for mask in masks if not mask.exists()]
    if absent:
        raise ValueError(f"there is no mask {absent[0]}")
    names = tuple(path.name for path in pictures)
    return Part(pictures, np.zeros((len(pictures), 0), dtype=np.int64), names, masks)


SOURCE = Source(
    "ade20k",
    "ade20k",
    _read,
    (f"{FOLDER}/images", f"{FOLDER}/annotations", f"{FOLDER}/objectInfo150.txt"),
    "http://sceneparsing.csail.mit.edu/",
    "mIoU",
    num_classes=150,
    num_pictures=22_210,
    kind="segmentation",
)
