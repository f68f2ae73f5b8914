"""The reader of committed shards: checksums, incomplete stages, spans of rows."""

import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.captions import make_captions, write_captions
from tests.support.image_shards import write_images
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError
from transforms.core.index import read_success
from transforms.core.records import Caption, from_table
from transforms.core.shard_reader import CommittedShards, RowReader
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES, stage_folder

SIZES = (3, 0, 5, 2)


def written(url: str) -> StageFolder:
    """Caption shards of `SIZES`; returns their folder."""
    shards, first = [], 0
    for size in SIZES:
        shards.append(make_captions(size, first=first))
        first += size
    return write_captions(url, shards)


def test_shards_are_listed_counted_and_read_in_order(any_storage: str) -> None:
    folder = written(any_storage)
    shards = CommittedShards.open(folder)
    assert len(shards) == len(SIZES)
    assert (tuple(shards.sizes), shards.num_samples) == (SIZES, 10)
    for number, shard in enumerate(shards):
        assert shard.url == folder.shard_url(number)
        assert shard.num_samples == SIZES[number]
        assert shard.read() == storage.read_bytes(shard.url)
    success = read_success(folder)
    assert success is not None
    assert shards.checksum == success["index_sha256"]
    assert shards.metadata["stage"] == "captions"
    tables = list(shards.tables(["ordinal"]))
    assert [table.num_rows for table in tables] == list(SIZES)
    assert pa.concat_tables(tables)["ordinal"].to_pylist() == list(range(10))
    assert tables[0].schema.names == ["ordinal"]


def test_it_survives_pickling(tmp_path: Path) -> None:
    shards = CommittedShards.open(written(str(tmp_path)))
    again = pickle.loads(pickle.dumps(shards))
    assert list(again) == list(shards)
    assert again.folder == shards.folder
    rows = RowReader.open(shards.folder)
    assert len(pickle.dumps(rows)) < 2000, "workers read the index themselves"
    assert pickle.loads(pickle.dumps(rows)) == rows


@pytest.mark.parametrize("place", [0, 0.5, 0.9])
def test_a_flipped_bit_is_found_before_the_content_is_used(any_storage: str, place: float) -> None:
    folder = written(any_storage)
    shards, rows = CommittedShards.open(folder), RowReader.open(folder)
    content = bytearray(storage.read_bytes(folder.shard_url(2)))
    content[int(place * len(content))] ^= 1
    storage.replace_bytes(bytes(content), folder.shard_url(2))
    named = r"shard .*captions-000002\.parquet is damaged: its checksum"
    with pytest.raises(DamagedFileError, match=named):
        shards[2].read()
    with pytest.raises(DamagedFileError, match=named):
        list(shards.tables(["concept"]))
    with pytest.raises(DamagedFileError, match=named):
        rows.read(4, 5)
    assert rows.read(0, 3).num_rows == 3, "other shards can still be read"


def test_a_missing_shard_is_named(any_storage: str) -> None:
    folder = written(any_storage)
    storage.delete(folder.shard_url(0))
    with pytest.raises(MissingFileError, match=r"cannot read .*captions-000000\.parquet"):
        CommittedShards.open(folder)[0].read()


@pytest.mark.parametrize("name", [*STAGES, "images/retry-1"])
def test_an_incomplete_stage_names_the_command_that_finishes_it(tmp_path: Path, name: str) -> None:
    folder = stage_folder(str(tmp_path), name)
    kind = STAGES[name.partition("/")[0]]
    command = kind.retry_command if folder.is_retry else kind.command
    sentence = f"the {kind.folder} stage is not complete .*`python -m pipelines {command}`"
    with pytest.raises(MissingFileError, match=sentence):
        CommittedShards.open(folder)
    with pytest.raises(ConfigError, match=r"\(key data, or run\) holds no stage: expected"):
        CommittedShards.open(folder, "data")
    storage.replace_bytes(b"", folder.run_yaml_url)
    with pytest.raises(MissingFileError, match=f"{sentence}.* set data to"):
        CommittedShards.open(folder, "data")


def test_shards_of_another_kind_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path)
    captions = replace(images, kind=STAGES["captions"])
    with pytest.raises(ConfigError, match=r"holds shards/.*\.tar: expected .* captions stage"):
        CommittedShards.open(captions)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    folder = written(str(tmp_path))
    storage.replace_bytes(b"PAR1", folder.index_url)
    with pytest.raises(DamagedFileError, match=r"index\.parquet is damaged"):
        CommittedShards.open(folder)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (2, 4), (3, 3), (9, 99), (12, 15), (0, 0)])
def test_rows_are_read_across_shards(tmp_path: Path, start: int, stop: int) -> None:
    rows = RowReader.open(written(str(tmp_path)))
    assert rows.num_rows == 10
    assert from_table(rows.read(start, stop), Caption) == make_captions(10)[start:stop]
    ordinals = rows.read(start, stop, ["ordinal"])
    assert ordinals.schema.names == ["ordinal"]
    assert ordinals["ordinal"].to_pylist() == list(range(10))[start:stop]
