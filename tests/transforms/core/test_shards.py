import pytest

from transforms.core import storage
from transforms.core.errors import MissingFileError
from transforms.core.shards import (
    CommitRecord,
    StageFolder,
    committed_shards,
    encode_commit,
    read_commits,
)
from transforms.core.stages import STAGES


def record(shard: int) -> CommitRecord:
    path = StageFolder("", STAGES["images"]).shard_path(shard)
    return CommitRecord(shard, path, "0" * 64, 10, 5, shard % 2, "print", 1.0, {}, {})


def test_names_are_padded_and_spread_over_folders() -> None:
    folder = StageFolder("gs://bucket/run/images", STAGES["images"])
    assert folder.shard_url(12345) == "gs://bucket/run/images/shards/012/images-012345.tar"
    assert folder.commit_url(12345) == "gs://bucket/run/images/commits/012/images-012345.json"
    assert folder.failures_url(7) == "gs://bucket/run/images/failures/000/images-000007.parquet"


def test_commits_are_read_in_order(any_storage: str) -> None:
    folder = StageFolder(any_storage, STAGES["images"])
    for shard in range(9):
        storage.publish_bytes(encode_commit(record(shard)), folder.commit_url(shard))
    assert list(read_commits(folder, range(8))) == [record(shard) for shard in range(8)]
    with pytest.raises(MissingFileError, match="images-000009"):
        list(read_commits(folder, range(10)))


def test_committed_are_found_by_one_listing(any_storage: str) -> None:
    folder = StageFolder(any_storage, STAGES["images"])
    for shard in (0, 999, 1000, 54321):
        storage.publish_bytes(encode_commit(record(shard)), folder.commit_url(shard))
    assert committed_shards(folder) == {0, 999, 1000, 54321}
