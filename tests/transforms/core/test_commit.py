import dataclasses
import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.captions import caption
from tests.support.image_sets import image_set
from transforms.core import references, storage
from transforms.core.commit import ShardBuild, discard_shard, is_whole
from transforms.core.counters import Count, Tally
from transforms.core.errors import DamagedFileError, StorageError, reading
from transforms.core.parquet_shards import CAPTION_SHARDS
from transforms.core.records import FAILURE_SCHEMA, Failure
from transforms.core.shards import (
    CommitRecord,
    StageFolder,
    committed_shards,
    read_commit,
)
from transforms.core.stages import STAGES

EXPECTED = [str(number) for number in range(5)]


def folder(url: str) -> StageFolder:
    return StageFolder(url, STAGES["captions"])


def build(
    url: str, made: Sequence[int], shard: int = 0, expected_ids: Sequence[str] = EXPECTED
) -> CommitRecord:
    with ShardBuild(folder(url), shard) as shard_build:
        failures = [
            Failure(r, str(Count.DROP_EMPTY), "") for r in expected_ids if int(r) not in made
        ]
        shard_build.write([*(caption(number) for number in made), *failures])
        return shard_build.commit(expected_ids, "print", Tally())


def failed_ids(url: str, shard: int, tmp: str) -> dict[str, str]:
    import pyarrow.parquet as pq

    storage.download(folder(url).failures_url(shard), tmp)
    table = pq.read_table(tmp)
    assert table.schema.equals(FAILURE_SCHEMA)
    return dict(zip(table["record_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_commit_record_describes_the_published_file(any_storage: str, tmp_path: object) -> None:
    record = build(any_storage, [0, 1, 3])
    assert (record.num_samples, record.num_failures) == (3, 2)
    copy = f"{tmp_path}/copy.parquet"
    storage.download(folder(any_storage).shard_url(0), copy)
    from transforms.core.shards import file_sha256

    assert file_sha256(copy) == record.sha256
    assert [c.ordinal for c in CAPTION_SHARDS.read(copy)] == [0, 1, 3]
    assert set(failed_ids(any_storage, 0, f"{tmp_path}/failures")) == {"2", "4"}
    assert read_commit(folder(any_storage), 0) == record
    assert committed_shards(folder(any_storage)) == {0}


def test_second_worker_adopts_the_first_ones_shard(any_storage: str) -> None:
    first = build(any_storage, [0, 1, 2, 3, 4])
    second = build(any_storage, [0, 1, 2])
    assert second == first


def test_orphan_of_a_dead_worker_is_adopted(any_storage: str, tmp_path: object) -> None:
    first = build(any_storage, [0, 1, 2, 4])
    storage.delete(folder(any_storage).commit_url(0))
    storage.delete(folder(any_storage).failures_url(0))
    # The second worker made other records; the records that the published file lacks count.
    second = build(any_storage, [0, 3])
    assert second.sha256 == first.sha256
    assert (second.num_samples, second.num_failures) == (4, 1)
    reasons = failed_ids(any_storage, 0, f"{tmp_path}/failures")
    assert reasons == {"3": str(Count.LOST_RECORD)}


def test_whole_orphan_needs_no_production(any_storage: str) -> None:
    build(any_storage, [0, 1, 2, 3, 4])
    storage.delete(folder(any_storage).commit_url(0))
    with ShardBuild(folder(any_storage), 0) as again:
        assert again.published_by_another(EXPECTED)
        assert again.commit(EXPECTED, "print", Tally()).num_samples == 5


def test_incomplete_orphan_is_made_again(any_storage: str) -> None:
    build(any_storage, [0, 1])
    storage.delete(folder(any_storage).commit_url(0))
    storage.delete(folder(any_storage).failures_url(0))
    with ShardBuild(folder(any_storage), 0) as again:
        assert not again.published_by_another(EXPECTED)


def test_workers_at_one_shard_agree(any_storage: str) -> None:
    barrier = threading.Barrier(6)
    records = []

    def work(number: int) -> None:
        with ShardBuild(folder(any_storage), 0) as shard_build:
            made = EXPECTED[: 5 - number % 2]
            failures = [Failure(r, "x", "") for r in EXPECTED if r not in made]
            shard_build.write([*(caption(int(r)) for r in made), *failures])
            barrier.wait()
            records.append(shard_build.commit(EXPECTED, "print", Tally()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 6
    assert len({(r.sha256, r.num_samples, r.num_failures) for r in records}) == 1
    assert len(storage.list_files(any_storage + "/shards")) == 1


@pytest.mark.parametrize("made", [[0, 1], [0, 0, 1, 2, 3], [0, 1, 2, 3, 9]])
def test_a_producer_that_miscounts_commits_nothing(tmp_path: object, made: list[int]) -> None:
    url = f"{tmp_path}/run"
    with ShardBuild(folder(url), 0) as shard_build:
        shard_build.write([caption(number) for number in made])
        with pytest.raises(RuntimeError, match="must have 5 records"):
            shard_build.commit(EXPECTED, "print", Tally())
    assert storage.list_files(url) == {}


def test_an_exception_publishes_nothing(tmp_path: object) -> None:
    url = f"{tmp_path}/run"

    def producer():  # type: ignore[no-untyped-def]
        yield caption(0)
        raise ValueError("engine died")

    with pytest.raises(ValueError, match="engine died"), ShardBuild(folder(url), 0) as shard_build:
        shard_build.write(producer())
        shard_build.commit(EXPECTED, "print", Tally())
    assert storage.list_files(url) == {}


def test_damaged_commit_record_names_the_file_and_the_way_out(tmp_path: object) -> None:
    url = f"{tmp_path}/run"
    storage.publish_bytes(b'{"shard": 0', folder(url).commit_url(0))
    with pytest.raises(DamagedFileError, match=r"captions-000000\.json is damaged .* delete it"):
        read_commit(folder(url), 0)


@pytest.mark.parametrize("in_footer", [True, False])
def test_a_damaged_file_is_not_adopted(tmp_path: Path, in_footer: bool) -> None:
    """Damage to the first byte of the footer makes Arrow raise an OSError without an errno."""
    url = folder(str(tmp_path)).shard_url(0)
    build(str(tmp_path), range(5))
    storage.delete(folder(str(tmp_path)).commit_url(0))
    content = bytearray(storage.read_bytes(url))
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    content[-footer_bytes if in_footer else -1] ^= 0xFF
    storage.replace_bytes(bytes(content), url)
    with pytest.raises(DamagedFileError, match=r"damaged and not committed.*delete it"):
        build(str(tmp_path), range(5))


def test_a_file_that_verify_would_refuse_is_not_adopted(tmp_path: Path) -> None:
    build(str(tmp_path), range(5))
    wrong = [dataclasses.replace(caption(0), caption_id="0" * 16), *map(caption, range(1, 5))]
    for made, fault in (
        (wrong, "whose id is not the hash of their text"),
        ([caption(number) for number in (0, 1, 9)], "does not hold the expected records"),
        ([caption(number) for number in (1, 0, 2)], "does not hold the expected records"),
        ([caption(number) for number in (1, 1, 2)], "holds a record twice"),
    ):
        storage.delete(folder(str(tmp_path)).commit_url(0))
        CAPTION_SHARDS.write(folder(str(tmp_path)).shard_url(0), made)
        with (
            pytest.raises(DamagedFileError, match=f"not committed .*{fault}.*delete it and run"),
            ShardBuild(folder(str(tmp_path)), 0) as again,
        ):
            again.published_by_another(EXPECTED)
        with pytest.raises(DamagedFileError, match=fault):
            build(str(tmp_path), range(5))
        assert committed_shards(folder(str(tmp_path))) == set()


def test_images_are_checked_against_the_metadata_before_adoption(tmp_path: Path) -> None:
    images = StageFolder(str(tmp_path), STAGES["images"])
    made = image_set(0)
    ids = [made.caption.caption_id]
    with ShardBuild(images, 0) as build:
        build.write([made])
        build.commit(ids, "print", Tally())
    storage.delete(images.commit_url(0))
    with ShardBuild(images, 0, {"images_per_caption": "4"}) as again:
        assert again.published_by_another(ids)
    other_seeds = {"images_per_caption": "4", "generator_digest": "generator"}
    with (
        pytest.raises(DamagedFileError, match="its seeds are not those of its caption"),
        ShardBuild(images, 0, other_seeds) as again,
    ):
        again.published_by_another(ids)


@pytest.mark.parametrize("left", [b"PAR1", [0], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("made", [[0, 1, 3], [0, 1, 2, 3, 4]])
def test_dead_letters_of_a_deleted_shard_do_not_stay(
    tmp_path: Path, left: bytes | list[int], made: list[int]
) -> None:
    """Someone deleted the shard and its commit record by hand."""
    letters = folder(str(tmp_path)).failures_url(0)
    if isinstance(left, bytes):
        storage.publish_bytes(left, letters)
    else:
        build(str(tmp_path), [number for number in range(5) if number not in left])
        storage.delete(folder(str(tmp_path)).commit_url(0))
        storage.delete(folder(str(tmp_path)).shard_url(0))
    record = build(str(tmp_path), made)
    assert record.num_failures == 5 - len(made)
    assert storage.exists(letters) == bool(record.num_failures)
    if record.num_failures:
        assert set(failed_ids(str(tmp_path), 0, f"{tmp_path}/copy")) == {"2", "4"}


@pytest.mark.parametrize("left", [b"PAR1", [0], None])
def test_an_orphan_without_its_own_dead_letters_is_made_again(
    tmp_path: Path, left: bytes | list[int] | None
) -> None:
    letters = folder(str(tmp_path)).failures_url(0)
    build(str(tmp_path), [1, 2, 3, 4], shard=1)
    other = storage.read_bytes(folder(str(tmp_path)).failures_url(1))
    build(str(tmp_path), [0, 1, 3])
    storage.delete(folder(str(tmp_path)).commit_url(0))
    storage.delete(letters)
    if left is not None:
        storage.publish_bytes(left if isinstance(left, bytes) else other, letters)
    with ShardBuild(folder(str(tmp_path)), 0) as again:
        assert not again.published_by_another(EXPECTED)
    assert build(str(tmp_path), [0, 1, 3]).num_samples == 3
    assert set(failed_ids(str(tmp_path), 0, f"{tmp_path}/copy")) == {"2", "4"}


def test_what_is_left_of_a_shard_is_deleted_in_the_order_that_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(str(tmp_path))
    build(str(tmp_path), [0, 1, 3])
    assert is_whole(made, 0)
    deleted, delete = [], storage.delete

    def noted(url: str) -> None:
        deleted.append(url)
        delete(url)

    monkeypatch.setattr(storage, "delete", noted)
    discard_shard(made, 0)
    assert deleted == [made.shard_url(0), made.failures_url(0), made.commit_url(0)]
    assert not is_whole(made, 0)


@pytest.mark.parametrize("change", [b"", b"PAR1PAR1"])
def test_a_changed_shard_is_not_whole(tmp_path: Path, change: bytes) -> None:
    made = folder(str(tmp_path))
    build(str(tmp_path), range(5))
    storage.replace_bytes(change, made.shard_url(0))
    assert not is_whole(made, 0)


def test_an_error_of_the_system_is_no_damage() -> None:
    with pytest.raises(PermissionError), reading("a file"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(StorageError), reading("a file"):
        raise StorageError(None, "the server is gone")
    with pytest.raises(DamagedFileError, match="a file is damaged"), reading("a file"):
        raise OSError("ZSTD decompression failed")


def test_no_space_for_dead_letters_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    write = pq.write_table

    def full(table: object, path: str, **options: object) -> None:
        if path.endswith(".failures"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StorageError, match=r"cannot write .*failures: the disk is full; nothing"):
        build(str(tmp_path), [0, 1, 3])
    monkeypatch.undo()
    assert not committed_shards(folder(str(tmp_path)))
    assert build(str(tmp_path), [0, 1, 3]).num_failures == 2


def test_dead_letters_hold_no_value_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setitem(references._hidden, "s3cr3t", "${oc.env:KEY}")
    with ShardBuild(folder(str(tmp_path)), 0) as shard_build:
        shard_build.write([Failure("0", str(Count.ENGINE_ERROR), "http://s3cr3t@host is gone")])
        shard_build.commit(["0"], "print", Tally())
    letters = pq.read_table(folder(str(tmp_path)).failures_url(0))
    assert letters["detail"].to_pylist() == ["http://${oc.env:KEY}@host is gone"]
