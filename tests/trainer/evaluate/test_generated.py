"""Generated images as a data set, and which things are which concepts."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.image_shards import concept_of, picture, write_images
from trainer.evaluate.datasets import load_dataset
from trainer.evaluate.generated import identity_of, labels_of, load_generated, thing_name


def test_images_have_the_concepts_of_their_captions(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", broken_json=(4,))
    found = load_generated(folder.url, 100, 100)
    assert found.concepts == ("cat", "dog", "tree")
    samples = [n for n in range(12) if n != 4 for _ in range(2)]
    assert found.captions.tolist() == samples
    assert [found.concepts[label] for label in found.split.labels] == [*map(concept_of, samples)]
    assert found.split.pictures[3] == picture(1001)
    assert list(found.split.pictures[2:5]) == [picture(n) for n in (1000, 1001, 2000)]


def test_the_limits_take_the_first_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    whole, few, fewer = (
        load_generated(folder.url, *limits) for limits in ((100, 100), (100, 3), (4, 100))
    )
    assert np.bincount(few.split.labels).tolist() == [3, 3, 3]
    assert few.captions.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    assert fewer.captions.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({s.identity for s in (whole, few, fewer)}) == 3
    other = write_images(tmp_path / "other", paint=lambda sample, number: picture(sample))
    assert identity_of(other.url) != identity_of(folder.url)


def test_images_are_read_once_until_they_change(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    first = load_generated(folder.url, 4, 100)
    assert load_generated(folder.url, 4, 100) is first
    shutil.rmtree(tmp_path / "images")
    write_images(tmp_path / "images", paint=lambda sample, number: picture(sample))
    changed = load_generated(folder.url, 4, 100)
    assert changed.identity != first.identity
    assert changed.split.pictures[1] == picture(0) != picture(1)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Automobile", "car"),
        ("t-shirt", "shirt"),
        ("fire_engine", "fire engine"),
        ("man's  shoe", "mans shoe"),
        ("red-apple", "red apple"),
    ],
)
def test_names_are_compared_in_one_spelling(name: str, plain: str) -> None:
    assert thing_name(name) == plain


def test_a_kind_is_its_general_name_unless_it_is_a_concept() -> None:
    things = ("top-hat", "automobile", "red-apple", "anvil")
    assert labels_of(things, ("car", "hat")).tolist() == [1, 0, -1, -1]
    assert labels_of(things, ("hat", "top hat")).tolist() == [1, -1, -1, -1]


def test_drawings_have_names_of_things_and_all_aliases_are_used_once() -> None:
    drawings, fashion = load_dataset("drawings"), load_dataset("fashion-mnist")
    for split in drawings.splits.values():
        assert len(split.things) == len(split)
    assert not fashion.test.things, "their names are numbers"
    things = {thing_name(thing) for s in drawings.splits.values() for thing in s.things}
    assert {"car", "shirt", "red apple", "top hat"} <= things
