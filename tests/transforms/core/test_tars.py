import hashlib
import json
from pathlib import Path

import pytest
import webdataset

from tests.transforms.core.samples import image_set
from transforms.core.tars import read_tar_ids, write_tar


def test_plain_webdataset_reads_a_shard(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    sets = [image_set(number) for number in range(5)]
    ids = write_tar(path, sets)
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
        write_tar(str(path), [image_set(number) for number in range(3)])
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_ids_in_order_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    ids = write_tar(str(path), [image_set(number) for number in range(4)])
    assert read_tar_ids(str(path)) == ids
    path.write_bytes(b"no tar at all" * 100)
    import tarfile

    with pytest.raises(tarfile.TarError):
        read_tar_ids(str(path))


def test_unknown_image_bytes_are_refused(tmp_path: Path) -> None:
    bad = image_set(0, images=(b"GIF89a",))
    with pytest.raises(ValueError, match="expected JPEG, PNG or WebP"):
        write_tar(str(tmp_path / "a.tar"), [bad])
