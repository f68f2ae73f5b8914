"""Remote shards are downloaded before workers need them, within the bound of the cache."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.support.batches import cropped, same
from tests.support.image_shards import upload, write_images
from trainer.data.loader import LoaderConfig, batches
from trainer.data.prefetch import Prefetcher
from trainer.data.sampler import RankSampler, ShuffleSampler
from trainer.data.shard_reader import ShardReader
from transforms.core import storage
from transforms.core.errors import MissingFileError

SIZES = (3,) * 8
ALONE = LoaderConfig(num_workers=0)
STEPS = {"first_step": 0, "last_step": 12, "captions_per_batch": 2}


@pytest.fixture
def made(tmp_path: Path) -> str:
    return write_images(tmp_path / "made", SIZES).url


def reader_of(url: str, cache: Path, cache_bytes: int = 1 << 30) -> ShardReader:
    return ShardReader(f"{url}/index.parquet", cache_folder=str(cache), cache_bytes=cache_bytes)


def sampler_of(reader: ShardReader, rank: int = 0, ranks: int = 1, window: int = 2) -> RankSampler:
    return RankSampler(ShuffleSampler(reader.shard_sizes, 0, window), 2, rank, ranks)


def copies(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.tar")}


def checksums(reader: ShardReader, sampler: RankSampler, steps: Iterable[int]) -> set[str]:
    shards = {shard for step in steps for shard in reader.shards_of(sampler(step).samples)}
    return {reader.shards[shard].sha256 for shard in shards}


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_shards_of_the_ranks_own_coming_steps_are_fetched(
    made: str, tmp_path: Path, rank: int
) -> None:
    upload(made, f"memory://prefetch-{rank}")
    reader = reader_of(f"memory://prefetch-{rank}", tmp_path / "cache")
    sampler = sampler_of(reader, rank, ranks=2)
    # Workers read step 0; a window lasts three steps, so steps 1 to 3 are prefetched.
    with Prefetcher(reader, sampler, range(12), num_workers=0) as ahead:
        ahead.advance_to(0)
        expected = checksums(reader, sampler, range(1, 4)) - checksums(reader, sampler, [0])
        assert eventually(lambda: copies(tmp_path / "cache") == expected)
        ahead.advance_to(1)
        expected |= checksums(reader, sampler, [4]) - checksums(reader, sampler, [0])
        assert eventually(lambda: copies(tmp_path / "cache") == expected)


def test_what_workers_have_asked_for_already_is_left_to_them(made: str, tmp_path: Path) -> None:
    upload(made, "memory://prefetch-workers")
    reader = reader_of("memory://prefetch-workers", tmp_path / "cache")
    sampler = sampler_of(reader)
    # Two workers are at steps 3 and 4 when the training is at 3, then two more batches ahead.
    with Prefetcher(reader, sampler, range(3, 12), num_workers=2, batches_per_worker=2) as ahead:
        ahead.advance_to(3)
        expected = checksums(reader, sampler, range(5, 10)) - checksums(reader, sampler, [3, 4])
        assert eventually(lambda: copies(tmp_path / "cache") == expected)


def test_batches_come_from_copies_that_were_fetched_ahead(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is emptied after the first batch."""
    upload(made, "memory://emptied")
    cache = tmp_path / "cache"
    samples = cropped("memory://emptied", cache=cache, window=8)
    local = batches(cropped(made, window=8), ALONE, **STEPS)
    stream = batches(samples, ALONE, **STEPS)
    assert same(next(stream), next(local))
    assert eventually(lambda: len(copies(cache)) == len(SIZES))
    for path in storage.list_files("memory://emptied/shards"):
        storage.delete(f"memory://emptied/shards/{path}")
    assert all(same(a, b) for a, b in zip(stream, local, strict=True))


