"""Tiny copies of public data sets, in the layout that each of them has on disk."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("first", "second", "third")
"""Classes of the copies whose names are free."""


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """Write a picture of noise; its suffix is the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "PPM" if path.suffix == ".ppm" else None)


def text(path: Path, lines: list[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def class_folders(folder: Path, count: int, pattern: str = "{name}_{number}.jpg") -> None:
    """Write `count` pictures of each class to FOLDER/CLASS/."""
    for name in NAMES:
        for number in range(1, count + 1):
            picture(folder / name / pattern.format(name=name, number=number), number)


def imagenet(root: Path) -> None:
    """Folders of synsets."""
    for wnid in ("n01440764", "n01443537"):
        for number in range(100):
            picture(root / f"imagenet/train/{wnid}/{wnid}_{number}.JPEG", number, (4, 4))
        picture(root / f"imagenet/val/{wnid}/ILSVRC2012_val_{wnid[-5:]}.JPEG")


def aircraft(root: Path) -> None:
    """Lists of `IMAGE VARIANT`; names of variants have spaces."""
    data = root / "fgvc-aircraft-2013b" / "data"
    text(data / "variants.txt", ["707-320", "Cessna 172"])
    for start, split in enumerate(("train", "val", "test")):
        numbers = [f"{1000 * start + number:07d}" for number in range(4)]
        text(
            data / f"images_variant_{split}.txt",
            [f"{n} {('707-320', 'Cessna 172')[i % 2]}" for i, n in enumerate(numbers)],
        )
        for number in numbers:
            picture(data / "images" / f"{number}.jpg")


def cars(root: Path) -> None:
    """Matlab annotations; classes count from 1."""
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, file in (
        ("train", base / "devkit" / "cars_train_annos.mat"),
        ("test", base / "cars_test_annos_withlabels.mat"),
    ):
        count = 10 if split == "train" else 4
        rows = np.zeros(count, dtype=[("class", "O"), ("fname", "O")])
        for number in range(count):
            rows[number] = (1 + number % 2, f"{number + 1:05d}.jpg")
            picture(base / f"cars_{split}" / f"{number + 1:05d}.jpg")
        savemat(file, {"annotations": rows})


def dtd(root: Path) -> None:
    """Lists of `CLASS/FILE` for ten partitions, of which the first is used."""
    base = root / "dtd" / "dtd"
    for start, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{start}{i:03d}.jpg" for c in ("banded", "woven") for i in range(2)]
        text(base / "labels" / f"{split}1.txt", names)
        for name in names:
            picture(base / "images" / name)


def flowers(root: Path) -> None:
    """Matlab lists; pictures and classes count from 1."""
    from scipy.io import savemat

    base = root / "flowers-102"
    base.mkdir(parents=True)
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 102, 2, 102]])})
    savemat(
        base / "setid.mat",
        {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 5]]), "tstid": np.array([[4, 6]])},
    )
    for number in range(1, 7):
        picture(base / "jpg" / f"image_{number:05d}.jpg")


def pets(root: Path) -> None:
    """Lists of `IMAGE CLASS SPECIES BREED`."""
    base = root / "oxford-iiit-pet"
    for split, numbers in (("trainval", range(1, 11)), ("test", range(11, 14))):
        lines = []
        for number in numbers:
            for label, name in enumerate(("Abyssinian", "american_bulldog"), 1):
                lines.append(f"{name}_{number} {label} {label} 1")
                picture(base / "images" / f"{name}_{number}.jpg")
        text(base / "annotations" / f"{split}.txt", lines)


def sun397(root: Path) -> None:
    """Folders by letter, some two levels deep; partitions name pictures from `/`."""
    base = root / "SUN397"
    classes = ("/a/abbey", "/b/bow_window/indoor")
    text(base / "ClassName.txt", list(classes))
    train, test = [], []
    for name in classes:
        files = [f"{name}/sun_{letter}.jpg" for letter in "abcdefgh"]
        for file in files:
            picture(base / file[1:])
        train += files[:5]
        test += files[5:7]  # The eighth is in no partition.
    text(base / "Partitions" / "Training_01.txt", train)
    text(base / "Partitions" / "Testing_01.txt", test)


def caltech(root: Path) -> None:
    """Class folders, and one that is no class."""
    for name, count in (("accordion", 40), ("wrench", 35), ("BACKGROUND_Google", 3)):
        for number in range(1, count + 1):
            folder = root / "caltech101" / "101_ObjectCategories" / name
            picture(folder / f"image_{number:04d}.jpg", number, (4, 4))


def food(root: Path) -> None:
    """JSON lists by class."""
    base = root / "food-101"
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        listed = {c: [f"{c}/{n}" for n in numbers] for c in ("apple_pie", "waffles")}
        (base / "meta").mkdir(parents=True, exist_ok=True)
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for name in (name for names in listed.values() for name in names):
            picture(base / "images" / f"{name}.jpg")


def eurosat(root: Path) -> None:
    """Class folders."""
    class_folders(root / "eurosat" / "2750", 10)


