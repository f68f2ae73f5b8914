from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.curation.file_shuffle import (
    Exchange,
    LostFilesError,
    read_json,
    read_rows,
    write_json,
    write_rows,
)

ROWS = pa.table({"key": pa.array(range(40), pa.uint64()), "text": [f"cat {n}" for n in range(40)]})


def test_every_flipped_byte_of_a_file_of_rows_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(ROWS, str(path))
    assert read_rows(str(path), ["text"]).equals(ROWS.select(["text"]))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(LostFilesError, match=r"rows\.parquet is damaged"):
            read_rows(str(path))


def test_every_flipped_byte_of_a_result_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json({"num_distinct": 12, "text": "a cat"}, str(path))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert read_json(str(path)) is None


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "rows.parquet", compression="lz4")
    assert read_rows(str(tmp_path / "rows.parquet")).equals(ROWS)
    (tmp_path / "result.json").write_text('{"num_distinct": 3}')
    assert read_json(str(tmp_path / "result.json")) == {"num_distinct": 3}


def test_all_lost_files_of_a_partition_are_named(tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path), 2)
    for task in range(3):
        exchange.write(task, ROWS, np.arange(40) % 2)
    assert len(exchange.read(1, 3)) == 60
    (tmp_path / "000001-000000.parquet").unlink()
    (tmp_path / "000001-000002.parquet").write_bytes(b"")
    with pytest.raises(LostFilesError, match=r"000001-000000.*and 1 more files") as caught:
        exchange.read(1, 3)
    names = [Path(url).name for url in caught.value.urls]
    assert names == ["000001-000000.parquet", "000001-000002.parquet"]
