import dataclasses
import hashlib
import io
import json
import random
import re
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq
import pytest

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.index import (
    complete_index,
    examine,
    read_index,
    read_success,
    write_index,
)
from transforms.core.shards import CommitRecord, StageFolder, encode_commit
from transforms.core.stages import STAGES


def record(shard: int) -> CommitRecord:
    path = StageFolder("", STAGES["images"]).shard_path(shard)
    return CommitRecord(shard, path, "0" * 64, 10, 5, shard % 2, "print", 1.0, {}, {})


def write_stage(folder: StageFolder, records: Sequence[CommitRecord]) -> None:
    """Write a complete stage; the content of its shards is not that of a format."""
    for each in records:
        storage.publish_bytes(bytes(each.num_bytes), storage.join(folder.url, each.path))
        storage.publish_bytes(encode_commit(each), folder.commit_url(each.shard))
    write_index(folder, records, {})


def test_index_round_trip(any_storage: str) -> None:
    folder = StageFolder(any_storage, STAGES["images"])
    assert read_success(folder) is None
    write_index(folder, [record(2), record(0), record(1)], {"images_per_caption": "4"})
    index = read_index(folder.index_url)
    assert index.table["shard"].to_pylist() == [0, 1, 2]
    assert index.metadata["images_per_caption"] == "4"
    assert index.folder == any_storage
    summary = read_success(folder)
    assert summary is not None
    assert (summary["num_shards"], summary["num_samples"], summary["num_failures"]) == (3, 15, 1)


def test_complete_retries_are_part_of_the_index(tmp_path: object) -> None:
    folder = StageFolder(f"{tmp_path}/images", STAGES["images"])
    one = dataclasses.replace(record(0), num_samples=1)
    write_stage(folder.retry(1), [one])
    write_stage(folder.retry(3), [one])  # ignored as long as there is no second
    summary = write_index(folder, map(record, (2, 0, 1, 3)), {})
    # Shards 1 and 3 each lack a record; the retry made one of the two.
    assert (summary["num_shards"], summary["num_samples"], summary["num_failures"]) == (4, 21, 1)
    rows = read_index(folder.index_url).table.to_pylist()
    assert [row["shard"] for row in rows] == list(range(5))
    assert rows[4]["path"] == "retry-1/shards/000/images-000000.tar"


def test_a_retry_holds_no_more_than_failed_before_it(tmp_path: object) -> None:
    folder = StageFolder(f"{tmp_path}/images", STAGES["images"])
    own = [record(0), record(1)]
    for number, (made, failed) in enumerate([(0, 1), (1, 0)], 1):
        one = dataclasses.replace(record(0), num_samples=made, num_failures=failed)
        write_stage(folder.retry(number), [one])
    assert write_index(folder, own, {})["num_failures"] == 0
    before = storage.read_bytes(folder.index_url)
    none = [dataclasses.replace(each, num_failures=0) for each in own]
    with pytest.raises(DamagedFileError, match="retry-1 holds records that did not fail again"):
        write_index(folder, none, {})
    assert storage.read_bytes(folder.index_url) == before


def test_an_index_does_not_depend_on_the_order_of_many_records(tmp_path: object) -> None:
    numbers = list(range(10_000))
    folders = [StageFolder(f"{tmp_path}/{name}", STAGES["images"]) for name in "ab"]
    for folder in folders:
        random.Random(folder.url).shuffle(numbers)
        metadata = {"a": "1", "b": "2"} if folder is folders[0] else {"b": "2", "a": "1"}
        write_index(folder, map(record, numbers), metadata)
    first, second = (storage.read_bytes(folder.index_url) for folder in folders)
    assert first == second


def test_wrong_index_is_a_sentence(tmp_path: object) -> None:
    url = f"{tmp_path}/index.parquet"
    with pytest.raises(MissingFileError, match="no such file"):
        read_index(url)
    storage.replace_bytes(b"no parquet", url)
    with pytest.raises(DamagedFileError, match=r"index\.parquet is damaged"):
        read_index(url)


def images(url: str) -> StageFolder:
    """Write a complete stage of three shards and a complete retry of one; return its folder."""
    folder = StageFolder(url, STAGES["images"])
    write_stage(folder.retry(1), [dataclasses.replace(record(0), num_samples=1, num_failures=0)])
    write_stage(folder, [record(shard) for shard in range(3)])
    return folder


