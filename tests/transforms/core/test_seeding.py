from hypothesis import given
from hypothesis import strategies as st

from transforms.core.seeding import caption_id, derive

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 2**40)), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_different_parts_give_different_seeds(a: list[str | int], b: list[str | int]) -> None:
    assert (derive(*a) == derive(*b)) == (a == b)


@given(PARTS, st.integers(1, 63))
def test_range(parts: list[str | int], bits: int) -> None:
    assert 0 <= derive(*parts, bits=bits) < 2**bits


def test_pinned_values() -> None:
    # Existing data sets depend on these values: changing them changes every run.
    assert derive("fingerprint", "record", 3) == 889295612682115024
    assert caption_id("a cat") == caption_id("a cat", 0) == "67f5dfb40b23dda2"
    assert caption_id("a cat", 1) == "a0b0851d46eae862"


def test_number_and_its_text_differ() -> None:
    assert derive(1) != derive("1")
