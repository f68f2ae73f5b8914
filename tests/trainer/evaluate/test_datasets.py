"""Labelled data sets: the built-in ones and folders of pictures."""

import hashlib
import io
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.support.evaluation import COLOURS, save_pictures
from trainer.evaluate import paper
from trainer.evaluate.datasets import load_dataset
from trainer.evaluate.datasets.builtin import (
    BUILT_IN,
    DATA_FOLDER,
    PICTURE_SCHEMA,
    read_pictures,
)
from transforms.core.errors import ConfigError


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sets_are_whole(name: str) -> None:
    assert pq.read_schema(DATA_FOLDER / f"{name}.parquet").equals(PICTURE_SCHEMA)
    rows = read_pictures(name)
    dataset = load_dataset(name)
    assert len(dataset.classes) == 10
    assert sum(map(len, dataset.splits.values())) == len(rows)
    for split in dataset.splits.values():
        assert set(split.labels.tolist()) == set(range(10)), "every class is in every split"
    for row in rows:
        image = Image.open(io.BytesIO(row.image))
        image.load()
        assert image.format == "PNG"
        assert image.size == ((64, 64) if name == "drawings" else (28, 28))


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_picture_is_in_two_splits(name: str) -> None:
    splits: dict[str, set[str]] = {}
    for row in read_pictures(name):
        image = Image.open(io.BytesIO(row.image)).convert("RGB")
        splits.setdefault(hashlib.sha256(image.tobytes()).hexdigest(), set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())


def test_no_thing_is_in_two_splits() -> None:
    splits: dict[str, set[str]] = {}
    vendors: dict[str, set[str]] = {}
    for row in read_pictures("drawings"):
        splits.setdefault(row.name, set()).add(row.split)
        vendors.setdefault(row.name, set()).add(row.vendor)
    assert all(len(found) == 1 for found in splits.values())
    assert sum(len(found) == 2 for found in vendors.values()) > 190, "two vendors drew most things"


def test_drawings_are_the_listed_things() -> None:
    listed = yaml.safe_load((DATA_FOLDER / "things.yaml").read_text())
    assert {(row.label, row.name) for row in read_pictures("drawings")} == {
        (category, thing) for category, things in listed.items() for thing in things
    }


def test_licences_are_stated() -> None:
    readme = (DATA_FOLDER / "README.md").read_text()
    licences = {row.vendor: row.licence for name in BUILT_IN for row in read_pictures(name)}
    assert licences == {
        "OpenMoji": "CC-BY-SA-4.0",
        "Streamline": "CC-BY-4.0",
        "Zalando": "MIT",
    }
    for words in ("OpenMoji", "Streamline", "Zalando", "CC BY-SA 4.0", "CC BY 4.0", "MIT"):
        assert words in readme
    assert "Zalando" in (DATA_FOLDER / "fashion-mnist.licence.txt").read_text()


def test_readme_counts_are_right() -> None:
    readme = (DATA_FOLDER / "README.md").read_text()
    for name in BUILT_IN:
        counts = " / ".join(str(len(split)) for split in load_dataset(name).splits.values())
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}.parquet`")]
        assert f"| {counts} |" in line
        assert line.endswith(f"| {BUILT_IN[name]} |")


def test_test_sets_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA_FOLDER.iterdir()) < 3_000_000


def test_folder_of_class_folders(tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "colours", {"train": 5, "val": 2, "test": 3})
    (root / "train" / "red" / "notes.txt").write_text("no picture")
    dataset = load_dataset(f"folder:{root}")
    assert dataset.name == "colours"
    assert dataset.classes == tuple(sorted(COLOURS))
    assert [len(split) for split in dataset.splits.values()] == [15, 6, 9]
    for split in dataset.splits.values():
        for picture, label in zip(split.pictures, split.labels, strict=True):
            assert isinstance(picture, Path)
            assert picture.parent.name == dataset.classes[label]


def test_a_fifth_becomes_validation_whatever_the_order_on_disk(tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "one" / "colours", {"train": 10, "test": 1})
    dataset = load_dataset(f"folder:{root}")
    assert np.bincount(dataset.val.labels).tolist() == [2, 2, 2]
    assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8]
    assert not set(dataset.train.pictures) & set(dataset.val.pictures)

    copy = tmp_path / "two" / "colours"
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    random.Random(0).shuffle(files)
    for path in files:
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    again = load_dataset(f"folder:{copy}")
    names = [Path(str(p)).relative_to(root) for p in dataset.val.pictures]
    assert names == [Path(str(p)).relative_to(copy) for p in again.val.pictures]
    assert again.identity == dataset.identity


def test_identity_changes_with_the_pictures(tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "colours", {"train": 5, "test": 1})
    found = {load_dataset(f"folder:{root}").identity}
    picture = (root / "train" / "red" / "000.png").rename(root / "train" / "red" / "new.png")
    found.add(load_dataset(f"folder:{root}").identity)
    picture.write_bytes((root / "train" / "blue" / "000.png").read_bytes() + b"\0")
    found.add(load_dataset(f"folder:{root}").identity)
    assert len(found) == 3


def test_metric_is_the_papers_where_the_set_is(tmp_path: Path) -> None:
    for name, metric in (("cars", "accuracy"), ("own", "mean per-class accuracy")):
        root = save_pictures(tmp_path / name, {"train": 5, "test": 1})
        assert load_dataset(f"folder:{root}").metric == metric
    assert paper.headline("cars")["SynCLR B/16"] == 93.8
    assert paper.headline("imagenet-1k")["SynCLR L/14"] == 83.0
    assert paper.headline("food-101")["CLIP B/16"] == 92.8
    assert paper.headline("own") == {}


@pytest.mark.parametrize(
    ("encoder", "average"),
    [
        ("StableRep B/16", 83.4),
        ("CLIP B/16", 85.7),
        ("CLIP L/14", 88.9),
        ("OpenCLIP B/16 (400M)", 86.3),
        ("OpenCLIP L/14 (400M)", 88.4),
        ("OpenCLIP L/14 (2B)", 89.8),
        ("DINO v2 B/14", 89.0),
        ("DINO v2 L/14", 90.1),
        ("SynCLR B/16", 89.0),
        ("SynCLR L/14", 90.4),
    ],
)
def test_reported_scores_have_the_average_of_the_papers_table_6(
    encoder: str, average: float
) -> None:
    fine_grained = [name for name in paper.METRICS if name not in ("imagenet-1k", "ade20k")]
    scores = [paper.headline(name)[encoder] for name in fine_grained]
    assert np.mean(scores) == pytest.approx(average, abs=0.1)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train": 5}, "expected pictures in .*test/CLASS/"),
        ({"test": 5}, "expected pictures in .*train/CLASS/"),
        ({"train": 1, "test": 1}, "at least 3 pictures"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    save_pictures(tmp_path / "colours", counts)
    with pytest.raises(ConfigError, match=words):
        load_dataset(f"folder:{tmp_path / 'colours'}")


def test_unknown_class_and_unknown_name(tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "colours", {"train": 5, "test": 1})
    (root / "test" / "red").rename(root / "test" / "rouge")
    with pytest.raises(ConfigError, match="class 'rouge' of test/ is not in train/"):
        load_dataset(f"folder:{root}")
    with pytest.raises(ConfigError, match="unknown data set 'pictures'"):
        load_dataset("pictures")
