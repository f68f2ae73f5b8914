import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from tests.support.image_sets import image_set
from transforms.core.seeding import caption_id
from transforms.core.tar_shards import ImageTars, image_set_sample, list_members, read_image_sets


def test_plain_webdataset_reads_a_shard(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    sets = [image_set(number) for number in range(5)]
    ids = ImageTars().write(path, sets)
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ids == [s.caption.caption_id for s in sets]
    for sample, made in zip(samples, sets, strict=True):
        assert sample["txt"] == made.caption.text
        assert sample["json"]["seeds"] == list(made.seeds)
        assert {"0.jpg", "1.jpg", "2.jpg", "3.jpg"} <= set(sample)
    raw = next(iter(webdataset.WebDataset(path, shardshuffle=False)))
    assert raw["2.jpg"] == sets[0].images[2]
    assert json.loads(raw["json"])["concept"] == sets[0].caption.concept


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        path = tmp_path / name / "x.tar"
        path.parent.mkdir()
        ImageTars().write(str(path), [image_set(number) for number in range(3)])
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_image_sets_are_read_as_they_were_written(tmp_path: Path) -> None:
    sets = [image_set(number) for number in range(3)]
    path = tmp_path / "a.tar"
    ImageTars().write(str(path), sets)
    assert read_image_sets(path.read_bytes()) == sets


def test_equal_captions_are_two_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    one = image_set(0)
    text = one.caption.text
    second = replace(one.caption, occurrence=1, caption_id=caption_id(text, 1))
    sets = [one, replace(one, caption=second)]
    ids = ImageTars().write(str(path), sets)
    assert read_image_sets(path.read_bytes()) == sets
    contents = ImageTars().check(path.read_bytes(), {}, decode=False)
    assert (contents.ids, contents.faults) == (ids, [])
    ImageTars().write(str(path), [one, replace(one, caption=replace(second, occurrence=2))])
    assert (
        "its text is another caption's"
        in ImageTars().check(path.read_bytes(), {}, decode=False).faults[0]
    )
    described = json.loads(image_set_sample(one)["json"])
    assert "occurrence" not in described, "as before there were occurrences"


def test_ids_in_order_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    ids = ImageTars().write(str(path), [image_set(number) for number in range(4)])
    assert ImageTars().read_ids(str(path)) == ids
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(tarfile.TarError):
        ImageTars().read_ids(str(path))


def test_unknown_image_bytes_are_refused(tmp_path: Path) -> None:
    bad = image_set(0, images=(b"GIF89a",))
    with pytest.raises(ValueError, match="expected JPEG, PNG or WebP"):
        ImageTars().write(str(tmp_path / "a.tar"), [bad])


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["key.0.jpg", "ä/key.txt", "f/" * 60 + "key.txt", "k" * 160])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, format: int, name: str) -> None:
    if format == tarfile.USTAR_FORMAT and len(name) == 160:
        pytest.skip("has no place in this format")
    path = tmp_path / "one.tar"
    with tarfile.open(path, "w", format=format) as archive:
        for member, size in (("a.json", 0), (name, 513), ("b.txt", 512)):
            info = tarfile.TarInfo(member)
            info.mtime = 1.5
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(range(256)) * 3))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with open(path, "rb") as file:
        file.seek(700)
        members = list_members(file.fileno())
    assert members == by_tarfile(path)
    assert [size for _, _, size in members] == [0, 513, 512]


@pytest.mark.parametrize("ours", [True, False])
def test_plain_shards_are_read_without_tarfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    path = tmp_path / "one.tar"
    sets = [image_set(number) for number in range(3)]
    if ours:
        ImageTars().write(str(path), sets)
    else:
        with webdataset.TarWriter(str(path)) as writer:
            for one in sets:
                writer.write(image_set_sample(one))
    expected = by_tarfile(path)
    monkeypatch.delattr(tarfile, "open")
    with open(path, "rb") as file:
        assert list_members(file.fileno()) == expected


@pytest.mark.parametrize("place", [0, 100, 148, 124])
def test_a_damaged_header_is_left_to_tarfile(tmp_path: Path, place: int) -> None:
    path = tmp_path / "one.tar"
    ImageTars().write(str(path), [image_set(number) for number in range(3)])
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open(path, "rb") as file, pytest.raises(tarfile.ReadError):
        list_members(file.fileno())
