"""Remote shards are there before they are read, within the bound of the cache."""

import shutil
from pathlib import Path

import pytest

from tests.trainer.making import write_images
from tests.trainer.test_data import upload
from trainer.data import ShardReader
from trainer.order import SampleOrder
from trainer.prefetch import Prefetcher
from transforms.core import storage

SIZES = (3, 3, 3, 3, 3, 3)


@pytest.fixture
def made(tmp_path: Path) -> str:
    return write_images(tmp_path / "made", SIZES).url


def reader_of(url: str, cache: Path, cache_bytes: int = 1 << 30) -> ShardReader:
    return ShardReader(f"{url}/index.parquet", cache_folder=str(cache), cache_bytes=cache_bytes)


def copies(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.tar")}


def checksums(reader: ShardReader, shards: list[int]) -> set[str]:
    return {reader._checksums[shard] for shard in shards}


def test_the_next_window_is_fetched_when_one_begins(
    made: str, gcs_bucket: str, tmp_path: Path
) -> None:
    upload(made, f"{gcs_bucket}/images")
    reader = reader_of(f"{gcs_bucket}/images", tmp_path / "cache")
    order = SampleOrder(reader.shard_sizes, 0, window=2)
    ahead = Prefetcher(reader, order)
    expected: set[str] = set()
    for position in (0, 5, 6):
        ahead.reach(position)
        ahead._downloads.submit(int).result()
        coming, _ = order.window(order.window(position)[1])
        expected |= checksums(reader, coming)
    ahead.close()
    assert copies(tmp_path / "cache") == expected
    assert len(expected) == 4, "two windows of two: position 5 asks for nothing new"


def test_too_small_a_cache_is_left_to_what_is_read(
    made: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload(made, "memory://small-cache")
    size = sum(Path(made).rglob("*.tar").__next__().stat().st_size for _ in range(3))
    reader = reader_of("memory://small-cache", tmp_path / "cache", size)
    ahead = Prefetcher(reader, SampleOrder(reader.shard_sizes, 0, window=2))
    ahead.reach(0)
    ahead.close()
    assert copies(tmp_path / "cache") == set()
    assert "raise loader.cache_gib" in caplog.text


def test_a_shard_that_cannot_be_fetched_is_left_to_whoever_needs_it(
    made: str, tmp_path: Path
) -> None:
    upload(made, "memory://vanished")
    for path in storage.list_files("memory://vanished/shards"):
        storage.delete(f"memory://vanished/shards/{path}")
    reader = reader_of("memory://vanished", tmp_path / "cache")
    ahead = Prefetcher(reader, SampleOrder(reader.shard_sizes, 0, window=2))
    ahead.reach(0)
    ahead.close()
    assert copies(tmp_path / "cache") == set()
    with pytest.raises(storage.MissingFileError, match="is gone"):
        reader[0]


def test_local_shards_are_read_in_place(made: str, tmp_path: Path) -> None:
    reader = reader_of(made, tmp_path / "cache")
    ahead = Prefetcher(reader, SampleOrder(reader.shard_sizes, 0, window=2))
    ahead.reach(0)
    ahead.close()
    assert not (tmp_path / "cache").exists()
    shutil.rmtree(made)
