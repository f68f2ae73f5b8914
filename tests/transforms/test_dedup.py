import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.options import beam_options
from transforms.core import storage, tables
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shards import DamagedFileError, StageFolder, read_commit
from transforms.dedup import (
    CountDistinct,
    CurateShards,
    InputShard,
    Row,
    cut,
    keep_distinct,
    order_key,
    partition_of,
    read_counts,
    read_rows,
)

SIZE = 10


def caption(text: str, ordinal: int) -> Caption:
    return Caption(caption_id(text), text, ordinal, "thing", "test", "c-background", "attic", None)


def write_shards(folder: Path, texts: Sequence[str], per_shard: int) -> list[InputShard]:
    """Shards of captions as a captions stage leaves them; ordinals count through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(texts), per_shard)):
        path = str(folder / f"{number}.parquet")
        part = texts[start : start + per_shard]
        tables.write_captions(path, [caption(t, start + i) for i, t in enumerate(part)])
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        shards.append(InputShard(path, sha256))
    return shards


def curate(
    shards: Sequence[InputShard], output: str, num_shards: int, num_partitions: int, seed: int = 0
) -> list[Caption]:
    """Run both passes; returns the captions of all output shards in order."""
    counts_url = storage.join(output, "partitions.json")
    with beam.Pipeline(options=beam_options([])) as pipeline:
        inputs = pipeline | beam.Create(list(shards))
        _ = inputs | CountDistinct(seed, num_partitions, counts_url, "these")
    counts = read_counts(counts_url, "these")
    assert counts is not None
    folder = StageFolder(output, "captions", ".parquet")
    wanted = [n for n in range(num_shards) if not storage.exists(folder.commit_url(n))]
    with beam.Pipeline(options=beam_options([])) as pipeline:
        inputs = pipeline | beam.Create(list(shards))
        _ = inputs | CurateShards(folder, "print", seed, counts, SIZE, wanted)
    return [c for n in range(num_shards) for c in tables.read_captions(folder.shard_url(n))]


def texts(number: int, different: int) -> list[str]:
    """Captions of which only `different` differ."""
    draw = random.Random(number)
    some = [f"caption number {i}" for i in range(different)]
    return some + [draw.choice(some) for _ in range(number - different)]


def test_every_caption_once_and_every_shard_of_the_same_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", texts(160, 95), per_shard=23)
    curated = curate(shards, str(tmp_path / "out"), num_shards=9, num_partitions=4)
    assert len(curated) == 9 * SIZE, "95 different ones fill nine shards of ten"
    assert len({c.caption_id for c in curated}) == len(curated)
    folder = StageFolder(str(tmp_path / "out"), "captions", ".parquet")
    assert {read_commit(folder, n).num_samples for n in range(9)} == {SIZE}
    assert not storage.exists(folder.shard_url(9)), "the rest is left out"
    assert all(c.background == "attic" and c.relation is None for c in curated)


def test_of_equal_captions_the_first_written_is_kept(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", texts(120, 50), per_shard=17)
    curated = curate(shards, str(tmp_path / "out"), num_shards=5, num_partitions=3)
    assert sorted(c.ordinal for c in curated) == list(range(50))


def test_order_depends_on_seed_and_captions_alone(tmp_path: Path) -> None:
    written = texts(60, 60)
    shards = write_shards(tmp_path / "in", written, per_shard=7)
    first = curate(shards, str(tmp_path / "a"), 6, num_partitions=1)
    again = curate(shards[::-1], str(tmp_path / "b"), 6, num_partitions=5)
    assert first == again, "neither the input order nor the partitions count"
    recut = write_shards(tmp_path / "in2", written[::-1], per_shard=60)
    other_cut = curate(recut, str(tmp_path / "c"), 6, num_partitions=2)
    assert [c.text for c in other_cut] == [c.text for c in first]
    other_seed = curate(shards, str(tmp_path / "d"), 6, num_partitions=2, seed=1)
    assert [c.text for c in other_seed] != [c.text for c in first]


def test_committed_shards_are_left_alone(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", texts(40, 40), per_shard=7)
    output = str(tmp_path / "out")
    whole = curate(shards, output, num_shards=4, num_partitions=2)
    folder = StageFolder(output, "captions", ".parquet")
    before = read_commit(folder, 1)
    for shard in (0, 2):
        Path(folder.commit_url(shard)).unlink()
        Path(folder.shard_url(shard)).unlink()
    assert curate(shards, output, num_shards=4, num_partitions=2) == whole
    assert read_commit(folder, 1) == before


def test_the_order_is_random() -> None:
    # Places of 20,000 captions are uniform: a chi-square over 100 cells stays near its mean of 99.
    cells = [0] * 100
    for number in range(20_000):
        cells[partition_of(order_key(0, caption_id(str(number))), 100)] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in cells)
    assert 50 < chi_square < 160


@given(st.integers(1, 2**40), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_partitions_keep_the_order_of_keys(number: int, one: int, other: int) -> None:
    low, high = sorted([one, other])
    assert 0 <= partition_of(low, number) <= partition_of(high, number) < number


@given(st.integers(0, 1000), st.integers(0, 200), st.integers(1, 50))
def test_pieces_cover_a_run_and_respect_shards(start: int, length: int, size: int) -> None:
    rows: list[Row] = [(start + i,) for i in range(length)]
    seen: list[Row] = []
    for shard, offset, piece in cut(start, rows, size):
        assert piece and offset + len(piece) <= size
        assert [row[0] for row in piece] == [shard * size + offset + i for i in range(len(piece))]
        seen += piece
    assert seen == rows


@given(st.lists(st.integers(0, 5), max_size=30))
def test_keep_distinct_keeps_each_id_once_with_its_smallest_ordinal(ids: list[int]) -> None:
    rows: list[Row] = [(f"{i}", "text", len(ids) - n) for n, i in enumerate(ids)]
    expected = {row[0]: min(r[2] for r in rows if r[0] == row[0]) for row in rows}
    assert {row[0]: row[2] for row in keep_distinct(rows)} == expected


def test_a_changed_input_shard_is_refused(tmp_path: Path) -> None:
    shard, other = write_shards(tmp_path / "in", texts(20, 20), per_shard=10)
    with pytest.raises(DamagedFileError, match="not what its index says"):
        read_rows(InputShard(shard.url, other.sha256))
