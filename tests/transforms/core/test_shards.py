import dataclasses
import json
from typing import Any

import pytest

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.shards import (
    CommitRecord,
    StageFolder,
    committed_shards,
    decode_commit,
    encode_commit,
    read_commit,
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
    assert folder.parent_url == "gs://bucket/run"
    assert folder.retry(1).parent_url == folder.url


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


def test_any_flipped_bit_of_a_commit_record_is_found() -> None:
    whole = dataclasses.replace(record(3), counts={"repainted": 2}, versions={"torch": "2.9"})
    content = encode_commit(whole)
    assert decode_commit(content) == whole
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytes([content[place] ^ 1 << bit])
            with pytest.raises(ValueError):
                decode_commit(content[:place] + flipped + content[place + 1 :])


def test_commit_records_of_earlier_versions_are_read(tmp_path: object) -> None:
    folder = StageFolder(str(tmp_path), STAGES["images"])
    written = dataclasses.asdict(record(3))
    storage.publish_bytes(json.dumps(written).encode(), folder.commit_url(3))
    assert read_commit(folder, 3) == record(3)
    # They have no checksum, so that only the path itself shows this flipped bit.
    other = {**written, "path": folder.shard_path(2)}
    storage.replace_bytes(json.dumps(other).encode(), folder.commit_url(3))
    with pytest.raises(DamagedFileError, match=r"000003\.json is damaged .*images-000002\.tar"):
        read_commit(folder, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_bytes": "10"}, r"key 'num_bytes' has value '10': expected int"),
        ({"num_samples": 5.0}, r"key 'num_samples' has value 5\.0: expected int"),
        ({"shard": True}, r"key 'shard' has value True: expected int"),
        ({"path": None}, r"key 'path' has value None: expected str"),
        ({"seconds": "1"}, r"key 'seconds' has value '1': expected int or float"),
        ({"counts": [1]}, r"key 'counts' has value \[1\]: expected dict"),
        ({"counts": {"drop_empty": "1"}}, r"key 'counts.drop_empty' has value '1': expected int"),
        ({"versions": {"torch": 2}}, r"key 'versions.torch' has value 2: expected str"),
        ({"colour": "red"}, r"key 'colour' is unknown"),
    ],
)
def test_wrong_types_in_a_commit_record_are_one_sentence(
    tmp_path: object, change: dict[str, Any], sentence: str
) -> None:
    folder = StageFolder(str(tmp_path), STAGES["images"])
    changed = {**dataclasses.asdict(record(0)), **change}
    storage.publish_bytes(json.dumps(changed).encode(), folder.commit_url(0))
    with pytest.raises(DamagedFileError, match=sentence):
        read_commit(folder, 0)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"{}", b"\xff", b""])
def test_what_is_no_commit_record_is_one_sentence(tmp_path: object, content: bytes) -> None:
    folder = StageFolder(str(tmp_path), STAGES["images"])
    storage.publish_bytes(content, folder.commit_url(0))
    with pytest.raises(DamagedFileError, match=r"000000\.json is damaged .*delete it and run"):
        read_commit(folder, 0)