def test_a_stage_is_complete_when_index_and_listing_agree(any_storage: str) -> None:
    folder = images(any_storage)
    for planned in (3, None):
        state = examine(folder, planned)
        assert state.fault is None
        assert state.index is not None and state.index.table.num_rows == 4
        assert state.summary == read_success(folder)
        assert (state.lost, state.doubtful) == ([], ())
    assert examine(folder, 4).fault == "it has 3 of 4 shards"
    assert complete_index(folder.retry(2)) is None


def rewrite_index(folder: StageFolder, **columns: object) -> None:
    """Let the index say something else about its second shard, and `_SUCCESS` agree with it."""
    table = read_index(folder.index_url).table
    rows = table.to_pylist()
    rows[1] |= columns
    buffer = io.BytesIO()
    pq.write_table(table.from_pylist(rows, schema=table.schema), buffer)
    storage.replace_bytes(buffer.getvalue(), folder.index_url)
    succeed(folder, index_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def succeed(folder: StageFolder, **changes: object) -> None:
    """Change values in `_SUCCESS`."""
    summary = {**(read_success(folder) or {}), **changes}
    storage.replace_bytes(json.dumps(summary).encode(), folder.success_url)


FAULTS: dict[str, tuple[Callable[[StageFolder], object], str]] = {
    "no index": (lambda f: storage.delete(f.index_url), "there is no .*index.parquet"),
    "no index file": (lambda f: storage.replace_bytes(b"PAR1", f.index_url), "its checksum is not"),
    "another index": (
        lambda f: succeed(f, index_sha256="0" * 64),
        "its checksum is not the one in _SUCCESS",
    ),
    "no success": (lambda f: storage.delete(f.success_url), "_SUCCESS is missing or damaged"),
    "a number": (lambda f: storage.replace_bytes(b"3", f.success_url), "_SUCCESS is missing or"),
    "text": (lambda f: succeed(f, num_shards="3"), "_SUCCESS is missing or damaged"),
    "other number": (lambda f: succeed(f, num_shards=2), "it has 2 of 3 shards"),
    "no shard": (lambda f: storage.delete(f.shard_url(1)), "there is no .*/images-000001.tar"),
    "cut off": (
        lambda f: storage.replace_bytes(b"", f.shard_url(2)),
        "images-000002.tar has 0 bytes, but the index says 10",
    ),
    "no commit": (lambda f: storage.delete(f.commit_url(0)), "there is no .*images-000000.json"),
    "other path": (
        lambda f: rewrite_index(f, path=f.shard_path(2)),
        "lists shards/000/images-000002.tar as shard 1",
    ),
    "other size": (lambda f: rewrite_index(f, num_bytes=9), "10 bytes, but the index says 9"),
    "no shard of a retry": (
        lambda f: storage.delete(f.retry(1).shard_url(0)),
        "there is no .*/retry-1/shards/000/images-000000.tar",
    ),
    "no commit of a retry": (
        lambda f: storage.delete(f.retry(1).commit_url(0)),
        "there is no .*/retry-1/commits/000/images-000000.json",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_stage_whose_files_disagree_is_not_complete(tmp_path: object, name: str) -> None:
    folder = images(str(tmp_path))
    cause, sentence = FAULTS[name]
    cause(folder)
    state = examine(folder, 3)
    assert state.fault is not None
    assert re.search(sentence, state.fault), state.fault
    assert (state.index, state.summary, complete_index(folder)) == (None, None, None)
    assert list(state.lost) == ([1] if name == "no shard" else [])
    doubtful = {"cut off": [2], "other path": [1], "other size": [1]}.get(name, [])
    assert list(state.doubtful) == doubtful


def test_no_shard_and_no_commit_record_is_read(
    any_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(any_storage)
    read, read_bytes = [], storage.read_bytes

    def counted(url: str) -> bytes:
        read.append(url)
        return read_bytes(url)

    monkeypatch.setattr(storage, "read_bytes", counted)
    assert examine(folder, 3).fault is None
    assert set(read) == {folder.index_url, folder.success_url}


def test_an_index_that_says_the_same_keeps_its_bytes(tmp_path: object) -> None:
    """Another version of Arrow writes other bytes, on which later stages depend."""
    folder = images(str(tmp_path))
    rewrite_index(folder)
    before = storage.read_bytes(folder.index_url)
    records = [record(shard) for shard in range(3)]
    write_index(folder, records, {})
    assert storage.read_bytes(folder.index_url) == before
    write_index(folder, records, {"images_per_caption": "4"})
    assert storage.read_bytes(folder.index_url) != before
    assert examine(folder, 3).fault is None