def test_each_batch_says_how_far_the_training_is(
    made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    monkeypatch.setattr(Prefetcher, "advance_to", lambda _, step: reached.append(step))
    for step, _ in enumerate(batches(cropped(made), ALONE, **STEPS)):
        assert reached == list(range(step + 2))


def test_a_small_cache_is_full_all_the_time_and_never_overfull(made: str, tmp_path: Path) -> None:
    upload(made, "memory://full-cache")
    size = 3 * int(reader_of("memory://full-cache", tmp_path / "cache").shard_bytes[0])
    reader = reader_of("memory://full-cache", tmp_path / "cache", size)
    sampler = sampler_of(reader)

    def needed(steps: range) -> int:
        shards = set().union(*(reader.shards_of(sampler(step).samples) for step in steps))
        return int(reader.shard_bytes[list(shards)].sum())

    with Prefetcher(reader, sampler, range(12), num_workers=1, batches_per_worker=6) as ahead:
        for step in range(12):
            ahead.advance_to(step)
            assert needed(range(step, ahead._next)) <= size
            assert ahead._next in (12, step + 9) or needed(range(step, ahead._next + 1)) > size


def test_spawned_workers_read_a_bucket_through_the_cache(
    made: str, gcs_bucket: str, tmp_path: Path
) -> None:
    upload(made, f"{gcs_bucket}/images")
    local = batches(cropped(made), ALONE, **STEPS)
    samples = cropped(f"{gcs_bucket}/images", cache=tmp_path / "cache")
    remote = batches(samples, LoaderConfig(num_workers=2), **STEPS)
    assert all(same(a, b) for a, b in zip(remote, local, strict=True))
    assert len(copies(tmp_path / "cache")) == len(SIZES)


@pytest.mark.parametrize("ranks_here", [1, 1000])
def test_too_small_a_cache_is_filled_as_far_as_it_goes(
    made: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, ranks_here: int
) -> None:
    """The bound is for all ranks of the machine, each of which needs about as much."""
    upload(made, f"memory://small-cache-{ranks_here}")
    plenty = reader_of(f"memory://small-cache-{ranks_here}", tmp_path / "cache")
    sampler = sampler_of(plenty)
    size = int(plenty.shard_bytes[0])
    assert set(plenty.shard_bytes) == {size}
    fits, wanted = (
        len(checksums(plenty, sampler, range(last))) * size * ranks_here for last in (3, 4)
    )
    reader = reader_of(f"memory://small-cache-{ranks_here}", tmp_path / "cache", fits)
    expected = checksums(plenty, sampler, [1, 2]) - checksums(plenty, sampler, [0])
    with Prefetcher(reader, sampler, range(12), num_workers=0, ranks_here=ranks_here) as ahead:
        ahead.advance_to(0)
        assert eventually(lambda: copies(tmp_path / "cache") == expected)
        ahead.advance_to(0)
    assert copies(tmp_path / "cache") == expected
    (message,) = [record.getMessage() for record in caplog.records]
    named = float(message.rpartition("set loader.cache_gib to ")[2].split()[0])
    assert wanted / (1 << 30) <= named <= 1.01 * wanted / (1 << 30) + 0.001


def test_a_shard_that_cannot_be_fetched_is_left_to_whoever_needs_it(
    made: str, tmp_path: Path
) -> None:
    upload(made, "memory://vanished")
    for path in storage.list_files("memory://vanished/shards"):
        storage.delete(f"memory://vanished/shards/{path}")
    reader = reader_of("memory://vanished", tmp_path / "cache")
    with Prefetcher(reader, sampler_of(reader), range(12), num_workers=0) as ahead:
        ahead.advance_to(0)
    assert copies(tmp_path / "cache") == set()
    with pytest.raises(MissingFileError, match="is gone"):
        reader[0]


def test_local_shards_are_read_in_place(made: str, tmp_path: Path) -> None:
    reader = reader_of(made, tmp_path / "cache")
    with Prefetcher(reader, sampler_of(reader), range(12), num_workers=0) as ahead:
        ahead.advance_to(0)
    assert not (tmp_path / "cache").exists()
