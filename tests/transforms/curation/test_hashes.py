import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.curation.hashes import changes, distinct, mix


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
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
