"""Shards in Parquet: what is written comes back, and wrong rows are named."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.captions import caption, make_captions
from transforms.core.parquet_shards import BACKGROUND_SHARDS, CAPTION_SHARDS, ParquetShards
from transforms.core.records import Backgrounds, schema_of, to_table


@dataclass(frozen=True)
class Pair:
    left: str
    right: int
    words: tuple[str, ...] = ()


PAIRS = ParquetShards(Pair, id_columns=("left", "right"))
ROWS = [Pair("a", 1, ("x", "y")), Pair("a", 2), Pair("b", 1)]


def test_records_come_back_with_their_ids(tmp_path: Path) -> None:
    path = str(tmp_path / "pairs.parquet")
    ids = PAIRS.write(path, iter(ROWS))
    assert ids == PAIRS.read_ids(path) == ["a/1", "a/2", "b/1"]
    assert PAIRS.read(path) == ROWS
    assert PAIRS.check(Path(path).read_bytes(), {}, decode=True) == (ids, [])


def test_the_ids_of_captions_and_backgrounds(tmp_path: Path) -> None:
    path = str(tmp_path / "shard.parquet")
    assert CAPTION_SHARDS.write(path, make_captions(2, first=7)) == ["7", "8"]
    rows = [Backgrounds("pets", "fox", ("in a wood",)), Backgrounds("wild", "fox", ())]
    assert BACKGROUND_SHARDS.write(path, rows) == [row.record_id for row in rows]


def test_columns_give_the_same_bytes_as_records(tmp_path: Path) -> None:
    captions = make_captions(2500)
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    CAPTION_SHARDS.write(one, captions)
    CAPTION_SHARDS.write(other, to_table(captions, schema_of(type(captions[0]))))
    assert Path(one).read_bytes() == Path(other).read_bytes()
    sizes = [pq.ParquetFile(one).metadata.row_group(n).num_rows for n in range(3)]
    assert sizes == [1000, 1000, 500]


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda rows: [*rows, rows[0]], ["holds a record twice"]),
        (
            lambda rows: [replace(rows[0], caption_id="0" * 16), *rows[1:]],
            ["has 1 captions whose id is not the hash of their text"],
        ),
    ],
)
def test_wrong_rows_are_faults(tmp_path: Path, change, faults: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "captions.parquet"
    ids = CAPTION_SHARDS.write(str(path), change(make_captions(3)))
    assert CAPTION_SHARDS.check(path.read_bytes(), {}, decode=False) == (ids, faults)


def test_equal_captions_are_told_apart_by_their_occurrence(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    again = [caption(number, "a cat on a chair", occurrence=number) for number in range(3)]
    assert len({c.caption_id for c in again}) == 3
    ids = CAPTION_SHARDS.write(str(path), again)
    assert CAPTION_SHARDS.read(str(path)) == again
    assert CAPTION_SHARDS.check(path.read_bytes(), {}, decode=False) == (ids, [])
    for wrong, fault in ((2, "has 1 captions whose id"), (-1, "has 1 captions whose id")):
        CAPTION_SHARDS.write(str(path), [again[0], replace(again[1], occurrence=wrong)])
        _, (found,) = CAPTION_SHARDS.check(path.read_bytes(), {}, decode=False)
        assert fault in found


def test_other_columns_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    table = to_table(ROWS, schema_of(Pair))
    pq.write_table(table.set_column(1, "right", pa.array([1.0, 2.0, 3.0])), path)
    contents = PAIRS.check(path.read_bytes(), {}, decode=False)
    assert contents == ([], ["has other columns than a shard of Pair"])
