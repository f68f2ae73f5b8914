"""KITTI distance: how far the closest vehicle in front of the car is, in four classes.

Source: the Visual Task Adaptation Benchmark, as in CLIP's evaluation. The classes are up to 8 m, up
to 20 m, farther, and no vehicle; vehicles are cars, vans and trucks, and the distance is that along
the camera's axis. Only KITTI's training pictures have labels. They are divided by drives, with the
split that TensorFlow Datasets makes: 10 % of the drives for validation and 10 % for the test.
"""

from pathlib import Path

import numpy as np

from trainer.evaluate.datasets.base import Part
from trainer.evaluate.datasets.sources import Found, Source
from trainer.evaluate.datasets.vision import part_of_files

CLASSES = ("up to 8 m", "8 to 20 m", "more than 20 m", "no vehicle")
LIMITS = (8.0, 20.0, 999.0)
"""Distances in metres at which the next class begins."""
VEHICLES = frozenset({"Car", "Van", "Truck"})
SHARE = 10
"""Percent of the drives in each of validation and test."""
SPLIT_SEED = 123
"""Seed of the split in TensorFlow Datasets."""
MAPPING = "Kitti/raw/mapping"


def distance_class(label_file: str) -> int:
    """Return the class of a picture from the text of its label file."""
    fields = [line.split() for line in label_file.splitlines() if line.strip()]
    distances = [float(field[13]) for field in fields if field[0] in VEHICLES]
    closest = min(distances, default=1000.0)
    return sum(limit < closest for limit in LIMITS)


def drives(mapping: Path) -> list[str]:
    """Return the drive of each training picture, in their order.

    Args:
        mapping: Folder of the development kit with `train_rand.txt` (for each picture a line
            number) and `train_mapping.txt` (for each line a day, a drive and a frame).
    """
    lines = (mapping / "train_mapping.txt").read_text().splitlines()
    numbers = (mapping / "train_rand.txt").read_text().split(",")
    return [lines[int(number) - 1].split()[1] for number in numbers]


def divide(drive_of: list[str]) -> dict[str, set[str]]:
    """Return which drives are in `val` and in `test`, as TensorFlow Datasets draws them."""
    names = sorted(set(drive_of))
    count = max(1, SHARE * len(names) // 100)
    generator = np.random.RandomState(SPLIT_SEED)
    test = {str(name) for name in generator.choice(names, count, replace=False)}
    rest = sorted(set(names) - test)
    val = {str(name) for name in generator.choice(rest, count, replace=False)}
    return {"val": val, "test": test}


def _read(root: Path) -> Found:
    from torchvision.datasets import Kitti

    found = Kitti(root, train=True, download=False)
    pairs = sorted(zip(found.images, found.targets, strict=True))
    labels = [distance_class(Path(target).read_text()) for _, target in pairs]
    whole = part_of_files(root, [image for image, _ in pairs], labels)
    drive_of = drives(root / MAPPING)
    own = [drive_of[int(Path(image).stem)] for image, _ in pairs]
    chosen = divide(drive_of)
    parts: dict[str, Part] = {
        name: whole.chosen(np.array([drive in wanted for drive in own], dtype=bool))
        for name, wanted in chosen.items()
    }
    others = chosen["val"] | chosen["test"]
    parts["train"] = whole.chosen(np.array([drive not in others for drive in own], dtype=bool))
    return Found(CLASSES, parts)


SOURCE = Source(
    "kitti-distance",
    "torchvision:kitti",
    _read,
    (
        "Kitti/raw/training/image_2",
        "Kitti/raw/training/label_2",
        f"{MAPPING}/train_mapping.txt",
        f"{MAPPING}/train_rand.txt",
    ),
    "https://www.cvlibs.net/datasets/kitti/eval_object.php (left images, labels, development kit)",
    "accuracy",
    num_classes=len(CLASSES),
    num_pictures=7_481,
)
