import dataclasses
import random

import pytest

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.index import read_index, read_success, write_index
from transforms.core.shards import CommitRecord, StageFolder
from transforms.core.stages import STAGES


def record(shard: int) -> CommitRecord:
    path = StageFolder("", STAGES["images"]).shard_path(shard)
    return CommitRecord(shard, path, "0" * 64, 10, 5, shard % 2, "print", 1.0, {}, {})


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
    write_index(folder.retry(1), [one], {})
    write_index(folder.retry(3), [one], {})  # ignored as long as there is no second
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
        write_index(folder.retry(number), [one], {})
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
