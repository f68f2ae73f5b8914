"""RESISC45: aerial pictures of 45 kinds of places (Cheng et al., 2017). Torchvision lacks it.

The set has no official split. The split files `resisc45-train.txt`, `-val.txt` and `-test.txt` that
are common with it (Neumann et al., 2019: 60, 20 and 20 %) are used if they are next to the
pictures; otherwise 20 % of each class are the test.
"""

from pathlib import Path

import numpy as np

from trainer.evaluate.datasets.base import SPLITS
from trainer.evaluate.datasets.sources import Found, Source
from trainer.evaluate.datasets.vision import part_of_files

FOLDER = "NWPU-RESISC45"


def _read(root: Path) -> Found:
    from torchvision.datasets import ImageFolder

    found = ImageFolder(root / FOLDER)
    files, labels = zip(*found.samples, strict=True)
    whole = part_of_files(root, files, labels)
    lists = {split: root / FOLDER / f"resisc45-{split}.txt" for split in SPLITS}
    if not all(path.exists() for path in lists.values()):
        return Found(tuple(found.classes), {"train": whole})
    names = np.array([Path(name).name for name in whole.names])
    parts = {
        split: whole.chosen(np.isin(names, path.read_text().split()))
        for split, path in lists.items()
    }
    return Found(tuple(found.classes), parts)


SOURCE = Source(
    "resisc45",
    "resisc45",
    _read,
    (FOLDER,),
    "https://huggingface.co/datasets/torchgeo/resisc45",
    "accuracy",
    num_classes=45,
    num_pictures=31_500,
)
