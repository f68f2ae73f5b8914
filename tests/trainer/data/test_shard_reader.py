"""Random access to image shards: order, images, remote copies, damage."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from tests.support.image_shards import (
    concept_of,
    picture,
    text_of,
    upload,
    write_image_captions,
    write_images,
)
from trainer.data import shard_reader as data
from trainer.data.shard_reader import BrokenSampleError, SampleMeta, ShardReader
from trainer.data.tar_index import read_tar_index
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, StorageError
from transforms.core.seeding import caption_id
from transforms.core.shards import file_sha256


def test_every_sample_in_file_order_and_in_any_order(tmp_path: Path) -> None:
    reader = ShardReader(write_images(tmp_path).index_url, images_per_caption=2)
    assert len(reader) == 12
    for number in [*range(12), 7, 0, 11, 3]:
        sample = reader[number]
        assert sample.text == text_of(number)
        assert sample.caption_id == caption_id(text_of(number))
        assert sample.images == [picture(1000 * number), picture(1000 * number + 1)]
        assert sample.meta == SampleMeta(ordinal=number, concept=concept_of(number))
        assert reader.shards_of(np.array([number])) == {(*[0] * 3, *[1] * 5, *[2] * 4)[number]}
    assert [sample.text for sample in reader] == [text_of(n) for n in range(12)]
    with pytest.raises(IndexError):
        reader[12]
    reader.close()


def test_images_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    reader = ShardReader(write_images(tmp_path, (1,), images_per_caption=11).index_url)
    assert reader[0].images == [picture(n) for n in range(11)]


def test_only_the_chosen_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(write_images(tmp_path, images_per_caption=4).index_url)
    whole = reader[5]  # From now on the headers of its shard are known.
    sizes: list[int] = []
    read = os.pread

    def count(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", count)
    assert reader[5] == whole
    rest = sum(sizes) - sum(map(len, whole.images))
    for chosen in ([], [2], [3, 0]):
        sizes.clear()
        sample = reader.sample(5, [*chosen, 4])
        assert sample.images == [whole.images[number] for number in chosen]
        assert (sample.text, sample.meta, sample.num_images) == (whole.text, whole.meta, 4)
        assert sum(sizes) == rest + sum(map(len, sample.images))


def test_equal_names_in_two_folders_of_a_shard_are_two_samples(tmp_path: Path) -> None:
    """WebDataset shards that were packed from a folder per class have such names."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key in ("cat/1", "dog/1"):
            writer.write({"__key__": key, "0.png": picture(0), "txt": key})
    with (tmp_path / "a.tar").open("rb") as file:
        headers = read_tar_index(file.fileno())
    assert headers.keys == ["cat/1", "dog/1"]
    assert [[name for name, *_ in headers.files(n)] for n in (0, 1)] == [["0.png", "txt"]] * 2


def test_a_reader_can_be_pickled_while_open(tmp_path: Path) -> None:
    reader = ShardReader(write_images(tmp_path).index_url)
    expected = reader[4]
    assert pickle.loads(pickle.dumps(reader))[4] == expected


@pytest.mark.parametrize(("remembered", "scans"), [(3, 3), (1, 12)])
def test_headers_are_read_once_however_few_files_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: int, scans: int
) -> None:
    monkeypatch.setattr(data, "MAX_OPEN_SHARDS", 2)
    scanned: list[int] = []
    scan = ShardReader._scan

    def count(reader: ShardReader, shard: int) -> object:
        scanned.append(shard)
        return scan(reader, shard)

    monkeypatch.setattr(ShardReader, "_scan", count)
    index = write_images(tmp_path, (4, 4, 4)).index_url
    reader = ShardReader(index, remembered_shards=remembered)
    for number in range(4):
        for first in (0, 4, 8):
            assert reader[first + number].text == text_of(first + number)
    assert len(scanned) == scans
    reader.close()


def test_a_file_that_is_still_open_can_be_scanned_again(tmp_path: Path) -> None:
    reader = ShardReader(write_images(tmp_path).index_url, remembered_shards=1)
    assert [reader[number].text for number in (0, 4, 1)] == [text_of(n) for n in (0, 4, 1)]


def test_a_broken_caption_or_json_is_the_samples_own_fault(tmp_path: Path) -> None:
    folder = write_images(tmp_path, broken_text=(1,), broken_json=(2,))
    reader = ShardReader(folder.index_url)
    for number in (1, 2):
        with pytest.raises(BrokenSampleError, match="broken"):
            reader[number]
    assert reader[0].text == text_of(0)


def test_the_json_of_a_shard_of_another_tool(tmp_path: Path) -> None:
    folder = write_images(tmp_path, (1,))
    described = {
        "caption_id": caption_id(text_of(0)),
        "text": "in other words",
        "concept": ["cat", "dog"],
        "source": "elsewhere",
        "template": None,
        "seeds": [1, 2],
        "score": 0.5,
    }
    with webdataset.TarWriter(folder.shard_url(0)) as writer:
        writer.write({"__key__": caption_id(text_of(0)), "txt": text_of(0), "json": described})
    sample = ShardReader(folder.index_url)[0]
    other = {"text": "in other words", "concept": ["cat", "dog"], "score": 0.5}
    assert sample.meta == SampleMeta(source="elsewhere", seeds=[1, 2], other=other)
    assert sample.text == text_of(0)


def test_the_checksum_follows_the_content(tmp_path: Path) -> None:
    same = [ShardReader(write_images(tmp_path / n).index_url).checksum for n in "ab"]
    other = write_images(tmp_path / "c", paint=lambda sample, number: picture(number))
    assert same[0] == same[1] != ShardReader(other.index_url).checksum


