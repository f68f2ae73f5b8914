"""Public data sets, each on a tiny copy in its own layout."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import public_sets
from tests.support.public_sets import BUILDERS
from trainer.evaluate import paper
from trainer.evaluate.datasets import (
    PAPER_SOURCES,
    SOURCES,
    AbsentSetError,
    LabelledSet,
    expand,
    installed,
    load_dataset,
)
from trainer.evaluate.datasets.base import Part, set_aside
from trainer.evaluate.datasets.kitti import distance_class
from transforms.core.errors import ConfigError


@pytest.fixture(autouse=True)
def flowers_of_any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Flowers102

    files = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def sizes(dataset: LabelledSet) -> list[int]:
    return [len(split) for split in dataset.splits.values()]


def names(dataset: LabelledSet) -> dict[str, set[str]]:
    return {k: {split.name(i) for i in range(len(split))} for k, split in dataset.splits.items()}


SIZES = {
    "torchvision:imagenet": [198, 2, 2],
    "torchvision:fgvcaircraft": [4, 4, 4],
    "torchvision:stanfordcars": [8, 2, 4],
    "torchvision:dtd": [4, 4, 4],
    "torchvision:flowers102": [2, 2, 2],
    "torchvision:oxfordiiitpet": [16, 4, 6],
    "torchvision:sun397": [8, 2, 4],
    "torchvision:caltech101": [48, 12, 15],
    "torchvision:food101": [16, 4, 8],
    "torchvision:eurosat": [18, 6, 6],
    "torchvision:gtsrb": [24, 6, 4],
    "torchvision:country211": [9, 9, 9],
    "torchvision:mnist": [80, 20, 20],
    "torchvision:voc2007": [2, 1, 2],
    "resisc45": [18, 6, 6],
    "torchvision:kitti": [80, 10, 10],
    "ade20k": [38, 2, 3],
}


def test_there_is_a_tiny_copy_of_every_set_of_the_paper() -> None:
    assert set(BUILDERS) == {source.key for source in PAPER_SOURCES} == set(SIZES)
    assert expand(["drawings", "paper"])[1:] == [source.key for source in PAPER_SOURCES]
    metrics = {source.name: source.metric for source in PAPER_SOURCES}
    assert {name: metrics[name] for name in paper.METRICS} == paper.METRICS


@pytest.mark.parametrize("reference", BUILDERS)
def test_a_set_in_its_own_layout(
    reference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = SOURCES[reference]
    with pytest.raises(AbsentSetError, match="not found; get it from"):
        load_dataset(reference, tmp_path)
    assert not list(tmp_path.iterdir()), "looking for a set writes nothing"
    BUILDERS[reference](tmp_path)
    dataset = load_dataset(reference, tmp_path)
    assert (dataset.name, dataset.metric, dataset.kind) == (source.name, source.metric, source.kind)
    assert f"a complete copy has {source.num_classes} and {source.num_pictures}" in caplog.text
    assert sizes(dataset) == SIZES[reference]

    found = names(dataset)
    if reference != "torchvision:mnist":
        assert len(set().union(*found.values())) == sum(sizes(dataset)), "splits are disjoint"
    for split in dataset.splits.values():
        assert split.labels.shape[0] == len(split)
        for picture in split.pictures:
            if isinstance(picture, Path):
                assert picture.is_relative_to(tmp_path)
                assert Image.open(picture).size[0] > 0
            else:
                assert isinstance(picture, np.ndarray)
                assert picture.shape == (28, 28)
        if dataset.kind == "classification":
            assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.classes)
    again = load_dataset(reference, tmp_path)
    assert (names(again), again.identity) == (found, dataset.identity)


def test_labels_are_those_of_the_files(tmp_path: Path) -> None:
    for reference in ("torchvision:flowers102", "torchvision:stanfordcars", "torchvision:sun397"):
        BUILDERS[reference](tmp_path)
    flowers = load_dataset("torchvision:flowers102", tmp_path)
    assert flowers.test.labels.tolist() == [101, 101]
    assert flowers.val.labels.tolist() == [0, 1]
    cars = load_dataset("torchvision:stanfordcars", tmp_path)
    assert cars.test.labels.tolist() == [0, 1, 0, 1]
    assert cars.classes == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    sun = load_dataset("torchvision:sun397", tmp_path)
    assert sun.classes == ("abbey", "bow_window/indoor")
    assert all(("abbey" in sun.test.name(i)) == (sun.test.labels[i] == 0) for i in range(4))


def test_voc_counts_difficult_objects_neither_way(tmp_path: Path) -> None:
    public_sets.voc2007(tmp_path)
    dataset = load_dataset("torchvision:voc2007", tmp_path)
    chair, person = dataset.classes.index("chair"), dataset.classes.index("person")
    assert dataset.train.labels.shape == (2, 20)
    assert dataset.train.labels[0, chair] == 1, "one chair is easy"
    assert (dataset.val.labels[0, person], dataset.test.labels[0, person]) == (0, 1)
    assert (dataset.test.labels[1] == 1).sum() == 1


def test_kitti_is_divided_by_drives_and_labelled_by_distance(tmp_path: Path) -> None:
    public_sets.kitti(tmp_path)
    dataset = load_dataset("torchvision:kitti", tmp_path)
    mapping = tmp_path / "Kitti" / "raw" / "mapping"
    lines = (mapping / "train_rand.txt").read_text().split(",")
    drives = {
        split: {(int(lines[int(Path(name).stem)]) - 1) // 5 for name in found}
        for split, found in names(dataset).items()
    }
    assert [len(found) for found in drives.values()] == [16, 2, 2]
    for split in dataset.splits.values():
        for index, label in enumerate(split.labels):
            assert label == int(Path(split.name(index)).stem) % 4
    assert distance_class("Van 0 0 0 0 0 9 9 1 1 1 0 1 8.00 0") == 0
    assert distance_class("") == 3


def test_tracks_of_gtsrb_stay_whole(tmp_path: Path) -> None:
    public_sets.gtsrb(tmp_path)
    tracks = {
        split: {name.rpartition("_")[0] for name in found}
        for split, found in names(load_dataset("torchvision:gtsrb", tmp_path)).items()
    }
    assert not tracks["train"] & tracks["val"]
    assert len(tracks["val"]) == 2, "one of five tracks of each class"


def test_caltech_is_drawn_without_replacement(tmp_path: Path) -> None:
    public_sets.caltech(tmp_path)
    dataset = load_dataset("torchvision:caltech101", tmp_path)
    assert dataset.classes == ("accordion", "wrench")
    fitted = np.bincount(np.concatenate([dataset.train.labels, dataset.val.labels]))
    assert fitted.tolist() == [30, 30]
    assert np.bincount(dataset.test.labels).tolist() == [10, 5]


def test_ade20k_has_a_mask_for_every_picture(tmp_path: Path) -> None:
    public_sets.ade20k(tmp_path)
    dataset = load_dataset("ade20k", tmp_path)
    assert dataset.classes == ("wall", "building")
    for split in dataset.splits.values():
        for picture, mask in zip(split.pictures, split.masks, strict=True):
            assert isinstance(picture, Path)
            assert picture.stem == mask.stem
            assert np.asarray(Image.open(mask)).max() <= 2
    next((tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"there is no mask .*unpack it again from http"):
        load_dataset("ade20k", tmp_path)


def test_common_split_files_of_resisc45_are_used(tmp_path: Path) -> None:
    public_sets.resisc45(tmp_path)
    folder = tmp_path / "NWPU-RESISC45"
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        names = [f"{name}_{number:03d}.jpg" for name in public_sets.NAMES]
        public_sets.text(folder / f"resisc45-{split}.txt", names)
    dataset = load_dataset("resisc45", tmp_path)
    assert sizes(dataset) == [3, 3, 3]
    assert all("_003" in dataset.test.name(i) for i in range(3))


def test_sets_in_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "FASHION_FOLDER", tmp_path / "fashion")
    with pytest.raises(AbsentSetError, match="apt install dataset-fashion-mnist"):
        load_dataset("fashion-mnist-70k")
    public_sets.idx_files(tmp_path / "fashion", packed=True)
    fashion = load_dataset("fashion-mnist-70k")
    assert sizes(fashion) == [80, 20, 20]
    assert fashion.classes[9] == "ankle boot"

    digits = load_dataset("digits")
    assert sum(sizes(digits)) == 1797
    assert sorted({int(label) for label in digits.val.labels}) == list(range(10))
    brightest = max(int(np.asarray(picture).max()) for picture in digits.train.pictures)
    assert brightest == 255


def test_a_class_of_one_picture_stays_in_training() -> None:
    labels = np.array([0] * 10 + [1])
    part = Part((b"",) * 11, labels, tuple(f"{n}.jpg" for n in range(11)))
    rest, aside = set_aside(part)
    assert np.bincount(rest.labels).tolist() == [8, 1]
    assert aside.labels.tolist() == [0, 0]


def test_pictures_in_memory_count_by_their_values(tmp_path: Path) -> None:
    public_sets.mnist(tmp_path)
    before = load_dataset("torchvision:mnist", tmp_path)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = io.BytesIO(file.read_bytes()).getvalue()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    assert load_dataset("torchvision:mnist", tmp_path).identity != before.identity
