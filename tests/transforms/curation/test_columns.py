import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.core.seeding import caption_id
from transforms.curation.columns import (
    changes,
    distinct,
    first_written,
    mix,
    order_keys,
    partition_of,
)

KEYS = st.integers(0, 2**64 - 1)


def test_the_order_is_random() -> None:
    # Places of 20,000 captions are uniform: a chi-square over 100 cells stays near its mean of 99.
    keys = order_keys(0, pa.array([caption_id(str(number)) for number in range(20_000)]))
    cells = np.bincount(partition_of(keys, 100), minlength=100)
    assert 50 < ((cells - 200) ** 2 / 200).sum() < 160


@settings(deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=5, unique=True), st.integers(0, 2**40))
def test_keys_are_one_to_one(ids: list[int], seed: int) -> None:
    texts = pa.array(["0" * 16, *(f"{number:016x}" for number in ids)])
    keys = order_keys(seed, texts.slice(1))
    assert len(set(keys.tolist())) == len(ids)
    assert keys.tolist() == [order_keys(seed, texts.slice(i + 1, 1))[0] for i in range(len(ids))]


@settings(deadline=None)
@given(st.integers(1, 2**31), KEYS, KEYS)
def test_partitions_keep_the_order_of_keys(number: int, one: int, other: int) -> None:
    low, high = partition_of(np.array(sorted([one, other]), np.uint64), number)
    assert 0 <= low <= high < number


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30))
def test_first_written_keeps_each_key_once_with_its_smallest_ordinal(
    rows: list[tuple[int, int]],
) -> None:
    keys, times = [key for key, _ in rows], [number for _, number in rows]
    ordinals = [len(rows) - i for i in range(len(rows))]
    table = pa.table(
        {
            "key": pa.array(keys, pa.uint64()),
            "ordinal": pa.array(ordinals, pa.int64()),
            "times": pa.array(times, pa.int64()),
        }
    )
    expected = [
        {
            "key": key,
            "ordinal": min(o for k, o in zip(keys, ordinals, strict=True) if k == key),
            "times": sum(t for k, t in rows if k == key),
        }
        for key in sorted(set(keys))
    ]
    assert first_written(table).to_pylist() == expected


@settings(deadline=None)
@given(KEYS, KEYS)
def test_mixing_keeps_numbers_apart(one: int, other: int) -> None:
    mixed = mix(np.array([one, other], np.uint64))
    assert (mixed[0] == mixed[1]) == (one == other)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_different_rows_are_the_sorted_set_of_them(rows: list[tuple[int, int]]) -> None:
    major, minor = (np.array([row[side] for row in rows], np.uint64) for side in (0, 1))
    first, second = distinct(major, minor)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == sorted(set(rows))


def test_a_column_changes_at_its_first_row() -> None:
    assert changes(np.array([7, 7, 0, 7], np.uint64)).tolist() == [True, False, True, True]
    assert changes(np.array([], np.uint64)).tolist() == []