def test_a_missing_index_says_that_the_stage_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no stage"):
        ShardReader(str(tmp_path / "index.parquet"))
    (tmp_path / "run.yaml").write_text("config: {}")
    with pytest.raises(MissingFileError, match="images stage is not complete"):
        ShardReader(str(tmp_path / "index.parquet"))


def test_another_stage_is_refused_before_a_shard_is_read(tmp_path: Path) -> None:
    held = (
        r"captions \(key data\.images, or run\) holds shards/000/captions-000000.parquet: expected"
    )
    with pytest.raises(ConfigError, match=held):
        ShardReader(write_image_captions(tmp_path / "captions").index_url)


def test_another_image_count_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    with pytest.raises(ConfigError, match=r"images_per_caption is 4, but .* hold 2 images"):
        ShardReader(folder.index_url, images_per_caption=4)


def test_a_vanished_shard_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    reader = ShardReader(folder.index_url)
    os.unlink(folder.shard_url(1))
    assert reader[0].text == text_of(0)
    with pytest.raises(MissingFileError, match=r"images-000001\.tar is gone"):
        reader[3]


@pytest.mark.parametrize("kept", [700, 2048])
def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, kept: int) -> None:
    folder = write_images(tmp_path)
    os.truncate(folder.shard_url(0), kept)
    reader = ShardReader(folder.index_url)
    with pytest.raises(DamagedFileError, match=r"images-000000\.tar"):
        reader[0]


def test_a_shard_that_is_cut_off_between_two_files_is_named(tmp_path: Path) -> None:
    """Python's tarfile reads it as a shorter one: the last sample has no text and fewer images."""
    folder = write_images(tmp_path)
    content = Path(folder.shard_url(0)).read_bytes()
    last = content.index(f"{caption_id(text_of(2))}.txt".encode())
    os.truncate(folder.shard_url(0), last)
    with pytest.raises(DamagedFileError, match=r"images-000000\.tar is damaged: .*cut off"):
        ShardReader(folder.index_url)[2]


def test_a_folder_in_a_shards_place_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    os.unlink(folder.shard_url(0))
    os.mkdir(folder.shard_url(0))
    with pytest.raises(StorageError, match=r"cannot read .*000000\.tar: Is a directory"):
        ShardReader(folder.index_url)[0]


def test_a_shard_that_is_cut_off_while_it_is_read_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    reader = ShardReader(folder.index_url)
    assert reader[0].text == text_of(0)
    os.truncate(folder.shard_url(0), 2048)
    with pytest.raises(DamagedFileError, match=r"images-000000\.tar is damaged: .*it was cut off"):
        reader[2]


def test_remote_shards_are_read_through_a_bounded_cache(tmp_path: Path, any_storage: str) -> None:
    folder = write_images(tmp_path / "made")
    if storage.is_local(any_storage):
        shutil.copytree(folder.url, any_storage)
    else:
        upload(folder.url, any_storage)
    cache = tmp_path / "cache"
    one_shard = max(Path(folder.shard_url(n)).stat().st_size for n in range(3))
    reader = ShardReader(
        f"{any_storage}/index.parquet", cache_folder=str(cache), cache_bytes=one_shard
    )
    for number in (0, 11, 5, 0, 8):
        assert reader[number].images[1] == picture(1000 * number + 1)
    again = ShardReader(
        f"{any_storage}/index.parquet", cache_folder=str(cache), cache_bytes=one_shard
    )
    assert again[6].text == text_of(6)
    if not storage.is_local(any_storage):
        copies = [path for path in cache.iterdir() if path.suffix == ".tar"]
        assert sum(path.stat().st_size for path in copies) <= one_shard


def test_an_evicted_copy_is_fetched_again(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "made")
    upload(folder.url, "memory://evicted-copy")
    arguments = {"cache_folder": str(tmp_path / "cache"), "cache_bytes": 1}
    first, second = (
        ShardReader("memory://evicted-copy/index.parquet", **arguments)  # type: ignore[arg-type]
        for _ in range(2)
    )
    for number in (0, 4, 9, 2):
        assert first[number].text == text_of(number)
        assert second[11 - number].text == text_of(11 - number)


def test_a_copy_that_is_damaged_on_disk_is_fetched_again(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "made")
    upload(folder.url, "memory://damaged-copy")
    cache = tmp_path / "cache"
    reader = ShardReader("memory://damaged-copy/index.parquet", cache_folder=str(cache))
    assert reader[0].text == text_of(0)
    (copy,) = cache.glob("*.tar")
    os.truncate(copy, 2048)
    again = ShardReader("memory://damaged-copy/index.parquet", cache_folder=str(cache))
    assert again[2].text == text_of(2)
    assert file_sha256(str(copy)) == copy.stem


def test_a_shard_of_another_checksum_is_named_and_not_kept(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "made")
    shutil.copyfile(folder.shard_url(2), folder.shard_url(0))
    upload(folder.url, "memory://other-content")
    cache = tmp_path / "cache"
    reader = ShardReader("memory://other-content/index.parquet", cache_folder=str(cache))
    with pytest.raises(DamagedFileError, match=r"0\.tar is damaged: .*it has another checksum"):
        reader[0]
    assert list(cache.glob("*.tar")) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    upload(write_images(tmp_path / "made").url, "memory://no-cache")
    (tmp_path / "cache").write_bytes(b"a file")
    reader = ShardReader(
        "memory://no-cache/index.parquet", cache_folder=str(tmp_path / "cache" / "shards")
    )
    with pytest.raises(StorageError, match=r"cannot read .*: Not a directory \(.*cache"):
        reader[0]
