"""Classification sets that torchvision reads, with their official splits and nothing downloaded.

Splits of our own, where there is no official one: Caltech-101 (30 pictures of each class are for
training, as its authors propose, drawn without replacement; the others are the test), EuroSAT (20 %
of each class are the test), and validation for Cars, Pets, SUN397, Food-101, GTSRB, MNIST and
ImageNet. GTSRB sets whole tracks aside, since the frames of a track show the same sign. ImageNet
gives 1 % of its training pictures to validation, which is enough to choose a setting and leaves the
training as large as the paper's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.datasets.base import Part, shuffled
from trainer.evaluate.datasets.sources import Found, Source

CALTECH_TRAIN = 30
"""Training pictures of each class of Caltech-101."""
IMAGENET_VALIDATION = 0.01
PARTITIONS = ("SUN397", "SUN397/Partitions", "Partitions")
"""Folders that the split files of SUN397 may be in."""

Options = dict[str, Any]


def _datasets() -> Any:
    import torchvision.datasets

    return torchvision.datasets


def part_of_files(
    root: Path,
    files: Sequence[str | Path],
    labels: Sequence[int] | NDArray[np.int64],
    group: Callable[[str], str] | None = None,
) -> Part:
    """Return files with their labels as a part; the names are paths below `root`."""
    paths = tuple(Path(file) for file in files)
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    groups = None if group is None else tuple(group(name) for name in names)
    return Part(paths, np.array(labels, dtype=np.int64), names, groups=groups)


def _read(root: Path, kind: str, splits: dict[str, Options]) -> Found:
    """Read a torchvision class that has `classes`, `_image_files` and `_labels`."""
    parts = {}
    for split, options in splits.items():
        found = getattr(_datasets(), kind)(root, download=False, **options)
        parts[split] = part_of_files(root, found._image_files, found._labels)
    return Found(tuple(found.classes), parts)


def _cars(root: Path) -> Found:
    parts = {}
    for split in ("train", "test"):
        found = _datasets().StanfordCars(root, split=split, download=False)
        files, labels = zip(*found._samples, strict=True)
        parts[split] = part_of_files(root, files, labels)
    return Found(tuple(found.classes), parts)


def _pets(root: Path) -> Found:
    parts = {}
    for split, theirs in (("train", "trainval"), ("test", "test")):
        found = _datasets().OxfordIIITPet(root, split=theirs, download=False)
        parts[split] = part_of_files(root, found._images, found._labels)
        if split == "train":
            classes = tuple(found.classes)
    return Found(classes, parts)


def _sun397(root: Path) -> Found:
    """Read the first of the ten official partitions: 50 training and 50 test pictures per class."""
    found = _datasets().SUN397(root, download=False)
    labels = {
        path.relative_to(root / "SUN397").as_posix(): label
        for path, label in zip(found._image_files, found._labels, strict=True)
    }
    parts = {}
    for split, theirs in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        places = [root / folder / theirs for folder in PARTITIONS]
        file = next((place for place in places if place.exists()), places[0])
        names = [line.strip().lstrip("/") for line in file.read_text().splitlines() if line.strip()]
        files = [root / "SUN397" / name for name in names]
        parts[split] = part_of_files(root, files, [labels[name] for name in names])
    return Found(tuple(found.classes), parts)


def _caltech(root: Path) -> Found:
    found = _datasets().Caltech101(root, download=False)
    folder = root / "caltech101" / "101_ObjectCategories"
    whole = part_of_files(
        root,
        [
            folder / found.categories[label] / f"image_{number:04d}.jpg"
            for label, number in zip(found.y, found.index, strict=True)
        ],
        found.y,
    )
    train: set[str] = set()
    for label in np.unique(whole.labels):
        own = [whole.names[i] for i in np.flatnonzero(whole.labels == label)]
        train.update(shuffled(own)[:CALTECH_TRAIN])
    mask = np.array([name in train for name in whole.names])
    return Found(
        tuple(found.categories), {"train": whole.chosen(mask), "test": whole.chosen(~mask)}
    )


def _gtsrb(root: Path) -> Found:
    def track(name: str) -> str:
        return name.rpartition("_")[0]  # Of CLASS/TRACK_FRAME.ppm.

    parts = {}
    for split, group in (("train", track), ("test", None)):
        found = _datasets().GTSRB(root, split=split, download=False)
        files, labels = zip(*found._samples, strict=True)
        parts[split] = part_of_files(root, files, labels, group)
    classes = {label for part in parts.values() for label in part.labels.tolist()}
    return Found(tuple(f"{label:05d}" for label in range(max(classes) + 1)), parts)


def _class_folders(root: Path, folders: dict[str, str]) -> Found:
    """Read folders of class folders; the classes are those of the first."""
    parts, classes = {}, None
    for split, folder in folders.items():
        found = _datasets().ImageFolder(root / folder)
        files, labels = zip(*found.samples, strict=True)
        if classes is None:
            classes = tuple(found.classes)
        if tuple(found.classes) != classes:
            other = sorted(set(found.classes) ^ set(classes))
            raise ValueError(f"class {other[0]!r} is not in all splits")
        parts[split] = part_of_files(root, files, labels)
    assert classes is not None, "a set has a training part"
    return Found(classes, parts)


def _mnist(root: Path) -> Found:
    parts = {}
    for split in ("train", "test"):
        found = _datasets().MNIST(root, train=split == "train", download=False)
        parts[split] = part_of_pixels(found.data.numpy(), found.targets.numpy(), split)
    return Found(tuple(found.classes), parts)


def part_of_pixels(pixels: NDArray[np.uint8], labels: NDArray[Any], name: str) -> Part:
    """Return pixels [N, H, W] with labels [N] as a part."""
    names = tuple(f"{name}-{number:06d}" for number in range(len(pixels)))
    return Part(tuple(pixels), labels.astype(np.int64), names)


THREE = {name: {"split": name} for name in ("train", "val", "test")}
TWO = {name: {"split": name} for name in ("train", "test")}

SOURCES = (
    Source(
        "imagenet-1k",
        "torchvision:imagenet",
        partial(_class_folders, folders={"train": "imagenet/train", "test": "imagenet/val"}),
        ("imagenet/train", "imagenet/val"),
        "https://image-net.org/download.php, one folder per class",
        "accuracy",
        num_classes=1000,
        num_pictures=1_331_167,
        validation_share=IMAGENET_VALIDATION,
    ),
    Source(
        "aircraft",
        "torchvision:fgvcaircraft",
        partial(_read, kind="FGVCAircraft", splits=THREE),
        ("fgvc-aircraft-2013b/data/images", "fgvc-aircraft-2013b/data/images_variant_test.txt"),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "mean per-class accuracy",
        num_classes=100,
        num_pictures=10_000,
    ),
    Source(
        "cars",
        "torchvision:stanfordcars",
        _cars,
        (
            "stanford_cars/devkit",
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
        "https://github.com/pytorch/vision/issues/7545 (the authors' page is gone)",
        "accuracy",
        num_classes=196,
        num_pictures=16_185,
    ),
    Source(
        "dtd",
        "torchvision:dtd",
        partial(_read, kind="DTD", splits=THREE),
        ("dtd/dtd/images", "dtd/dtd/labels"),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "accuracy",
        num_classes=47,
        num_pictures=5_640,
    ),
    Source(
        "flowers",
        "torchvision:flowers102",
        partial(_read, kind="Flowers102", splits=THREE),
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "mean per-class accuracy",
        num_classes=102,
        num_pictures=8_189,
    ),
    Source(
        "pets",
        "torchvision:oxfordiiitpet",
        _pets,
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "mean per-class accuracy",
        num_classes=37,
        num_pictures=7_349,
    ),
    Source(
        "sun397",
        "torchvision:sun397",
        _sun397,
        ("SUN397/ClassName.txt",),
        "https://vision.princeton.edu/projects/2010/SUN/ (also Partitions.zip)",
        "accuracy",
        num_classes=397,
        num_pictures=39_700,
    ),
    Source(
        "caltech-101",
        "torchvision:caltech101",
        _caltech,
        ("caltech101/101_ObjectCategories",),
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "mean per-class accuracy",
        num_classes=101,
        num_pictures=8_677,
    ),
    Source(
        "food-101",
        "torchvision:food101",
        partial(_read, kind="Food101", splits=TWO),
        ("food-101/images", "food-101/meta"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "accuracy",
        num_classes=101,
        num_pictures=101_000,
    ),
    Source(
        "eurosat",
        "torchvision:eurosat",
        partial(_class_folders, folders={"train": "eurosat/2750"}),
        ("eurosat/2750",),
        "https://zenodo.org/records/7711810 (EuroSAT_RGB)",
        "accuracy",
        num_classes=10,
        num_pictures=27_000,
    ),
    Source(
        "gtsrb",
        "torchvision:gtsrb",
        _gtsrb,
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
        "https://benchmark.ini.rub.de/gtsrb_dataset.html",
        "accuracy",
        num_classes=43,
        num_pictures=39_270,
    ),
    Source(
        "country211",
        "torchvision:country211",
        partial(
            _class_folders,
            folders={s: f"country211/{s.replace('val', 'valid')}" for s in THREE},
        ),
        ("country211/train", "country211/valid", "country211/test"),
        "https://github.com/openai/CLIP/blob/main/data/country211.md",
        "accuracy",
        num_classes=211,
        num_pictures=63_300,
    ),
    Source(
        "mnist",
        "torchvision:mnist",
        _mnist,
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/ (unpacked)",
        "accuracy",
        num_classes=10,
        num_pictures=70_000,
    ),
)