def gtsrb(root: Path) -> None:
    """Numbered folders of tracks of frames, and a table for the test."""
    base = root / "gtsrb"
    for label in range(2):
        for track in range(5):
            for frame in range(3):
                name = f"{label:05d}/{track:05d}_{frame:05d}.ppm"
                picture(base / "GTSRB" / "Training" / name)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(4):
        lines.append(f"{number:05d}.ppm;12;10;1;1;9;9;{number % 2}")
        picture(base / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm")
    text(base / "GT-final_test.csv", lines)


def country211(root: Path) -> None:
    """Class folders of three official splits."""
    for split in ("train", "valid", "test"):
        class_folders(root / "country211" / split, 3)


def idx(values: "np.typing.NDArray[np.uint8]") -> bytes:
    """Return an array as an IDX file."""
    return (
        struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    )


def idx_files(folder: Path, *, packed: bool) -> None:
    """Write the four files of MNIST and Fashion-MNIST, ten pictures of each class in training."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 100), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = gzip.compress(idx(values)) if packed else idx(values)
            suffix = ".gz" if packed else ""
            (folder / f"{split}-{name}-ubyte{suffix}").write_bytes(content)


def mnist(root: Path) -> None:
    """IDX files."""
    idx_files(root / "MNIST" / "raw", packed=False)


def voc2007(root: Path) -> None:
    """XML annotations; `train` and `val` of one archive, `test` of another, in one folder."""
    base = root / "VOCdevkit" / "VOC2007"
    shown = {
        "train": {"000005": ["chair", "chair difficult"], "000007": ["car"]},
        "val": {"000009": ["horse", "person difficult"]},
        "test": {"000001": ["dog", "person"], "000002": ["train"]},
    }
    for split, pictures in shown.items():
        text(base / "ImageSets" / "Main" / f"{split}.txt", list(pictures))
        for name, objects in pictures.items():
            picture(base / "JPEGImages" / f"{name}.jpg")
            found = "".join(
                f"<object><name>{o.split()[0]}</name>"
                f"<difficult>{int('difficult' in o)}</difficult></object>"
                for o in objects
            )
            text(base / "Annotations" / f"{name}.xml", [f"<annotation>{found}</annotation>"])


def resisc45(root: Path) -> None:
    """Class folders."""
    class_folders(root / "NWPU-RESISC45", 10, "{name}_{number:03d}.jpg")


def kitti(root: Path) -> None:
    """Pictures with boxes in metres; each fifth picture is of another one of 20 drives."""
    raw = root / "Kitti" / "raw"
    distances = (5.0, 15.0, 40.0, None)
    numbers = list(range(1, 101))  # Of the lines of the mapping, as pictures use them.
    np.random.default_rng(0).shuffle(numbers)
    for image in range(100):
        picture(raw / "training" / "image_2" / f"{image:06d}.png", size=(8, 4))
        distance = distances[image % 4]
        boxes = [
            "Pedestrian 0 0 0 0 0 9 9 1 1 1 0 1 1.0 0",
            "DontCare -1 -1 -10 0 0 9 9 " + "-1 " * 7,
        ]
        if distance is not None:
            boxes += [f"Car 0 0 0 0 0 9 9 1 1 1 0 1 {d:.2f} 0" for d in (distance, distance + 50)]
        text(raw / "training" / "label_2" / f"{image:06d}.txt", [box.strip() for box in boxes])
    day = "2011_09_26"
    lines = [f"{day} {day}_drive_{n // 5:04d}_sync {n % 5:010d}" for n in range(100)]
    text(raw / "mapping" / "train_mapping.txt", lines)
    text(raw / "mapping" / "train_rand.txt", [",".join(map(str, numbers))])


def ade20k(root: Path) -> None:
    """Pictures with masks, and the table of the classes."""
    base = root / "ADEChallengeData2016"
    text(
        base / "objectInfo150.txt",
        [
            "Idx\tRatio\tTrain\tVal\tStuff\tName",
            "1\t0.15\t11664\t1172\t1\twall",
            "2\t0.10\t6046\t612\t1\tbuilding, edifice",
        ],
    )
    for split, prefix, count in (("training", "train", 40), ("validation", "val", 3)):
        for number in range(1, count + 1):
            name = f"ADE_{prefix}_{number:08d}"
            picture(base / "images" / split / f"{name}.jpg", number)
            mask = np.random.default_rng(number).integers(0, 3, (10, 12), np.uint8)
            path = base / "annotations" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


BUILDERS = {
    "torchvision:imagenet": imagenet,
    "torchvision:fgvcaircraft": aircraft,
    "torchvision:stanfordcars": cars,
    "torchvision:dtd": dtd,
    "torchvision:flowers102": flowers,
    "torchvision:oxfordiiitpet": pets,
    "torchvision:sun397": sun397,
    "torchvision:caltech101": caltech,
    "torchvision:food101": food,
    "torchvision:eurosat": eurosat,
    "torchvision:gtsrb": gtsrb,
    "torchvision:country211": country211,
    "torchvision:mnist": mnist,
    "torchvision:voc2007": voc2007,
    "resisc45": resisc45,
    "torchvision:kitti": kitti,
    "ade20k": ade20k,
}
"""Reference of a data set -> what writes a tiny copy below a folder."""
